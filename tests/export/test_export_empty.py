"""A Llama in which whole projections have no link: pruned away by somebody, or by its masks."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_llama

from hebbline.artifacts.masks import load_masks, save_masks
from hebbline.export import export_model
from hebbline.export.passes import PassOptions

GONE = {
    "one of q, k and v": ["model.layers.0.self_attn.q_proj"],
    "gate and up": ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"],
    "a whole layer": [
        *(f"model.layers.1.self_attn.{part}_proj" for part in "qkvo"),
        *(f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")),
    ],
}


@pytest.mark.parametrize("gone", GONE.values(), ids=list(GONE))
@pytest.mark.parametrize("values", ["float32", "int8"])
def test_projections_of_zeros_are_packed_and_agree_with_torch(tokenizer, tmp_path, gone, values):
    model = make_llama(len(tokenizer))
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            layer.weight.data *= torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.3
            if name in gone:
                layer.weight.data.zero_()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    report = export_model(tmp_path / "model", tmp_path / "artifact", values=values)
    empty = {layer.name for layer in report.layers if layer.links == 0}
    assert empty == set(gone) and all(layer.layout != "dense" for layer in report.layers)


@pytest.mark.parametrize("passes", [PassOptions(), PassOptions(compact=True)], ids=["as it is", "compact"])
def test_masks_without_links_are_kept(tiny_model_directory, tmp_path, passes):
    """The masks say that nothing is linked, and the weights hold zeros there."""
    gone = GONE["gate and up"]
    for path in tiny_model_directory.iterdir():
        if path.name != "hebbline.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    weights, masks = load_file(tmp_path / "model.safetensors"), load_masks(tmp_path / "masks.safetensors")
    for name in gone:
        weights[f"{name}.weight"].zero_()
        masks[name] = np.zeros_like(masks[name])
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    save_masks(tmp_path / "masks.safetensors", masks)
    report = export_model(tmp_path, tmp_path / "artifact", passes=passes)
    links = {layer.name: layer.links for layer in report.layers}
    assert all(links[name] == 0 for name in gone) and sum(links.values()) > 0
