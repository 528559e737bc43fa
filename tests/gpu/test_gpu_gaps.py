"""Gap-coded rows: the layout bit by bit, and the kernels where steps are long, rows ragged and tokens few."""

import ml_dtypes
import numpy as np
import pytest

from hebbline.kernels.gpu.packing import gap_padding, pack_gap, pack_gap8
from hebbline.kernels.gpu.unpacking import unpack_words

ops = pytest.importorskip("hebbline.kernels.gpu.ops", reason="pip install 'hebbline[gpu-build]'")


def row_of(columns, width):
    weight = np.zeros((1, width), np.float16)
    weight[0, columns] = np.arange(1, len(columns) + 1)
    return weight, weight != 0


def test_the_layout_is_the_documented_one():
    """Links at 2, 3 and 40: steps of 3, 1, and 37 = 16 + 16 + 5, so two padding slots; three slots fill the word."""
    packed = pack_gap(*row_of([2, 3, 40], 41))
    np.testing.assert_array_equal(packed.tensors["values"], [1, 2, 0, 0, 3, 0, 0, 0])
    assert packed.tensors["gaps"].tolist() == [2 | 0 << 4 | 15 << 8 | 15 << 12 | 4 << 16]
    assert packed.tensors["gaps"].dtype == np.uint32 and packed.tensors["row_offsets"].tolist() == [0, 1]
    slots = np.unpackbits(packed.tensors["mask"], axis=1, bitorder="little", count=41)
    assert np.flatnonzero(slots).tolist() == [2, 3, 19, 35, 40] and packed.tensors["tile_offsets"].tolist() == [[0]]


def test_rows_begin_on_words_and_tiles_where_their_first_slot_lies():
    weight = np.zeros((4, 300), np.float16)
    weight[0, ::16], weight[2, [0, 299]], weight[3] = 1, 2, 3
    packed = pack_gap(weight, weight != 0)
    # 19 slots of 16 columns; none; one link, 18 padding slots and one link; 300 links.
    assert packed.tensors["row_offsets"].tolist() == [0, 3, 3, 6, 44]
    assert packed.tensors["tile_offsets"].tolist() == [
        [0, 4, 8, 12, 16],
        [24, 24, 24, 24, 24],
        [24, 28, 32, 36, 40],
        [48, 112, 176, 240, 304],
    ]
    assert unpack_words("gap", 4, 300, packed.tensors).tobytes() == weight.tobytes()


def test_padding_is_what_the_tensors_hold():
    mask = np.random.default_rng(0).random((64, 2048)) < 0.05
    packed = pack_gap(mask.astype(np.float16), mask)
    assert gap_padding(mask) == packed.tensors["values"].size / mask.sum() - 1
    assert gap_padding(np.zeros((2, 3), bool)) == 0.0 and gap_padding(np.ones((2, 8), bool)) == 0.0


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.int8], ids=["float16", "bfloat16", "int8"])
def test_long_steps_and_ragged_rows_equal_float64(tokens, kind):
    """A row over several passes of a warp, runs of padding, a full row, empty rows, links in the last column only."""
    rng = np.random.default_rng(tokens)
    mask = rng.random((7, 1501)) < np.array([0.3, 0.001, 0, 1, 0.05, 0, 0])[:, None]
    mask[5, -1] = True
    x_type = np.float16 if kind == np.int8 else kind
    weight = np.where(mask, rng.standard_normal(mask.shape), 0).astype(x_type)
    packed = pack_gap8(weight, mask) if kind == np.int8 else pack_gap(weight, mask)
    held = unpack_words(packed.form, *mask.shape, packed.tensors).astype(np.float64)
    x = rng.standard_normal((tokens, mask.shape[1])).astype(x_type)
    found = ops.linear(ops.to_tensor(x), packed, ops.to_torch(packed, "cpu")).double().numpy()
    exact = x.astype(np.float64) @ held.T
    size = np.abs(x.astype(np.float64)) @ np.abs(held).T
    rounding = 2.0**-7 if kind == ml_dtypes.bfloat16 else 2.0**-11
    assert (np.abs(found - exact) <= rounding * np.abs(exact) + 1e-6 * size + 1e-7).all()


def test_absent_links_are_not_read_beyond_x():
    """Slots that fill a row's last word lie beyond the last column: what is there must not count."""
    weight, mask = row_of([15], 16)
    packed = pack_gap(weight, mask)
    wide = np.full((2, 16), np.inf, np.float16)
    wide[0] = np.arange(16)
    found = ops.linear(ops.to_tensor(wide[:1]), packed, ops.to_torch(packed, "cpu"))
    assert found.tolist() == [[15.0]]
    # The next token's infinities begin where the first one ends.
    assert ops.linear(ops.to_tensor(wide), packed, ops.to_torch(packed, "cpu"))[0].tolist() == [15.0]


def test_int8_is_within_half_a_step_of_each_row():
    rng = np.random.default_rng(0)
    mask = rng.random((20, 90)) < 0.3
    mask[3] = False
    weight = np.where(mask, rng.standard_normal(mask.shape) * np.logspace(-3, 3, 20)[:, None], 0).astype(np.float32)
    packed = pack_gap8(weight, mask)
    assert packed.tensors["values"].dtype == np.int8 and packed.tensors["row_scales"].dtype == np.float32
    steps = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert (np.abs(unpack_words("gap8", 20, 90, packed.tensors) - weight) <= steps * 0.5001).all()
