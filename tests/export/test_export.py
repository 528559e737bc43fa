import json
import os
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_llama

from hebbline.artifacts import CheckError, DamagedArtifactError, InputError, UnsupportedModelError, read_manifest
from hebbline.export import export_model, exporter, speed, verify
from hebbline.export.graph import SourceModel, StockAttention, VarlenAttention, head, load_source
from hebbline.export.graph.head import quantise_rows
from hebbline.export.layouts import LAYOUTS
from hebbline.export.verify import float32_rounding, torch_greedy
from hebbline.runtime.opening import open_onnx
from hebbline.runtime.portable import PortableRunner
from hebbline.runtime.varlen import VarlenRunner

PROJECTIONS = 14


FILES = {
    "model.onnx",
    "model.hebbline.onnx",
    "model.onnx.data",
    "report.html",
    "report.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
}


def save_plain(directory, model, tokenizer):
    """What any Hugging Face user has: no masks, no manifest."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def copy_unpublished(source, directory):
    """A copy without manifest, so that a change reaches the check that is meant and not the digest."""
    shutil.copytree(source, directory)
    (directory / "hebbline.json").unlink()
    return directory


def test_artifact_is_complete_and_says_what_it_holds(tiny_artifact, tiny_model_directory):
    manifest = read_manifest(tiny_artifact)
    assert manifest.kind == "onnx" and manifest.method == "static" and set(manifest.files) == FILES
    assert len(manifest.layers) == PROJECTIONS
    assert {layer.layout for layer in manifest.layers} == {"bitmask"}
    assert [layer.links for layer in manifest.layers] == [
        layer.links for layer in read_manifest(tiny_model_directory).layers
    ]
    report = json.loads((tiny_artifact / "report.json").read_text())
    assert report["parity"]["greedy_tokens"] == 64 and report["masks"] == "Masks as trained"
    assert 0 < max(report["parity"][name] for name in ("full_forward", "chunked", "ragged_batch")) <= 1e-4
    assert all(layer["reason"] for layer in report["layers"])
    assert report["dense_bytes"] - report["file_bytes"] == sum(
        layer["dense_bytes"] - layer["bytes"] for layer in report["layers"]
    )
    page = (tiny_artifact / "report.html").read_text()
    assert page.count("data:image/png") == PROJECTIONS + 7, "one for each layer, and one for each place in a block"
    assert "Settings" in page and "float32, exact" in page and "TensorRT" not in page and "full_forward" not in page


def test_packed_weights_are_the_trained_ones_bit_for_bit(tiny_artifact, tiny_model_directory):
    """Active zeros included: the mask that was trained is the mask that is served."""
    model = onnx.load(tiny_artifact / "model.onnx")
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    source = load_source(tiny_model_directory)
    active_zeros = 0
    for layer, trained_mask in source.masks.items():
        packed = {part: tensors[f"{layer}.{part}"] for part in ("values", "mask")}
        weight, mask = LAYOUTS["bitmask"].decode(packed, trained_mask.shape[1])
        assert weight.tobytes() == source.weight(layer).tobytes()
        np.testing.assert_array_equal(mask, trained_mask)
        active_zeros += int((weight[mask] == 0).sum())
    assert active_zeros >= PROJECTIONS


def test_plain_session_with_nothing_registered_equals_torch(tiny_artifact, tiny_model_directory):
    """Stock ONNX Runtime on the bare file, fed with ordinary arrays."""
    session = onnxruntime.InferenceSession(tiny_artifact / "model.onnx", providers=["CPUExecutionProvider"])
    model = load_source(tiny_model_directory).model
    ids = np.arange(2, 22)[None]
    feeds = {
        "input_ids": ids,
        "seqlens_k": np.array([19], np.int32),
        "total_sequence_length": np.array(20, np.int32),
        "logit_rows": np.arange(20),
    }
    feeds |= {
        node.name: np.zeros((1, 2, 128, 16), np.float32)
        for node in session.get_inputs()
        if node.name.startswith("past")
    }
    logits = session.run(["logits"], feeds)[0]
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits[0].numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


VARIANTS = {
    "grouped queries, tied": {},
    "untied": {"tie_word_embeddings": False},
    "one key head": {"num_key_value_heads": 1},
    "all key heads": {"num_key_value_heads": 6},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 32},
    "llama3 rotary": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
}


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=list(VARIANTS))
def test_every_variant_of_the_architecture_passes_the_gate(overrides, tokenizer, tmp_path):
    model = make_llama(len(tokenizer), **overrides)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
            elif "proj" in name:
                parameter.mul_(torch.rand_like(parameter) < 0.2)
        model.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(torch.rand(104, 96) < 0.05)
        model.get_parameter("model.layers.0.self_attn.o_proj.weight").normal_(0, 0.2)
    report = export_model(save_plain(tmp_path / "model", model, tokenizer), tmp_path / "artifact")
    layouts = {layer.name: layer.layout for layer in report.layers}
    assert layouts["model.layers.1.mlp.up_proj"] == "csr"
    assert layouts["model.layers.0.self_attn.o_proj"] == "dense"
    assert layouts["model.layers.0.mlp.up_proj"] == "bitmask"
    assert "No masks came with the model" in report.masks
    runner = open_onnx(tmp_path / "artifact", slots=1)
    prompt = list(range(3, 12))
    expected, _ = torch_greedy(model, prompt, 1)
    assert int(runner.prefill(0, prompt, 0, [len(prompt) - 1])[0].argmax()) == expected[0]


def test_half_precision_weights_are_taken_exactly(tokenizer, tmp_path):
    model = make_llama(len(tokenizer)).to(torch.bfloat16)
    source = load_source(save_plain(tmp_path / "model", model, tokenizer))
    name = "model.layers.0.mlp.up_proj"
    np.testing.assert_array_equal(source.weight(name), model.get_parameter(f"{name}.weight").float().detach().numpy())


def test_a_model_that_amplifies_rounding_is_measured_by_its_own(tokenizer, tmp_path):
    """Logits in the thousands: no float32 computation is within 1e-4 of another one in a different order."""
    model = make_llama(len(tokenizer), tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
    parity = export_model(save_plain(tmp_path / "model", model, tokenizer), tmp_path / "artifact").parity
    assert 1e-4 < parity.full_forward <= parity.logit_tolerance
    assert parity.logit_tolerance == 4 * float32_rounding(model, sequence_of_the_gate(model))


def sequence_of_the_gate(model):
    prompt = verify._prompts(model.config.vocab_size)[0]
    return [*prompt, *torch_greedy(model, prompt, verify.GREEDY_TOKENS)[0]]


def test_one_wrong_weight_fails_the_gate_and_publishes_nothing(tiny_model_directory, tmp_path, monkeypatch):
    weight = SourceModel.weight

    def wrong_weight(self, name):
        values = weight(self, name)
        if name == "model.layers.1.mlp.down_proj":
            values = values.copy()
            values[tuple(np.argwhere(values)[5])] += 0.05
        return values

    monkeypatch.setattr(SourceModel, "weight", wrong_weight)
    with pytest.raises(CheckError, match="parity"):
        export_model(tiny_model_directory, tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", [StockAttention, VarlenAttention])
def test_each_graph_is_gated(tiny_model_directory, tmp_path, monkeypatch, form):
    """The weights are right, and one of the graphs over them is not."""
    build = exporter.build_decoder

    def build_wrong(source, weights, attention, lm_head, progress):
        model = build(source, weights, attention, lm_head, progress)
        if isinstance(attention, form):
            norms = ("SkipSimplifiedLayerNormalization", "ResidualNorm")
            norm = next(node for node in model.graph.node if node.op_type in norms)
            norm.attribute[0].f = 0.1
        return model

    monkeypatch.setattr(exporter, "build_decoder", build_wrong)
    with pytest.raises(CheckError, match="parity"):
        export_model(tiny_model_directory, tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


def test_the_graphs_share_one_file_of_weights(tiny_artifact, tiny_model_directory):
    """Every tensor is in it once, and between tensors there is nothing but the alignment."""
    places = {}
    for file in ("model.onnx", "model.hebbline.onnx"):
        model = onnx.load(tiny_artifact / file, load_external_data=False)
        outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
        assert len(outside) > PROJECTIONS
        for tensor in outside:
            place = {entry.key: entry.value for entry in tensor.external_data}
            assert place.pop("location") == "model.onnx.data"
            assert places.setdefault(tensor.name, place) == place
    size = (tiny_artifact / "model.onnx.data").stat().st_size
    end = 0
    for place in sorted(places.values(), key=lambda place: int(place["offset"])):
        assert 0 <= int(place["offset"]) - end < 4096
        end = int(place["offset"]) + int(place["length"])
    assert end == size


def test_without_the_op_library_the_portable_graph_is_exported(tiny_model_directory, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HEBBLINE_KERNELS", str(tmp_path / "nothing.so"))
    export_model(tiny_model_directory, tmp_path / "artifact")
    assert "will have no model.hebbline.onnx" in caplog.text
    assert "model.hebbline.onnx" not in read_manifest(tmp_path / "artifact").files
    assert isinstance(open_onnx(tmp_path / "artifact", slots=1), PortableRunner)


def replace_weight(directory, name, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors[name])
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def edit_config(directory, **values):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def put_nan(weight):
    weight[0, 0] = float("nan")


def put_off_mask(weight):
    weight[weight == 0] = 1.0


LAYER = "model.layers.1.mlp.gate_proj"

BAD_DIRECTORIES = {
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), InputError, "has no tokenizer.json"),
    "no config": (lambda d: (d / "config.json").unlink(), InputError, "has no config.json"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), InputError, "has no weights"),
    "NaN": (lambda d: replace_weight(d, f"{LAYER}.weight", put_nan), InputError, f"'{LAYER}.weight' has 1 weights"),
    "off mask": (
        lambda d: replace_weight(d, f"{LAYER}.weight", put_off_mask),
        InputError,
        f"'{LAYER}' has .* off its mask",
    ),
    "architecture": (
        lambda d: edit_config(d, architectures=["GPTJForCausalLM"], model_type="gptj"),
        UnsupportedModelError,
        "GPTJForCausalLM is of none of the families.*hebbline pack",
    ),
    "unknown type": (lambda d: edit_config(d, model_type="nonesuch"), UnsupportedModelError, r"config\.json"),
    "activation": (lambda d: edit_config(d, hidden_act="mish"), UnsupportedModelError, "hidden_act 'mish'"),
    "rotary": (
        lambda d: edit_config(d, rope_parameters={"rope_type": "proportional", "rope_theta": 1e4, "factor": 2.0}),
        UnsupportedModelError,
        "rope_type 'proportional'",
    ),
    "masks": (lambda d: (d / "masks.safetensors").write_bytes(b"x"), DamagedArtifactError, "masks.safetensors"),
}


@pytest.mark.parametrize(("damage", "error", "message"), BAD_DIRECTORIES.values(), ids=list(BAD_DIRECTORIES))
def test_unfit_models_are_refused_by_name(tiny_model_directory, tmp_path, damage, error, message):
    directory = copy_unpublished(tiny_model_directory, tmp_path / "model")
    damage(directory)
    with pytest.raises(error, match=message):
        export_model(directory, tmp_path / "artifact")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_missing_weight_is_not_filled_at_random(tiny_model_directory, tmp_path):
    directory = copy_unpublished(tiny_model_directory, tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    del tensors[f"{LAYER}.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="they have no tensor"):
        export_model(directory, tmp_path / "artifact")


def test_a_changed_file_of_a_published_model_is_named(tiny_model_directory, tmp_path):
    shutil.copytree(tiny_model_directory, tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedArtifactError, match=r"model\.safetensors"):
        export_model(tmp_path / "model", tmp_path / "artifact")


def test_a_taken_directory_is_refused_before_any_work(tiny_model_directory, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not published by hebbline"):
        export_model(tiny_model_directory, tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_an_int8_head_is_quick_and_greedy_is_exact(tokenizer, tmp_path, tied):
    model = make_llama(len(tokenizer), tie_word_embeddings=tied)
    source = save_plain(tmp_path / "model", model, tokenizer)
    export_model(source, tmp_path / "artifact", lm_head="int8")
    files = set(read_manifest(tmp_path / "artifact").files)
    assert files == FILES
    prompt = list(range(3, 20))
    expected, _ = torch_greedy(model, prompt, 20)
    with torch.no_grad():
        exact = model(torch.tensor([prompt])).logits[0].numpy()
    for graph, is_int8 in (("portable", False), ("kernels", True)):
        runner = open_onnx(tmp_path / "artifact", slots=1, threads=1, graph=graph)
        logits = runner.prefill(0, prompt, 0, range(len(prompt))).copy()
        difference = np.abs(logits - exact)
        best = difference[np.arange(len(prompt)), exact.argmax(axis=1)]
        assert best.max() < 1e-4
        assert (difference.max() > 1e-3) == is_int8
        assert difference.max() < 0.03 * np.abs(exact).max()
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < 20:
            tokens.append(int(runner.decode(0, tokens[-1:], [len(prompt) + len(tokens) - 1])[0].argmax()))
        assert tokens == expected


def test_the_float32_matrix_of_an_int8_head_is_the_one_embedding(tokenizer, tmp_path):
    source = save_plain(tmp_path / "model", make_llama(len(tokenizer)), tokenizer)
    export_model(source, tmp_path / "exact")
    export_model(source, tmp_path / "int8", lm_head="int8")
    sizes = [(tmp_path / name / "model.onnx.data").stat().st_size for name in ("exact", "int8")]
    vocab_size, hidden = len(tokenizer), 96
    assert 0 <= sizes[1] - sizes[0] - vocab_size * (hidden + 4) < 3 * 4096


def test_an_int8_head_that_misses_the_best_token_is_not_published(tokenizer, tmp_path, monkeypatch):
    source = save_plain(tmp_path / "model", make_llama(len(tokenizer)), tokenizer)
    monkeypatch.setattr(head, "quantise_rows", lambda weight: quantise_rows(-weight))
    with pytest.raises(CheckError, match="lm_head in int8: a best logit is"):
        export_model(source, tmp_path / "artifact", lm_head="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_checks_of_a_large_model_pack_each_weight_once(tiny_model_directory, tmp_path, monkeypatch):
    """That halves their memory; the report says so beside the speed."""
    monkeypatch.setattr(speed, "_MOST_BYTES_OF_ANY_PACKINGS", 0)
    seen = []
    opened = VarlenRunner.__init__

    def noted(self, *arguments, **options):
        seen.append(os.environ.get("HEBBLINE_PACKINGS"))
        opened(self, *arguments, **options)

    monkeypatch.setattr(VarlenRunner, "__init__", noted)
    report = export_model(tiny_model_directory, tmp_path / "artifact")
    assert seen and set(seen) == {"1"} and "HEBBLINE_PACKINGS" not in os.environ
    assert report.speed.packed_once and "each weight packed once" in report.speed.words
