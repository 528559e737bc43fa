import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_models import checked_model, rounded
from onnx.reference import ReferenceEvaluator
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from hebbline.export.layouts import NM24_LAYOUTS
from hebbline.export.layouts.bitmask import BitmaskLayout
from hebbline.export.layouts.cutlass24 import Cutlass24, compress, decompress

layouts = pytest.mark.parametrize("layout", NM24_LAYOUTS.values(), ids=list(NM24_LAYOUTS))
STEPS = {"float32": 0, "bfloat16": 2**-8, "int8": 0.5 / 127, "int4": 0.5 / 7}
"""Largest error of a weight, relative to the largest weight of its row."""
HARDWARE = {
    "float16": (np.float16, torch.float16),
    "bfloat16": (ml_dtypes.bfloat16, torch.bfloat16),
    "int8": (np.int8, torch.int8),
}
hardware = pytest.mark.parametrize(("type_", "torch_type"), HARDWARE.values(), ids=list(HARDWARE))


def make_mask(rows, columns, density, seed=0):
    """2:4, with groups of no, one and two links, an empty row, and a short last group where columns do not divide."""
    rng = np.random.default_rng(seed)
    groups = -(-columns // 4)
    rank = rng.random((rows, groups, 4)).argsort(axis=2)
    mask = (rank < 2) & (rng.random(rank.shape) < density)
    mask[rows // 2] &= rows <= 2
    return mask.reshape(rows, -1)[:, :columns]


def make_layer(rows, columns, density, seed=0):
    """A weight with an active zero and an active minus zero."""
    mask = make_mask(rows, columns, density, seed)
    weight = np.where(mask, np.random.default_rng(seed).standard_normal(mask.shape), 0).astype(np.float32)
    for place, value in zip(np.argwhere(mask)[:2], (0.0, -0.0), strict=False):
        weight[tuple(place)] = value
    return weight, mask


def same_bits(first, second):
    return first.shape == second.shape and first.tobytes() == second.tobytes()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 24), st.integers(1, 40), st.sampled_from([0, 0.3, 0.8, 1]), st.integers(0, 10**6))
def test_decoding_gives_back_weight_and_mask(rows, columns, density, seed):
    weight, mask = make_layer(rows, columns, density, seed)
    for layout in NM24_LAYOUTS.values():
        tensors = layout.encode(weight, mask)
        decoded_weight, decoded_mask = layout.decode(tensors, columns)
        assert same_bits(decoded_mask, mask) and tuple(tensors) == layout.tensor_names
        if layout.values.name == "float32":
            assert same_bits(decoded_weight, weight)
        largest = np.abs(weight).max(axis=1, keepdims=True)
        assert (np.abs(decoded_weight - weight) <= largest * STEPS[layout.values.name] * 1.0001).all()


def test_tensors_are_as_documented():
    weight = np.array([[0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 9, 0]], np.float32)
    tensors = NM24_LAYOUTS["nm24"].encode(weight, weight != 0)
    assert tensors["values"].tolist() == [[5, 7, 0, 0, 9, 0]]
    # Places (1, 3); none: (3, 0); one: (2, 2).
    assert tensors["metadata"].tolist() == [[(1 + 4 * 3) + 16 * 3, 2 + 4 * 2]]


@layouts
@pytest.mark.parametrize("shape", [(16, 64), (7, 30), (3, 260)])
def test_bytes_are_predicted(layout, shape):
    weight, mask = make_layer(*shape, 0.8)
    weight[mask & (weight == 0)] = 1  # the number of 4-bit groups follows from the weights that are not zero
    assert sum(t.nbytes for t in layout.encode(weight, mask).values()) == layout.packed_bytes(*shape, int(mask.sum()))


@layouts
def test_what_does_not_fit_is_refused_by_place(layout):
    weight, mask = make_layer(9, 20, 0.5)
    mask[6, 8:11] = True
    with pytest.raises(ValueError, match=r"1 groups of 4 .* row 6 from column 8"):
        layout.encode(weight, mask)


@layouts
def test_weights_off_the_mask_are_not_dropped(layout):
    weight, mask = make_layer(9, 20, 0.5)
    weight[~mask] = 1e-30
    with pytest.raises(ValueError, match="off the mask"):
        layout.encode(weight, mask)


def damaged(tensors, **changes):
    for name, change in changes.items():
        copy = tensors[name].copy()
        yield tensors | {name: change(copy)}


def put(place, value):
    def change(array):
        array[place] = value
        return array

    return change


@layouts
def test_damaged_tensors_are_refused(layout):
    weight = np.array([[1, 0, 2, 0, 0, 3, 0, 0, 0, 4]], np.float32)  # two links, one, and a short group
    tensors = layout.encode(weight, weight != 0)
    layout.decode(tensors, 10)
    changes = [
        {"values": lambda v: v[:, :-1]},
        {"metadata": lambda m: m[:, :-1]},
        {"metadata": put((0, 0), 2 | 0 << 2)},  # places fall
        {"metadata": put((0, 1), 1 | 3 << 2)},  # a link in column 11 of 10
        {"metadata": put((0, 1), 3 | 3 << 2)},
        {"metadata": put((0, 1), 1 | 1 << 2 | 1 << 4)},  # the unused half
        {"values": put((0, -1), layout.values.per_element == 1 or 0x14)},  # a slot without a link
    ]
    if layout.values.scaled:
        changes.append({"scales": lambda s: s[:0]})
    for change in changes:
        for broken in damaged(tensors, **change):
            with pytest.raises(ValueError):
                layout.decode(broken, 10)


@layouts
@pytest.mark.parametrize("shape", [(1, 1), (24, 33), (33, 7), (8, 200)])
@pytest.mark.parametrize(("density", "with_bias"), [(0, True), (0.6, False), (1, True)])
def test_function_runs_anywhere_and_equals_float64(layout, shape, density, with_bias):
    weight, mask = make_layer(*shape, density)
    rng = np.random.default_rng(1)
    bias = rng.standard_normal(shape[0]).astype(np.float32) if with_bias else None
    tensors = layout.encode(weight, mask)
    model = checked_model(layout, tensors, shape[1], bias)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    decoded = layout.decode(tensors, shape[1])[0].astype(np.float64)
    x = rng.standard_normal((2, 3, shape[1])).astype(np.float32)
    expected = rounded(x, layout.values.name) @ decoded.T + (0 if bias is None else bias)
    for run in (session.run, ReferenceEvaluator(model).run):
        (y,) = run(None, {"X": x})
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_function_decodes_bit_for_bit():
    """Times the unit matrix, and with infinite and not a number beside zeros."""
    weight, mask = make_layer(12, 21, 0.8)
    weight[tuple(np.argwhere(mask)[5])] = np.inf
    layout = NM24_LAYOUTS["nm24"]
    model = checked_model(layout, layout.encode(weight, mask), 21, None)
    graph = model.functions[0]
    del graph.output[:]
    graph.output.append("weight_NK")
    (decoded,) = ReferenceEvaluator(model).run(None, {"X": np.zeros((1, 1, 21), np.float32)})
    assert same_bits(decoded[:, :21], weight) and not decoded[:, 21:].any()  # rows are padded, and X with them


@layouts
def test_onnx_runtime_folds_the_decoding_at_load(layout, tmp_path):
    weight, mask = make_layer(24, 32, 0.6)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    model = checked_model(layout, layout.encode(weight, mask), 32, None)
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    left = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert left & {"Gemm", "MatMul"}
    assert not left & {"BitwiseAnd", "BitShift", "Equal", "Mod", "Tile", layout.op_type}


def make_hardware_weight(shape, type_, seed):
    rng = np.random.default_rng(seed)
    whole = rng.integers(1, 100, shape) * rng.choice([-1, 1], shape)
    return np.where(make_mask(*shape, 0.8, seed), whole, 0).astype(type_)


def as_torch(array, torch_type):
    return torch.from_numpy(array.astype(np.float32)).to(torch_type)


@hardware
@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 4), columns=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_hardware_form_is_bit_for_bit_that_of_torch(type_, torch_type, rows, columns, seed):
    weight = make_hardware_weight((32 * rows, 64 * columns), type_, seed)
    packed = compress(weight)
    values, metadata = sparse_semi_structured_from_dense_cutlass(as_torch(weight, torch_type))
    assert torch.equal(as_torch(packed.values, torch_type), values)
    assert packed.metadata.dtype == metadata.numpy().dtype and np.array_equal(packed.metadata, metadata.numpy())
    assert same_bits(decompress(packed), weight)
    unpacked = sparse_semi_structured_to_dense_cutlass(values, torch.from_numpy(packed.metadata))
    assert torch.equal(unpacked, as_torch(weight, torch_type))


@hardware
def test_hardware_form_refuses_what_torch_drops(type_, torch_type):
    weight = make_hardware_weight((32, 64), type_, 0)
    weight[3, 4:7] = 1
    values, metadata = sparse_semi_structured_from_dense_cutlass(as_torch(weight, torch_type))
    assert not torch.equal(sparse_semi_structured_to_dense_cutlass(values, metadata), as_torch(weight, torch_type))
    with pytest.raises(ValueError, match="row 3 from column 4"):
        compress(weight)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.zeros((32, 64), np.float32), "float32, not float16"),
        (np.zeros((16, 64), np.float16), "multiple of 32, columns of 32"),
        (np.zeros((32, 48), np.float16), "columns of 32"),
        (np.zeros((16, 96), np.int8), "multiple of 16, columns of 64"),
        (np.zeros((0, 64), np.int8), "rows must be"),
    ],
)
def test_hardware_form_refuses_other_types_and_shapes(weight, message):
    with pytest.raises(ValueError, match=message):
        compress(weight)


def test_damaged_hardware_form_is_refused():
    packed = compress(make_hardware_weight((32, 64), np.float16, 0))
    with pytest.raises(ValueError, match="metadata"):
        decompress(Cutlass24(packed.values, packed.metadata[:, :1]))
    with pytest.raises(ValueError, match="ascend"):
        decompress(Cutlass24(packed.values, np.zeros_like(packed.metadata)))


@layouts
@pytest.mark.parametrize("shape", [(16, 64), (7, 30), (40, 300)])
@pytest.mark.parametrize("density", [0.0, 0.2, 0.6, 1.0])
def test_a_bitmask_of_the_same_values_is_never_larger(layout, shape, density):
    """Why an ONNX export never chooses 2:4, not even without a residual."""
    mask = make_mask(*shape, density)
    links, bitmask = int(mask.sum()), BitmaskLayout(layout.values)
    assert bitmask.packed_bytes(*shape, links) <= layout.packed_bytes(*shape, links)
