"""Exponents in a code: every bit of every value stays, in fewer bytes, and who asks for few bytes gets it."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from layout_models import make_model as make_layer_model
from onnx.reference import ReferenceEvaluator
from pack_models import check_packed, dense, make_model, node, op_types, sparse, value

import hebbline
from hebbline.benchmarks.coded_size import table
from hebbline.cli import main
from hebbline.export.foreign.packed_weight import Target, pack_weight
from hebbline.export.layouts import CODED, LAYOUTS, choose_layout
from hebbline.export.layouts.exponents import FloatBits

coded = pytest.mark.parametrize("layout", CODED.values(), ids=list(CODED))


def any_bits(layout, rows, columns, seed=0):
    """A full matrix of floats of any bits: with exponents of all kinds, of which a code takes some."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 1 << 32, (rows, columns), np.uint32)
    bits[rows // 2 :] = bits[rows // 2 :] & 0x80FFFFFF | 0x3E000000  # of two exponents
    special = [0, 1 << 31, 1, 0x80000001, 0x007FFFFF, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFC00000, 0x7F7FFFFF]
    bits[0, : len(special)] = special
    if layout.values.name == "bfloat16":
        bits &= np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def stored_bits(layout, weight):
    """The bits that stand for a weight without a code: rounding to bfloat16 sets a bit of some NaN."""
    with np.errstate(invalid="ignore"):  # NaN to bfloat16
        return layout.values.encode(weight, None)["values"].astype(np.float32).view(np.uint32)


@coded
def test_every_bit_stays(layout):
    weight = any_bits(layout, 64, 128)
    mask = np.random.default_rng(1).random(weight.shape) < 0.7
    mask[0, :10] = True
    weight = np.where(mask, weight, np.float32(0))
    with np.errstate(invalid="ignore"):
        tensors = layout.encode(weight, mask)
    assert 0 < len(tensors["values"]) < mask.sum()
    decoded, _ = layout.decode(tensors, 128)
    np.testing.assert_array_equal(decoded.view(np.uint32)[mask], stored_bits(layout, weight[mask]))
    assert not decoded.view(np.uint32)[~mask].any()


def test_all_bfloat16_numbers_are_split_and_joined():
    floats = FloatBits(np.dtype(ml_dtypes.bfloat16))
    values = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    joined = floats.join(floats.split(values), floats.exponents(values))
    assert joined.view(np.uint16).tolist() == list(range(1 << 16))


@pytest.mark.parametrize("opset", [13, 24])
@coded
def test_the_body_gives_every_bit(layout, opset):
    weight = any_bits(layout, 24, 40)
    mask = np.random.default_rng(2).random(weight.shape) < 0.8
    mask[0, :10] = True
    weight = np.where(mask, weight, np.float32(0))
    model = make_layer_model(layout, layout.encode(weight, mask), 40, function=False)
    function = pack_weight("", "", layout, weight, mask, Target(opset)).function
    function.output[0] = "weight_NK"
    model.functions.append(function)
    model.opset_import[0].version = opset
    model.graph.output[0].type.tensor_type.ClearField("shape")
    expected = stored_bits(layout, weight)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for run in (session.run, ReferenceEvaluator(model).run):
        (decoded,) = run(None, {"X": np.zeros((1, 1, 40), np.float32)})
        np.testing.assert_array_equal(decoded.view(np.uint32), expected)


@coded
def test_a_code_takes_a_fifth_of_the_bytes(layout):
    """At 30%, of normally distributed weights and of the largest of them; the choice says so, and keeps to it."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((256, 512)).astype(np.float32)
    largest = np.abs(weight) >= np.quantile(np.abs(weight), 0.7)
    least = {"float32": (0.87, 0.84), "bfloat16": (0.76, 0.70)}[layout.values.name]
    for mask, most in zip((rng.random(weight.shape) < 0.3, largest), least, strict=True):
        links, values = int(mask.sum()), layout.values.name
        bitmask = LAYOUTS[layout.name.replace("coded", "bitmask")].packed_bytes(256, 512, links)
        choice = choose_layout(256, 512, links, values=values, objective="size", weight_Z=weight[mask])
        assert choice.layout is layout and choice.packed_bytes < most * bitmask
        assert f"{layout.name} has the fewest bytes (over dense: bitmask" in choice.reason
        packed = layout.encode(np.where(mask, weight, np.float32(0)), mask)
        assert choice.packed_bytes == sum(tensor.nbytes for tensor in packed.values())


@coded
def test_it_is_chosen_where_it_pays_and_is_asked_for(layout):
    weight_Z = np.random.default_rng(4).standard_normal(30_000).astype(np.float32)
    given = {"values": layout.values.name, "weight_Z": weight_Z}
    assert choose_layout(200, 500, 30_000, objective="size", **given).layout is layout
    assert choose_layout(200, 500, 30_000, **given).layout is not layout
    assert choose_layout(200, 500, 30_000, values=layout.values.name, objective="size").layout is not layout
    spread = np.exp2(np.random.default_rng(5).integers(-126, 127, 30_000)).astype(np.float32)
    assert choose_layout(200, 500, 30_000, objective="size", **given | {"weight_Z": spread}).layout is not layout
    few = weight_Z[:500]
    assert choose_layout(200, 500, 500, objective="size", **given | {"weight_Z": few}).layout.name.startswith("csr")


def test_export_takes_it_where_bytes_are_asked_for(tiny_model_directory, tmp_path):
    """The model is held against torch, with the library and without, before it is published."""
    out = tmp_path / "small"
    assert main(["export", str(tiny_model_directory), "--out", str(out), "--objective", "size"]) == 0
    report = json.loads((out / "report.json").read_text())
    layers = [layer for layer in report["layers"] if layer["layout"] != "dense"]
    assert layers and {layer["layout"] for layer in layers} == {"coded"}
    for layer in layers:
        links = layer["links"]
        assert layer["bytes"] < LAYOUTS["bitmask"].packed_bytes(layer["out_features"], layer["in_features"], links)


def test_pack_takes_it_where_bytes_are_asked_for(tmp_path):
    nodes = [node("MatMul", ["X", "A"], ["Y"])]
    model = make_model([*nodes], [value("X", "n", 96)], [value("Y", "n", 64)], {"A": sparse(96, 64, density=0.3)})
    report, packed = check_packed(model, tmp_path, {"X": dense(5, 96)}, objective="size")
    assert op_types(packed) == ["CodedLinear"] and report.layers[0].layout == "coded"


def test_the_documented_sizes_are_those_that_the_command_prints():
    text = (Path(hebbline.__file__).parent / "docs" / "format.md").read_text()
    assert "\n".join(table()) in text
