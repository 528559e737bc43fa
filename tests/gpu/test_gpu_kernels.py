"""Every kernel against float64, in Triton's interpreter: ragged shapes, empty rows, odd sizes, both value types."""

import ml_dtypes
import numpy as np
import pytest
import torch

from hebbline.kernels.gpu.packing import (
    BLOCK_SIZES,
    FORMS,
    PACKERS,
    ROUNDING_PACKERS,
    pack_block,
    pack_csr,
    pack_nm24,
)
from hebbline.kernels.gpu.unpacking import unpack_words

ops = pytest.importorskip("hebbline.kernels.gpu.ops", reason="pip install 'hebbline[gpu-build]'")
launching = pytest.importorskip("hebbline.kernels.gpu.launch")

# The relative error that rounding Y may add. The interpreter cuts bfloat16 off where a GPU rounds to nearest.
VALUE_TYPES = {"float16": (np.float16, 2.0**-11), "bfloat16": (ml_dtypes.bfloat16, 2.0**-7)}
SHAPES = [(1, 1, 1), (1, 41, 300), (2, 33, 127), (9, 17, 257), (33, 5, 13), (40, 35, 130), (133, 3, 70)]


def random_layer(rng, rows, columns, density, kind):
    """A weight with empty first and last rows, an empty column, and links whose weight is 0."""
    mask = rng.random((rows, columns)) < density
    if rows > 2:
        mask[0] = mask[-1] = False
    mask[:, columns // 2] &= columns < 3
    weight = np.where(mask, rng.standard_normal((rows, columns)), 0).astype(kind)
    weight[mask & (rng.random(mask.shape) < 0.05)] = 0
    return weight, mask


def pack(form, weight, mask):
    """The packed weight, and the one that it holds: gap8 rounds."""
    if form in PACKERS:
        return PACKERS[form](weight, mask), weight
    packed = ROUNDING_PACKERS[form](weight, mask)
    return packed, unpack_words(form, *weight.shape, packed.tensors)


def run(x, packed):
    return ops.linear(ops.to_tensor(x), packed, ops.to_torch(packed, "cpu")).float().numpy()


def check(x, weight, packed, rounding):
    """Within the rounding of Y to its type, and float32's of the sum."""
    exact = x.astype(np.float64) @ weight.astype(np.float64).T
    size = np.abs(x.astype(np.float64)) @ np.abs(weight.astype(np.float64)).T
    error = np.abs(run(x, packed) - exact)
    assert (error <= rounding * np.abs(exact) + 1e-6 * size + 1e-7).all(), error.max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("values", list(VALUE_TYPES))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_a_layer_equals_float64(form, values, shape):
    tokens, rows, columns = shape
    kind, rounding = VALUE_TYPES[values]
    rng = np.random.default_rng(tokens + rows)
    weight, mask = random_layer(rng, rows, columns, 0.4, kind)
    packed, weight = pack(form, weight, mask)
    check(rng.standard_normal((tokens, columns)).astype(kind), weight, packed, rounding)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [1, 12])
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_layers_without_links_and_with_all_of_them(form, tokens, density):
    rng = np.random.default_rng(0)
    mask = np.full((19, 70), density > 0)
    weight = np.where(mask, rng.standard_normal(mask.shape), 0).astype(np.float16)
    x = rng.standard_normal((tokens, 70)).astype(np.float16)
    packed, weight = pack(form, weight, mask)
    check(x, weight, packed, VALUE_TYPES["float16"][1])


@pytest.mark.parametrize("form", list(PACKERS))
@pytest.mark.parametrize("tokens", [1, 10])
def test_sums_are_in_float32(form, tokens):
    """In float16, 2048 + 1 is 2048: a sum kept there would stop at its first term."""
    weight = np.ones((3, 300), np.float16)
    weight[:, 0] = 2048
    packed = PACKERS[form](weight, weight != 0)
    np.testing.assert_array_equal(run(np.ones((tokens, 300), np.float16), packed), np.full((tokens, 3), 2348.0))


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("tokens", [1, 5])
def test_every_block_size(size, tokens):
    rng = np.random.default_rng(size)
    weight, mask = random_layer(rng, 100, 150, 0.002, np.float16)
    check(rng.standard_normal((tokens, 150)).astype(np.float16), weight, pack_block(weight, mask, size), 2.0**-11)


@pytest.mark.parametrize("tokens", [1, 10])
def test_columns_beyond_16_bits(tokens):
    rng = np.random.default_rng(0)
    mask = np.zeros((2, 70_001), bool)
    mask[0, [0, 65_535, 65_536, 70_000]] = mask[1, 66_000] = True
    weight = np.where(mask, 2, 0).astype(np.float16)
    packed = pack_csr(weight, mask)
    assert packed.tensors["columns"].dtype == np.int32
    check(rng.standard_normal((tokens, mask.shape[1])).astype(np.float16), weight, packed, 2.0**-11)


def test_a_third_and_fourth_link_of_a_group_go_to_the_residual():
    weight = np.array([[1, -4, 3, 2, 0, 0, 5, 0, 7]], np.float16)
    packed = pack_nm24(weight, weight != 0)
    np.testing.assert_array_equal(packed.tensors["values"], [[-4, 3, 5, 0, 7, 0]])
    np.testing.assert_array_equal(packed.tensors["metadata"], [[(1 + 4 * 2) | (2 + 4 * 2) << 4, 0]])
    np.testing.assert_array_equal(packed.tensors["residual_values"], [1, 2])
    np.testing.assert_array_equal(packed.tensors["residual_columns"], [0, 3])


def test_metadata_is_that_of_the_canonical_layout():
    layout = pytest.importorskip("hebbline.export.layouts.nm24").Nm24Layout()
    rng = np.random.default_rng(3)
    mask = rng.random((20, 38)) < 0.3
    for column in range(2, 38):
        start = column - column % 4
        mask[:, column] &= mask[:, start:column].sum(axis=1) < 2
    weight = np.where(mask, rng.standard_normal(mask.shape), 0).astype(np.float16)
    packed, canonical = pack_nm24(weight, mask), layout.encode(weight.astype(np.float32), mask)
    np.testing.assert_array_equal(packed.tensors["metadata"], canonical["metadata"])
    np.testing.assert_array_equal(packed.tensors["values"].astype(np.float32), canonical["values"])
    assert packed.tensors["residual_values"].size == 0


def test_phases_meet_where_the_plan_says():
    for form, most in launching.DECODE_TOKENS.items():
        few, many = launching.phase_of(form, most), launching.phase_of(form, most + 1)
        assert few.startswith("decode") and many == "prefill" and launching.phase_of(form, 1) == "decode"
    taken = [
        launching.launch_plan("gap", launching.phase_of("gap", tokens)).tokens for tokens in (*range(1, 10), 33, 999)
    ]
    assert taken == [1, 2, 4, 4, 8, 8, 8, 8, 32, 128, 128]


@pytest.mark.parametrize("form", FORMS)
def test_the_torch_operator_is_sound_and_takes_leading_dimensions(form):
    rng = np.random.default_rng(1)
    weight, mask = random_layer(rng, 20, 40, 0.3, np.float16)
    packed, _ = pack(form, weight, mask)
    tensors = ops.to_torch(packed, "cpu")
    x = torch.randn(2, 3, 40).half()
    operator = getattr(torch.ops.hebbline, f"{form}_linear")
    y = operator(x, *tensors, 20)
    assert y.shape == (2, 3, 20)
    torch.testing.assert_close(y.reshape(6, 20), operator(x.reshape(6, 40), *tensors, 20))
    arguments = (x, *tensors, 20)
    torch.library.opcheck(operator.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_what_does_not_fit_is_refused():
    weight, mask = np.ones((4, 8), np.float16), np.ones((4, 8), bool)
    with pytest.raises(ValueError, match="1 weights off the mask"):
        PACKERS["csr"](weight, np.arange(32).reshape(4, 8) != 5)
    with pytest.raises(ValueError, match="values are float64, not float16, bfloat16, float32"):
        PACKERS["bitmask"](weight.astype(np.float64), mask)
    single = PACKERS["bitmask"](weight.astype(np.float32), mask)
    with pytest.raises(ValueError, match=r"x is torch\.float32 .*both float16 or bfloat16"):
        ops.linear(torch.ones(1, 8), single, ops.to_torch(single, "cpu"))
    with pytest.raises(ValueError, match="block size 24 is none of 16, 32, 64"):
        pack_block(weight, mask, 24)
    rounded = ROUNDING_PACKERS["gap8"](weight, mask)
    with pytest.raises(ValueError, match=r"gap8_linear: x is torch\.float32 and the weight torch\.int8"):
        ops.linear(torch.ones(1, 8), rounded, ops.to_torch(rounded, "cpu"))
    packed = PACKERS["csr"](weight, mask)
    with pytest.raises(ValueError, match=r"x is torch\.bfloat16 and the weight torch\.float16"):
        ops.linear(torch.ones(1, 8, dtype=torch.bfloat16), packed, ops.to_torch(packed, "cpu"))
