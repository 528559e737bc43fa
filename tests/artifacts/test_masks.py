import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hebbline.artifacts import DamagedArtifactError, load_masks, pack_mask, save_masks, unpack_mask

masks = st.tuples(st.integers(1, 20), st.integers(1, 40)).flatmap(lambda shape: arrays(bool, shape))


@given(masks)
def test_packing_round_trips_any_mask(mask):
    packed = pack_mask(mask)
    assert packed.shape == (mask.shape[0], -(-mask.shape[1] // 8))
    np.testing.assert_array_equal(unpack_mask(packed, mask.shape[1]), mask)


def test_bit_order_is_little():
    mask = np.zeros((1, 10), bool)
    mask[0, [0, 3, 9]] = True
    assert pack_mask(mask).tolist() == [[0b00001001, 0b00000010]]


def test_set_padding_bits_are_refused():
    with pytest.raises(ValueError, match="padding"):
        unpack_mask(np.array([[0b1000_0000]], np.uint8), 7)


def test_file_round_trips_empty_rows_and_full_layers(tmp_path):
    written = {"a.b": np.zeros((3, 9), bool), "c": np.ones((2, 16), bool)}
    save_masks(tmp_path / "masks.safetensors", written)
    read = load_masks(tmp_path / "masks.safetensors")
    assert list(read) == list(written)
    for name, mask in written.items():
        np.testing.assert_array_equal(read[name], mask)


def test_unreadable_file_is_named(tmp_path):
    path = tmp_path / "masks.safetensors"
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(DamagedArtifactError, match=str(path)):
        load_masks(path)
