"""Checkpoints that store weights in another form are read as the plain weights that they mean."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import prune
from transformers import AutoModelForCausalLM

from hebbline.artifacts import InputError
from hebbline.artifacts.checkpoints import load_model
from hebbline.cli import main
from hebbline.export.graph import load_source

GATE = "model.layers.1.mlp.gate_proj"
FP8 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, tiny_model_directory):
    """The tiny model without manifest and masks, as another tool would save it."""
    path = tmp_path_factory.mktemp("pruned") / "model"
    shutil.copytree(tiny_model_directory, path)
    for name in ("hebbline.json", "masks.safetensors", "recipe.yaml"):
        (path / name).unlink(missing_ok=True)
    return path


@pytest.fixture
def checkpoint(pruned, tmp_path):
    return shutil.copytree(pruned, tmp_path / "model")


def configure(directory, **fields):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def store(directory, form):
    """Store linear layers in a form (weight [N, K] -> its tensors by part, and what they mean); returns the latter."""
    tensors = load_file(directory / "model.safetensors")
    meant, stored = {}, {}
    for name, weight in tensors.items():
        if not name.endswith("_proj.weight"):
            stored[name] = weight
            continue
        parts, meant[name] = form(weight)
        stored |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in parts.items()}
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    return meant


def bitmask(values, mask):
    return {
        "compressed": values[mask],
        "bitmask": torch.from_numpy(np.packbits(mask.numpy(), axis=1, bitorder="little")),
        "shape": torch.tensor(values.shape),
        "row_offsets": torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(dim=1).cumsum(0)[:-1]]),
    }


def sparse_bitmask(weight, dtype=torch.float32):
    values = weight.to(dtype)
    return bitmask(values, weight != 0), values.float()


def sparse_24_bitmask(weight):
    """Two of four, zeros among them where the weights have fewer."""
    groups = weight.reshape(-1, 4)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, groups.abs().topk(2, dim=1).indices, True)
    mask = mask.reshape(weight.shape)
    parts = {
        "compressed": weight[mask].reshape(len(weight), -1),
        "bitmask": bitmask(weight, mask)["bitmask"],
        "shape": torch.tensor(weight.shape).reshape(-1, 1),
    }
    return parts, torch.where(mask, weight, 0.0)


def quantised(weight, bits, groups, zero=0):
    """Integers [N, K], their scales [N, groups] and what they mean."""
    top = 2 ** (bits - 1) - 1
    blocks = weight.reshape(len(weight), groups, -1)
    scale = blocks.abs().amax(dim=2) / (top - abs(zero)) + 1e-3
    integers = (torch.round(blocks / scale[:, :, None]) + zero).clamp(-top - 1, top).to(torch.int8)
    return integers.reshape(weight.shape), scale, ((integers.float() - zero) * scale[:, :, None]).reshape(weight.shape)


def packed_words(integers, bits):
    """int32 words, lowest bits first, each value raised by half its range; rows filled up with zeros."""
    per_word = 32 // bits
    raised = (integers.numpy().astype(np.int64) + 2 ** (bits - 1)).astype(np.uint64)
    raised = np.pad(raised, ((0, 0), (0, -raised.shape[1] % per_word)))
    shifted = raised.reshape(len(raised), -1, per_word) << (np.arange(per_word, dtype=np.uint64) * bits)
    return torch.from_numpy(shifted.sum(axis=2).astype(np.uint32).view(np.int32))


def int_quantized(weight):
    integers, scale, meant = quantised(weight, 8, 1)
    return {"weight": integers, "weight_scale": scale, "input_scale": torch.ones(1)}, meant


def pack_quantized(weight):
    integers, scale, meant = quantised(weight, 4, 4, zero=2)
    return {
        "weight_packed": packed_words(integers, 4),
        "weight_shape": torch.tensor(weight.shape),
        "weight_scale": scale,
        "weight_zero_point": packed_words(torch.full_like(scale, 2, dtype=torch.int8).T, 4).T.contiguous(),
    }, meant


def pack_quantized_in_order_of_activation(weight):
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0))
    integers, scale, meant = quantised(weight[:, order], 8, 4)
    groups, back = torch.empty_like(order), torch.argsort(order)
    groups[order] = torch.arange(weight.shape[1]) // (weight.shape[1] // 4)
    return {
        "weight_packed": packed_words(integers[:, back], 8),
        "weight_shape": torch.tensor(weight.shape, dtype=torch.int32),
        "weight_scale": scale,
        "weight_g_idx": groups.to(torch.int32),
    }, meant[:, back]


def sparse_integers(weight):
    integers, scale, meant = quantised(weight, 8, 1)
    return bitmask(integers, weight != 0) | {"weight_scale": scale}, meant


def sparse_float8(weight):
    scale = weight.abs().amax() / 400
    values = (weight / scale).to(FP8)
    parts = bitmask(values.view(torch.uint8), weight != 0) | {"weight_scale": scale.reshape(1)}
    parts["compressed"] = parts["compressed"].view(FP8)
    return parts, values.float() * scale


def float8_by_blocks(weight):
    rows, columns = weight.shape
    scale = torch.rand(2, 4, generator=torch.Generator().manual_seed(1)) + 0.5
    spread = scale.repeat_interleave(rows // 2, 0).repeat_interleave(columns // 4, 1)
    values = (weight / spread).to(FP8)
    return {"weight": values, "weight_scale": scale}, values.float() * spread


FORMS = {
    "sparse-bitmask": sparse_bitmask,
    "sparse-bitmask, bfloat16": lambda weight: sparse_bitmask(weight, torch.bfloat16),
    "sparse-24-bitmask": sparse_24_bitmask,
    "int-quantized": int_quantized,
    "pack-quantized": pack_quantized,
    "pack-quantized, groups by activation": pack_quantized_in_order_of_activation,
    "int-quantized and sparse-bitmask": sparse_integers,
    "float-quantized and sparse-bitmask": sparse_float8,
    "float-quantized, by blocks": float8_by_blocks,
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_what_the_parts_mean(checkpoint, form):
    configure(
        checkpoint, quantization_config={"quant_method": "compressed-tensors", "format": form.split(",")[0].split()[0]}
    )
    meant = store(checkpoint, FORMS[form])
    loaded = load_model(AutoModelForCausalLM, checkpoint)
    assert loaded.expanded == len(meant) == 14
    parameters = dict(loaded.model.named_parameters())
    for name, weight in meant.items():
        torch.testing.assert_close(parameters[name].data, weight, rtol=1e-6, atol=0)
    assert not hasattr(loaded.model.config, "quantization_config")


@pytest.mark.parametrize("form", ["sparse-bitmask", "sparse-24-bitmask"])
def test_masks_are_those_of_the_bitmask(checkpoint, form):
    """An active weight that is zero stays a link."""
    meant = store(checkpoint, FORMS[form])
    source = load_source(checkpoint)
    assert source.masks_stored
    links = {name: int(mask.sum()) for name, mask in source.masks.items()}
    for name, weight in meant.items():
        expected = weight.numel() // 2 if form == "sparse-24-bitmask" else int((weight != 0).sum())
        assert links[name.removesuffix(".weight")] == expected


def test_names_and_configuration_of_the_first_version(checkpoint):
    configure(checkpoint, compression_config={"sparsity_config": {"format": "sparse_bitmask"}})
    meant = store(checkpoint, lambda w: ({f"weight.{k}": v for k, v in sparse_bitmask(w)[0].items()}, w))
    model = load_model(AutoModelForCausalLM, checkpoint).model
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in meant.items())


def test_a_dense_format_is_read_as_it_is(checkpoint, pruned):
    configure(checkpoint, quantization_config={"quant_method": "compressed-tensors", "format": "dense"})
    loaded = load_model(AutoModelForCausalLM, checkpoint)
    plain = load_model(AutoModelForCausalLM, pruned).model
    assert loaded.expanded == 0
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), plain.parameters(), strict=True))


def test_a_model_saved_under_torch_pruning_is_exported_with_its_masks(pruned, checkpoint, tmp_path, capsys):
    model = AutoModelForCausalLM.from_pretrained(pruned, dtype=torch.float32)
    layers = [(m, "weight") for n, m in model.named_modules() if n.endswith("_proj")]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.8)
    layers[0][0].weight_orig.data[layers[0][0].weight_mask.bool()] *= 0  # links whose weights are zero
    (checkpoint / "model.safetensors").unlink()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    torch.save(tensors, checkpoint / "pytorch_model.bin")
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    source = load_source(checkpoint)
    for module, mask in ((m, m.weight_mask.bool().numpy()) for m, _ in layers):
        name = next(name for name, other in model.named_modules() if other is module)
        np.testing.assert_array_equal(source.masks[name], mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["one", "shards", "bin", "bin shards"])
def test_every_container_gives_the_same_weights(pruned, checkpoint, dtype, kind):
    model = AutoModelForCausalLM.from_pretrained(pruned, dtype=dtype)
    (checkpoint / "model.safetensors").unlink()
    if kind.startswith("bin"):
        tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
        names = sorted(tensors)
        parts = [names] if kind == "bin" else [names[::2], names[1::2]]
        files = ["pytorch_model.bin"] if kind == "bin" else ["pytorch_model-1.bin", "pytorch_model-2.bin"]
        for file, part in zip(files, parts, strict=True):
            torch.save({name: tensors[name] for name in part}, checkpoint / file)
        if kind == "bin shards":
            weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
            index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
            (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        model.save_pretrained(checkpoint, max_shard_size="100KB" if kind == "shards" else "5GB")
    found = load_source(checkpoint)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(found.parameter(name), parameter.detach().float().numpy())


def test_a_pickle_with_code_is_never_run(checkpoint, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    proof = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (proof.write_text, ("",))

    torch.save({"a": Evil()}, checkpoint / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin holds something else than tensors, such as code"):
        load_model(AutoModelForCausalLM, checkpoint)
    assert not proof.exists()


DAMAGES = {
    "no bits": (lambda p: p.pop("bitmask"), f"no tensor '{GATE}.bitmask'"),
    "no shape": (lambda p: p.pop("shape"), f"no tensor '{GATE}.shape'"),
    "no weights": (lambda p: p.pop("compressed"), f"'{GATE}.bitmask' belongs to a weight of which nothing"),
    "one weight short": (lambda p: p.update(compressed=p["compressed"][1:]), f"'{GATE}.compressed' has"),
    "narrow bits": (
        lambda p: p.update(bitmask=p["bitmask"][:, 1:].contiguous()),
        f"'{GATE}.bitmask' is uint8 [104, 11]",
    ),
    "a size of none": (lambda p: p.update(shape=torch.tensor([0, 96])), f"'{GATE}.shape' is [0, 96]"),
    "huge": (lambda p: p.update(shape=torch.tensor([1 << 40, 96])), f"'{GATE}.bitmask' is uint8"),
    "integers without scales": (
        lambda p: p.update(compressed=p["compressed"].to(torch.int8)),
        f"no '{GATE}.weight_scale'",
    ),
    "groups that do not divide": (
        lambda p: p.update(weight_scale=torch.ones(104, 5)),
        f"'{GATE}.weight_scale' has 5 groups, which do not divide 96 columns",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_parts_that_do_not_fit_are_named_in_one_line(checkpoint, capsys, tmp_path, damage):
    change, said = DAMAGES[damage]
    tensors = load_file(checkpoint / "model.safetensors")
    parts, _ = sparse_bitmask(tensors.pop(f"{GATE}.weight"))
    change(parts)
    tensors |= {f"{GATE}.{part}": tensor for part, tensor in parts.items() if part != "row_offsets"}
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in " ".join(error.split()) and "Traceback" not in error


def test_a_shard_that_is_missing_is_named(checkpoint, pruned, capsys, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(pruned, dtype=torch.float32)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="100KB")
    gone = sorted(checkpoint.glob("model-*.safetensors"))[1]
    gone.unlink()
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 2
    assert f"names {gone.name}, which is not there" in " ".join(capsys.readouterr().err.split())
