"""Checkpoints in a form that is not read end every command in one line that says so."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from hebbline.artifacts import InputError, UnsupportedModelError
from hebbline.artifacts.checkpoints import check_checkpoint, check_weights_fit, load_model
from hebbline.cli import main

GATE = "model.layers.1.mlp.gate_proj"
CONFIGURATIONS = {
    "marlin-24": (
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "marlin-24"}},
        "quantization_config says 'compressed-tensors' (format 'marlin-24')",
    ),
    "a group in 4-bit floats": (
        {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "mixed-precision",
                "config_groups": {"group_0": {"format": "nvfp4-pack-quantized"}},
            }
        },
        "quantization_config says 'compressed-tensors' (format 'mixed-precision', 'nvfp4-pack-quantized')",
    ),
    "older compression_config": (
        {"compression_config": {"format": "marlin_24", "config_groups": {"group_0": {}}}},
        "compression_config says 'compressed-tensors' (format 'marlin_24')",
    ),
    "older sparsity_config": (
        {"sparsity_config": {"format": "sparse_rows", "global_sparsity": 0.5}},
        "sparsity_config says 'compressed-tensors' (format 'sparse_rows')",
    ),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config says 'gptq'"),
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization_config says 'awq'"),
    "bitsandbytes": ({"quantization_config": {"load_in_4bit": True}}, "quantization_config says 'bitsandbytes'"),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config says 'fp8'"),
    "unheard of": ({"quantization_config": {"quant_method": "x" * 200}}, "quantization_config says 'xxx"),
    "no mapping": ({"quantization_config": "4bit"}, "quantization_config says 'an unnamed method'"),
}


TENSORS = {
    "gptq": (lambda w: {"qweight": w.view(np.int32)}, f"'{GATE}.qweight' is of GPTQ or AWQ"),
    "scales": (lambda w: {"weight": w, "weight_scale_inv": w[:, 0]}, f"'{GATE}.weight_scale_inv' is of float8"),
    "4-bit floats": (lambda w: {"weight_global_scale": w[0, :1]}, f"'{GATE}.weight_global_scale' is of 4-bit floats"),
    "bitsandbytes": (lambda w: {"weight": w, "weight.absmax": w[0]}, f"'{GATE}.weight.absmax' is of bitsandbytes"),
}


@pytest.fixture
def plain(tiny_model_directory, tmp_path):
    """A copy of the model without manifest and masks: what other tools write."""
    shutil.copytree(tiny_model_directory, tmp_path / "model")
    for name in ("hebbline.json", "masks.safetensors", "recipe.yaml"):
        (tmp_path / "model" / name).unlink(missing_ok=True)
    return tmp_path / "model"


def configure(directory, **fields):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def replace_gate(directory, tensors_of):
    """Store the gate's weight in another form."""
    tensors = load_file(directory / "model.safetensors")
    tensors |= {f"{GATE}.{part}": tensor for part, tensor in tensors_of(tensors.pop(f"{GATE}.weight")).items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def commands(directory, tmp_path):
    """Every command that takes somebody's model."""
    (tmp_path / "text.txt").write_text("the quick brown fox " * 200)
    recipe = {
        "model": {"pretrained": str(directory)},
        "data": {"source": str(tmp_path / "text.txt"), "sequence_length": 32},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    yield "export", directory, "--out", tmp_path / "artifact"
    yield "inspect", directory
    yield "eval", directory, "--source", tmp_path / "text.txt"
    yield "train", tmp_path / "recipe.yaml", "--out", tmp_path / "trained"


def line_of(capsys, arguments):
    """What a refused command says: one line, exit code 2."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if "hebbline: error: " in line]
    assert len(lines) == 1 and "Traceback" not in lines[0] and len(lines[0]) < 700
    return lines[0]


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_configurations_are_refused(plain, case):
    fields, message = CONFIGURATIONS[case]
    configure(plain, **fields)
    with pytest.raises(UnsupportedModelError) as caught:
        check_checkpoint(plain)
    text = str(caught.value)
    assert message in text and str(plain / "config.json") in text and len(text) < 500
    assert "save_pretrained" in text


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_are_refused_without_a_word_in_the_configuration(plain, case):
    tensors_of, message = TENSORS[case]
    replace_gate(plain, tensors_of)
    with pytest.raises(UnsupportedModelError) as caught:
        check_checkpoint(plain)
    assert message in str(caught.value) and "model.safetensors" in str(caught.value)


@pytest.mark.parametrize("case", ["marlin-24", "gptq"])
def test_every_command_says_so(plain, tmp_path, capsys, case):
    fields, message = CONFIGURATIONS[case]
    configure(plain, **fields)
    for arguments in commands(plain, tmp_path):
        assert message in line_of(capsys, arguments)
    assert not (tmp_path / "artifact").exists() and not (tmp_path / "trained").exists()


def test_plain_weights_under_an_older_dense_configuration_are_read(plain):
    dense = {"format": "dense", "sparsity_structure": "2:4"}
    configure(plain, sparsity_config=dense, compression_config={"sparsity_config": dense}, quantization_config=None)
    check_checkpoint(plain)


def test_plain_weights_that_came_from_a_gguf_file_are_read(plain):
    """transformers expands the file, and `save_pretrained` keeps the word for what is now plain."""
    before = load_model(AutoModelForCausalLM, plain).model.state_dict()
    configure(plain, quantization_config={"quant_method": "gguf", "gguf_file": "model.Q4_1.gguf", "dequantize": False})
    after = load_model(AutoModelForCausalLM, plain).model
    assert getattr(after.config, "quantization_config", None) is None
    assert all(torch.equal(weight, before[name]) for name, weight in after.state_dict().items())


@pytest.mark.parametrize("problem", ["missing", "unexpected"])
def test_weights_that_do_not_fit_are_named_by_every_command(plain, tmp_path, capsys, problem):
    """transformers would fill a missing weight at random, and drop one that it does not know."""
    if problem == "missing":
        replace_gate(plain, lambda weight: {})
    else:
        replace_gate(plain, lambda weight: {"weight": weight, "thought": weight})
    for arguments in commands(plain, tmp_path):
        if arguments[0] != "inspect":  # which reads what hebbline published, and says that this is not
            words = {"missing": f"they have no tensor '{GATE}.", "unexpected": f"tensor '{GATE}.thought' has no place"}
            assert words[problem] in line_of(capsys, arguments)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_unreadable_files_are_named_by_every_command(plain, tmp_path, capsys, damage):
    (plain / damage).write_bytes(b"{")
    for arguments in commands(plain, tmp_path):
        assert damage in line_of(capsys, arguments)


def test_of_many_weights_the_first_is_named():
    check_weights_fit("model", {"missing_keys": [], "unexpected_keys": set()})
    with pytest.raises(InputError, match=r"they have no tensor 'a' \(and so 2 more\)"):
        check_weights_fit("model", {"missing_keys": ["b", "a", "c"], "unexpected_keys": ["z"]})
