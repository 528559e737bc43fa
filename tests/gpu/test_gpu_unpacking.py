"""Packed weights decode bit for bit; 2:4 with its residual is a sum of two weights that share no link."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hebbline.export.layouts.nm24 import fitting_links, is_two_of_four
from hebbline.kernels.gpu.packing import PACKERS, pack_nm24
from hebbline.kernels.gpu.plugins import plugin_tensors
from hebbline.kernels.gpu.unpacking import unpack_words

TYPES = (np.float16, ml_dtypes.bfloat16, np.float32)


def make_layer(rows, columns, density, kind, seed):
    """Ties in magnitude, links that weigh 0 and -0, subnormal values."""
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, columns)) < density
    values = rng.choice(np.array([-2, -1, -0.0, 0.0, 1, 2, 6e-8, 0.333], np.float32), mask.shape)
    return np.where(mask, values, np.float32(0)).astype(kind), mask


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from(list(PACKERS)),
    st.sampled_from(TYPES),
    st.integers(1, 40),
    st.integers(1, 140),
    st.sampled_from([0, 0.05, 0.3, 0.6, 1]),
    st.integers(0, 10**6),
)
def test_every_form_decodes_bit_for_bit(form, kind, rows, columns, density, seed):
    weight, mask = make_layer(rows, columns, density, kind, seed)
    words = plugin_tensors(PACKERS[form](weight, mask))
    decoded = unpack_words(form, rows, columns, words)
    assert decoded.dtype == weight.dtype and decoded.tobytes() == weight.tobytes()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(1, 60), st.sampled_from([0, 0.3, 0.6, 1]), st.integers(0, 10**6))
def test_the_two_parts_of_a_weight_sum_to_it(rows, columns, density, seed):
    """W = W24 + R exactly: each link is in one of the two, W24 is 2:4 and holds all that fits, the largest first."""
    weight, mask = make_layer(rows, columns, density, np.float16, seed)
    packed = pack_nm24(np.where(mask, 1, 0).astype(np.float16), mask)
    empty = {"residual_values": 0, "residual_columns": 0, "residual_offsets": 0}
    without = {name: array * empty.get(name, 1) for name, array in packed.tensors.items()}
    fitting = unpack_words("nm24", rows, columns, plugin_tensors(packed_with(packed, without))) != 0
    assert is_two_of_four(fitting) and fitting.sum() == fitting_links(mask) and not (fitting & ~mask).any()
    assert packed.tensors["residual_values"].size == mask.sum() - fitting.sum()
    whole = pack_nm24(weight, mask)
    parts = []
    for kept in ({"values", "metadata"}, {"residual_values", "residual_columns", "residual_offsets"}):
        tensors = {name: array if name in kept else array * 0 for name, array in whole.tensors.items()}
        if "metadata" not in kept:  # no group has a link
            tensors["metadata"] = np.full_like(whole.tensors["metadata"], 3 | 3 << 4)
        parts.append(unpack_words("nm24", rows, columns, plugin_tensors(packed_with(whole, tensors))))
    first, second = parts
    assert not ((first != 0) & (second != 0)).any() and np.array_equal(first + second, weight)
    for row, column in np.argwhere(second != 0):
        group = slice(column // 4 * 4, column // 4 * 4 + 4)
        assert abs(second[row, column]) <= np.sort(np.abs(first[row, group]))[-2:].min()


def packed_with(packed, tensors):
    return type(packed)(packed.form, packed.out_features, packed.in_features, tensors)


def test_an_unknown_form_is_refused():
    with pytest.raises(KeyError, match="dense"):
        unpack_words("dense", 1, 1, {"values": np.zeros(1, np.float16)})
