import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_models import checked_model, rounded
from onnx.reference import ReferenceEvaluator

from hebbline.artifacts.scales import group_count, group_width
from hebbline.export.foreign.choosing import candidates
from hebbline.export.layouts import (
    CODED,
    LAYOUTS,
    VALUE_TYPES,
    CsrLayout,
    choose_layout,
    whole_blocks,
)
from hebbline.export.layouts.layout import check_countable
from hebbline.export.layouts.values import pack_nibbles, unpack_nibbles

EXACT = [layout for layout in LAYOUTS.values() if layout.values.name == "float32"]
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
STEPS = {"float32": 0, "bfloat16": 2**-8, "int8": 0.5 / 127, "int4": 0.5 / 7}
"""Largest error of a weight, relative to the largest weight of its row."""


def make_layer(layout, out_features, in_features, density, seed=0):
    """A masked weight: whole blocks, or links with an active zero, an active minus zero, and an empty row."""
    rng = np.random.default_rng(seed)
    if size := layout.needs_blocks:
        coarse = rng.random((-(-out_features // size), -(-in_features // size))) < density
        mask = np.kron(coarse, np.ones((size, size), bool))[:out_features, :in_features].astype(bool)
    else:
        mask = rng.random((out_features, in_features)) < density
        if out_features > 2:
            mask[out_features // 2] = False
    weight = np.where(mask, rng.standard_normal(mask.shape), 0).astype(np.float32)
    for place, value in zip(np.argwhere(mask)[:2], (0.0, -0.0), strict=False):
        weight[tuple(place)] = value
    return weight, mask


def same_bits(first, second):
    return first.shape == second.shape and first.tobytes() == second.tobytes()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, 0.05, 0.3, 1]), st.integers(0, 10**6))
def test_decoding_gives_back_weight_and_mask(out_features, in_features, density, seed):
    for layout in LAYOUTS.values():
        weight, mask = make_layer(layout, out_features, in_features, density, seed)
        tensors = layout.encode(weight, mask)
        decoded_weight, decoded_mask = layout.decode(tensors, in_features)
        assert same_bits(decoded_mask, mask)
        assert tuple(tensors) == layout.tensor_names
        if layout in EXACT:
            assert same_bits(decoded_weight, weight)
        largest = np.abs(weight).max(axis=1, keepdims=True)
        assert (np.abs(decoded_weight - weight) <= largest * STEPS[layout.values.name] * 1.0001).all()


@pytest.mark.parametrize("density", [0, 0.02, 0.3, 1])
@layouts
def test_bytes_are_predicted(layout, density):
    weight, mask = make_layer(layout, 64, 160, density)
    weight[mask & (weight == 0)] = 1  # the number of 4-bit groups follows from the weights that are not zero
    links = int(mask.sum())
    actual = sum(tensor.nbytes for tensor in layout.encode(weight, mask).values())
    if layout.name in CODED:
        assert actual == layout.packed_bytes(64, 160, links, weight[mask]) <= layout.packed_bytes(64, 160, links)
    else:
        assert actual == layout.packed_bytes(64, 160, links)


@pytest.mark.parametrize("layout", EXACT, ids=lambda layout: layout.name)
def test_wide_layers_round_trip(layout):
    weight, mask = make_layer(layout, 2, 70_000, 0.01)
    decoded_weight, decoded_mask = layout.decode(layout.encode(weight, mask), 70_000)
    assert same_bits(decoded_weight, weight) and same_bits(decoded_mask, mask)


@layouts
def test_weights_off_the_mask_are_not_dropped_silently(layout):
    weight, mask = make_layer(layout, 33, 40, 0.5)
    weight[~mask] = 1e-30
    with pytest.raises(ValueError, match="off the mask"):
        layout.encode(weight, mask)


def test_more_links_than_int32_counts_are_refused():
    check_countable(2**31 - 1)
    with pytest.raises(ValueError, match="2147483648 links are more than int32"):
        check_countable(2**31)


def test_blocks_linked_in_part_are_refused():
    mask = np.ones((32, 32), bool)
    mask[3, 20] = False
    with pytest.raises(ValueError, match="whole blocks of 16"):
        LAYOUTS["block"].encode(mask.astype(np.float32), mask)


def test_values_are_rounded_as_documented():
    weight = np.array([[1.00390625, -2.0, 0, 0.5]], np.float32)  # the first lies between two bfloat16, even below
    mask = weight != 0
    assert LAYOUTS["bitmask-bfloat16"].encode(weight, mask)["values"].astype(np.float32).tolist() == [1.0, -2.0, 0.5]
    int8 = LAYOUTS["csr-int8"].encode(weight, mask)
    assert int8["values"].tolist() == [64, -127, 32] and int8["scales"].tolist() == [np.float32(2) / np.float32(127)]
    int4 = LAYOUTS["bitmask-int4"].encode(weight, mask)
    assert int4["values"].tolist() == [0x4 | 0x9 << 4, 0x2] and int4["scales"].shape == (1, 1)
    assert int8["activation_scale"].tolist() == [0]


@given(st.lists(st.integers(-8, 7), max_size=40))
def test_nibbles_round_trip(quants):
    quants = np.array(quants, np.int8)
    assert unpack_nibbles(pack_nibbles(quants), len(quants)).tolist() == quants.tolist()


@given(st.integers(1, 5000), st.integers(1, 5000), st.floats(0, 1))
def test_groups_of_scales_divide_the_columns(rows, columns, density):
    groups = group_count((rows, columns), int(rows * columns * density))
    width = group_width(columns, groups)
    assert width % 64 == 0 and groups == -(-columns // width)


def damage_bitmask(tensors):
    yield tensors | {"values": tensors["values"][:-1]}
    yield tensors | {"mask": tensors["mask"][:, :-1]}
    yield tensors | {"mask": np.full_like(tensors["mask"], 255)}


def damage_offsets(tensors):
    offsets, columns = tensors["row_offsets"], tensors["columns"]
    yield tensors | {"values": tensors["values"][:-1]}
    yield tensors | {"row_offsets": offsets + 1}
    yield tensors | {"row_offsets": np.concatenate([offsets[:1], offsets[:0:-1]])}
    yield tensors | {"columns": columns + 40}
    yield tensors | {"columns": columns[::-1].copy()}


def damage_block(tensors):
    yield from damage_offsets(tensors)
    yield tensors | {"out_features": np.array([100])}
    yield tensors | {"out_features": np.array([33, 33])}
    yield tensors | {"values": np.ones_like(tensors["values"])}
    yield tensors | {"values": tensors["values"][:, :, :-1]}


def damage_coded(tensors):
    codes, powers, fractions = tensors["codes"], tensors["powers"], tensors["fractions"]
    yield from damage_bitmask(tensors)
    yield tensors | {"values": tensors["values"].astype(np.float64)}
    yield tensors | {"codes": codes[:, :-1]}
    yield tensors | {"codes": codes[:-1]}
    yield tensors | {"codes": codes[:0]}
    yield tensors | {"codes": np.repeat(codes, 5, axis=0)}
    yield tensors | {"codes": np.zeros_like(codes)}
    yield tensors | {"codes": np.full_like(codes, 255)}  # padding bits; and more codes than powers
    yield tensors | {"powers": powers[:-1]}
    yield tensors | {"powers": powers[::-1].copy()}
    yield tensors | {"powers": np.repeat(powers, 5)}
    yield tensors | {"powers": powers.astype(np.float64)}
    yield tensors | {"powers": powers * powers.dtype.type(1.5)}
    yield tensors | {"powers": -powers}
    yield tensors | {"powers": powers * powers.dtype.type(0)}
    yield tensors | {"powers": powers * powers.dtype.type(np.inf)}
    yield tensors | {"fractions": fractions[:-1]}
    yield tensors | {"fractions": np.repeat(fractions, 2, axis=1)}
    yield tensors | {"fractions": fractions.astype(np.int8)}


def damage_scales(tensors):
    yield tensors | {"scales": tensors["scales"][:-1]}


DAMAGE = {"bitmask": damage_bitmask, "coded": damage_coded, "csr": damage_offsets, "block": damage_block}


@layouts
def test_damaged_tensors_are_refused(layout):
    weight, mask = make_layer(layout, 33, 39, 0.6)
    tensors = layout.encode(weight, mask)
    damages = [*DAMAGE[layout.name.split("-")[0]](tensors), *(damage_scales(tensors) if layout.values.scaled else [])]
    for damaged in damages:
        with pytest.raises(ValueError):
            layout.decode(damaged, 39)


def test_an_unused_half_byte_must_be_zero():
    layout = LAYOUTS["bitmask-int4"]
    weight = np.array([[1.0, 2.0, 3.0]], np.float32)
    tensors = layout.encode(weight, weight != 0)
    tensors["values"][-1] |= 0x10
    with pytest.raises(ValueError, match="unused half"):
        layout.decode(tensors, 3)


@layouts
@pytest.mark.parametrize("shape", [(1, 1), (24, 33), (33, 7), (8, 200)])
@pytest.mark.parametrize("density", [0, 0.3, 1])
@pytest.mark.parametrize("with_bias", [False, True])
def test_function_runs_anywhere_and_equals_float64(layout, shape, density, with_bias):
    weight, mask = make_layer(layout, *shape, density)
    rng = np.random.default_rng(1)
    bias = rng.standard_normal(shape[0]).astype(np.float32) if with_bias else None
    tensors = layout.encode(weight, mask)
    model = checked_model(layout, tensors, shape[1], bias)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    decoded = layout.decode(tensors, shape[1])[0].astype(np.float64)
    for x_shape in ((1, 1), (2, 3)):
        x = rng.standard_normal((*x_shape, shape[1])).astype(np.float32)
        expected = rounded(x, layout.values.name) @ decoded.T + (0 if bias is None else bias)
        for run in (session.run, ReferenceEvaluator(model).run):
            (y,) = run(None, {"X": x})
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@layouts
@pytest.mark.parametrize("filled", [slice(16, 32), slice(0, 16), slice(32, 48), slice(0, 0)])
def test_function_has_rows_without_links_and_x_without_tokens(layout, filled):
    """Empty rows before, behind and around the others, and no link at all; 40 columns are two and a half blocks."""
    weight, mask = make_layer(layout, 48, 40, 1)
    empty = np.ones(48, bool)
    empty[filled] = False
    weight[empty], mask[empty] = 0, False
    tensors = layout.encode(weight, mask)
    model = checked_model(layout, tensors, 40, None)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    decoded = layout.decode(tensors, 40)[0].astype(np.float64)
    for tokens in (0, 2):
        x = np.random.default_rng(1).standard_normal((tokens, 3, 40)).astype(np.float32)
        expected = rounded(x, layout.values.name) @ decoded.T
        for run in (session.run, ReferenceEvaluator(model).run):
            (y,) = run(None, {"X": x})
            assert y.shape == expected.shape
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@layouts
def test_onnx_runtime_folds_the_decoding_at_load(layout, tmp_path):
    """Elsewhere than under the op library the price of the packed form is paid once; what is left rounds X."""
    weight, mask = make_layer(layout, 24, 32, 0.3)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    model = checked_model(layout, layout.encode(weight, mask), 32, None)
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    left = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    rounding = {"Cast"} if layout.values.name == "bfloat16" else set()
    if layout.values.scaled:
        rounding = {"Abs", "ReduceMax", "Max", "Div", "Mul", "Round", "Clip", "Where"}
    assert left & {"Gemm", "MatMul"}
    padding = {"Pad"} if layout.needs_blocks else set()  # of X, to whole blocks
    assert left <= {"Gemm", "MatMul", "Reshape", "Shape", "Slice", "Concat"} | rounding | padding
    assert onnx.load(tmp_path / "optimized.onnx").graph.initializer  # the dense weight


def test_whole_blocks_are_found():
    mask = np.kron(np.eye(2, dtype=bool), np.ones((16, 16), bool))[:30, :25]
    assert whole_blocks(mask, 16).tolist() == [[True, False], [False, True]]
    mask[0, 0] = False
    assert whole_blocks(mask, 16) is None


class InventedLayout(CsrLayout):
    """A layout of a name of its own, that takes next to nothing."""

    def __init__(self, values=VALUE_TYPES["float32"]):
        super().__init__(values)
        self.name, self.op_type = "invented", "InventedLinear"

    def packed_bytes(self, out_features, in_features, links):
        return links


def test_a_layout_that_is_listed_is_chosen(monkeypatch):
    invented = InventedLayout()
    monkeypatch.setitem(LAYOUTS, invented.name, invented)
    choice = choose_layout(64, 64, 1000)
    assert choice.layout is invented and "invented has the fewest bytes" in choice.reason
    assert invented in candidates(make_layer(invented, 64, 64, 0.2)[1], "float32")
