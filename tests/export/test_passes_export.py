import json

import numpy as np
import pytest
from sparse_llama import make_sparse_llama, one_thread

from hebbline.artifacts import read_manifest
from hebbline.artifacts.masks import MASKS_FILE, save_masks
from hebbline.export import export_model
from hebbline.export.passes import PassOptions
from hebbline.export.verify import torch_greedy
from hebbline.runtime.opening import open_onnx

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]


def dead_parts(name, mask, rng):
    """Neurons, the first 40 of layer 0 and the last 20 of layer 1, and of six heads the second."""
    if name == "model.layers.0.mlp.down_proj":
        mask[:, :40] = False
    if name == "model.layers.1.mlp.gate_proj":
        mask[84:] = False
    if "o_proj" in name:
        mask[:, 16:32] = False


@pytest.fixture(scope="module")
def model_and_directory(tokenizer, tmp_path_factory):
    model, masks = make_sparse_llama(
        mask_of=dead_parts, vocab_size=len(tokenizer), num_key_value_heads=6, mlp_bias=True, attention_bias=True
    )
    for layer in (0, 1):  # dead with their heads only where they have no bias
        for part in "qkv":
            model.get_parameter(f"model.layers.{layer}.self_attn.{part}_proj.bias").data[16:32] = 0
        for part in ("gate", "up"):
            model.get_parameter(f"model.layers.{layer}.mlp.{part}_proj.bias").data.zero_()
    directory = tmp_path_factory.mktemp("passes") / "model"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    save_masks(directory / MASKS_FILE, masks)
    return model, directory


def test_an_export_with_passes_is_gated_by_the_model_as_it_was(model_and_directory, tmp_path):
    """Five heads, which config.json could not say, and MLPs of two widths: both graphs agree with torch."""
    model, directory = model_and_directory
    report = export_model(directory, tmp_path / "artifact", passes=PassOptions(compact=True, permute="2:4"))
    shapes = {
        layer.name: (layer.out_features, layer.in_features) for layer in read_manifest(tmp_path / "artifact").layers
    }
    assert shapes["model.layers.0.mlp.down_proj"] == (96, 64) and shapes["model.layers.1.mlp.down_proj"] == (96, 88)
    assert shapes["model.layers.0.self_attn.q_proj"] == (80, 96)
    assert read_manifest(tmp_path / "artifact").language_model.num_kv_heads == 5
    compacted, permuted = report.passes
    assert "14 of 14 layers are smaller" in compacted.summary
    assert permuted.fit_before < permuted.fit_after
    page = (tmp_path / "artifact/report.html").read_text()
    assert compacted.summary in page and permuted.summary in page and "40 of 104 neurons are dead" in page
    stored = json.loads((tmp_path / "artifact/report.json").read_text())
    assert [one["name"] for one in stored["passes"]] == ["compact", "permute 2:4"]
    runner, prompt = open_onnx(tmp_path / "artifact", slots=1), list(range(3, 15))
    expected, _ = torch_greedy(model, prompt, 1)
    assert int(np.argmax(runner.prefill(0, prompt, 0, [len(prompt) - 1])[0])) == expected[0]
