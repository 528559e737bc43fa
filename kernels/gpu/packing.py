"""Weights in the forms that the GPU kernels read.

Legend: T tokens, N out_features, K in_features, Z links, P = ceil(K / 8), W = ceil(K / TILE) tiles of columns, G =
ceil(K / 4) groups of four columns, Q blocks, b block size, R links of the residual, S slots of gap-coded rows.

bitmask: `values` [Z]; `mask` uint8 [N, P], bit k % 8 of byte k // 8 is link k; `tile_offsets` int32 [N, W], the place
    in `values` of a tile's first link.
csr: `values` [Z]; `columns` uint16 [Z] (int32 where K > 65536); `row_offsets` int32 [N + 1].
block: `values` [Q, b, b]; `columns` int32 [Q], in blocks; `row_offsets` int32 [ceil(N / b) + 1].
nm24: `values` [N, 2 G], two slots a group; `metadata` uint8 [N, ceil(G / 2)], four bits a group: p0 + 4 p1; and the
    links that are a third or fourth of their group as a CSR residual: `residual_values` [R], `residual_columns`,
    `residual_offsets`.
gap: a row is a run of slots, in whole words of 8. A slot is a value and a step of 1 to 16 columns from the slot before
    it, the first one's from column -1; it is a link, or, where the next link is over 16 columns ahead, a padding slot
    of value 0 that steps 16; slots of value 0 that step 1, to columns that may lie beyond K, fill the last word.
    `values` [S]; `gaps` uint32 [S / 8], the step less 1 of slot s in bits 4 (s % 8) to 4 (s % 8) + 3 of word s // 8;
    `row_offsets` int32 [N + 1], in words; and, for many tokens, of which a kernel rebuilds tiles of columns: `mask` and
    `tile_offsets` as of a bitmask whose links are all slots but those that fill the last word, in tiles of GAP_TILE.
gap8: the same with `values` int8, each row's over `row_scales` float32 [N], its largest magnitude over 127.

They are the canonical layouts of `export/layouts` but for what a kernel cannot do without: `tile_offsets`, gaps, and
the residual, which lets any mask be 2:4. gap8 alone rounds. Values are float16 or bfloat16, which the kernels take, or
float32, in which a graph of packed layers is compared with torch on a CPU.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TILE = 128
"""Columns of a tile of a bitmask row, for which the place of the first link is stored."""
BLOCK_SIZES = (16, 32, 64)
GROUP, SLOTS = 4, 2
VALUE_TYPES = ("float16", "bfloat16", "float32")
GAP_TILE = 64
"""The same of gap-coded rows, whose prefill kernel takes smaller tiles of more tokens."""
WORD_SLOTS = 8
"""Slots of a gap-coded row whose steps fill a 32 bit word."""
LONGEST_STEP = 16
_UINT16_COLUMNS = 1 << 16
_INT8_MOST = 127


@dataclass(frozen=True)
class GpuWeight:
    """A packed weight [N, K]: the form's name, its sizes, and its tensors by name in the order of the kernels'
    arguments."""

    form: str
    out_features: int
    in_features: int
    tensors: Mapping[str, NDArray]

    @property
    def bytes(self) -> int:
        """What the weight takes in memory; a pass over it may read less (see `roofline`)."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def pack_bitmask(weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> GpuWeight:
    """One bit a possible link, and the links row by row."""
    _check(weight_NK, mask_NK)
    tiles_NW = np.add.reduceat(mask_NK, np.arange(0, mask_NK.shape[1], TILE), axis=1, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(tiles_NW)])[:-1].reshape(tiles_NW.shape)
    tensors = {
        "values": weight_NK[mask_NK],
        "mask": np.packbits(mask_NK, axis=1, bitorder="little"),
        "tile_offsets": _int32(offsets),
    }
    return GpuWeight("bitmask", mask_NK.shape[0], mask_NK.shape[1], tensors)


def pack_csr(weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> GpuWeight:
    """Compressed sparse rows."""
    _check(weight_NK, mask_NK)
    return GpuWeight("csr", mask_NK.shape[0], mask_NK.shape[1], _csr_tensors(weight_NK, mask_NK, ""))


def pack_block(weight_NK: NDArray, mask_NK: NDArray[np.bool_], size: int = 32) -> GpuWeight:
    """All blocks of size x size that hold a link, absent links in them as zeros; N and K are padded to whole blocks.

    Raises:
        ValueError: the size is none of `BLOCK_SIZES`.
    """
    _check(weight_NK, mask_NK)
    if size not in BLOCK_SIZES:
        raise ValueError(f"block size {size} is none of {', '.join(map(str, BLOCK_SIZES))}")
    rows, columns = (-(-extent // size) for extent in mask_NK.shape)
    padded = np.zeros((rows * size, columns * size), weight_NK.dtype)
    padded[: mask_NK.shape[0], : mask_NK.shape[1]] = weight_NK
    links = np.pad(mask_NK, [(0, -extent % size) for extent in mask_NK.shape])
    blocks = padded.reshape(rows, size, columns, size).transpose(0, 2, 1, 3)
    active = links.reshape(rows, size, columns, size).any(axis=(1, 3))
    tensors = {
        "values": np.ascontiguousarray(blocks[active]),
        "columns": _int32(np.nonzero(active)[1]),
        "row_offsets": _int32(np.concatenate([[0], np.cumsum(active.sum(axis=1))])),
    }
    return GpuWeight("block", mask_NK.shape[0], mask_NK.shape[1], tensors)


def pack_nm24(weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> GpuWeight:
    """The two largest links of every four columns, and the others as a residual."""
    _check(weight_NK, mask_NK)
    rows, columns = mask_NK.shape
    groups = -(-columns // GROUP)
    padding = [(0, 0), (0, groups * GROUP - columns)]
    weight_NG4 = np.pad(weight_NK, padding).reshape(rows, groups, GROUP)
    mask_NG4 = np.pad(mask_NK, padding).reshape(rows, groups, GROUP)
    kept_NG4 = _two_largest(weight_NG4, mask_NG4)
    residual_NK = (mask_NG4 & ~kept_NG4).reshape(rows, -1)[:, :columns]
    tensors = {
        **_slots_and_places(weight_NG4, kept_NG4),
        **_csr_tensors(np.where(residual_NK, weight_NK, np.zeros((), weight_NK.dtype)), residual_NK, "residual_"),
    }
    return GpuWeight("nm24", rows, columns, tensors)


def pack_gap(weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> GpuWeight:
    """Rows of links with 4 bit column gaps."""
    _check(weight_NK, mask_NK)
    slots = _GapSlots.of(mask_NK)
    return GpuWeight("gap", mask_NK.shape[0], mask_NK.shape[1], slots.tensors(weight_NK[mask_NK]))


def pack_gap8(weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> GpuWeight:
    """Rows of links with 4 bit column gaps and int8 values, rounded to nearest over a scale for each row."""
    _check(weight_NK, mask_NK)
    largest_N = np.abs(weight_NK.astype(np.float32)).max(axis=1)
    scale_N = np.where(largest_N > 0, largest_N, np.float32(1)) / np.float32(_INT8_MOST)
    integers_NK = np.rint(weight_NK.astype(np.float32) / scale_N[:, None]).astype(np.int8)
    tensors = _GapSlots.of(mask_NK).tensors(integers_NK[mask_NK]) | {"row_scales": scale_N}
    return GpuWeight("gap8", mask_NK.shape[0], mask_NK.shape[1], tensors)


def gap_padding(mask_NK: NDArray[np.bool_]) -> float:
    """Slots of gap-coded rows that hold no link, over those that do; 0 where no slot does."""
    slots = _GapSlots.of(mask_NK)
    return float(slots.count / len(slots.links_Z) - 1) if len(slots.links_Z) else 0.0


@dataclass(frozen=True)
class _GapSlots:
    """Where the slots of gap-coded rows lie: of each link its slot and the step to it less 1, and the first word of
    each row, behind the last one's the number of all words. `mask_NK` is true where a link or a padding slot is."""

    links_Z: NDArray[np.int64]
    steps_Z: NDArray[np.int64]
    words_N1: NDArray[np.int64]
    last_N: NDArray[np.int64]
    mask_NK: NDArray[np.bool_]

    @property
    def count(self) -> int:
        """All slots."""
        return int(self.words_N1[-1]) * WORD_SLOTS

    @classmethod
    def of(cls, mask_NK: NDArray[np.bool_]) -> "_GapSlots":
        rows_Z, columns_Z = np.nonzero(mask_NK)
        is_first_Z = np.diff(rows_Z, prepend=-1) > 0
        before_Z = np.where(is_first_Z, -1, np.concatenate([[-1], columns_Z[:-1]]) if len(columns_Z) else columns_Z)
        padding_Z, steps_Z = np.divmod(columns_Z - before_Z - 1, LONGEST_STEP)
        used_N = np.bincount(rows_Z, padding_Z + 1, len(mask_NK)).astype(np.int64)
        words_N1 = np.concatenate([[0], np.cumsum(-(-used_N // WORD_SLOTS))])
        used_before_N = np.cumsum(used_N) - used_N
        links_Z = np.cumsum(padding_Z + 1) - 1 + (words_N1[:-1] * WORD_SLOTS - used_before_N)[rows_Z]
        slots_NK = mask_NK.copy()
        for run in range(1, int(padding_Z.max(initial=0)) + 1):
            has_Z = padding_Z >= run
            slots_NK[rows_Z[has_Z], before_Z[has_Z] + run * LONGEST_STEP] = True
        return cls(links_Z, steps_Z, words_N1, words_N1[:-1] * WORD_SLOTS + used_N, slots_NK)

    def tensors(self, links_Z: NDArray) -> dict[str, NDArray]:
        """The tensors of a weight whose links are given in row-major order."""
        values_S = np.zeros(self.count, links_Z.dtype)
        values_S[self.links_Z] = links_Z
        steps_S = np.full(self.count, LONGEST_STEP - 1, np.uint32)
        steps_S[self.links_Z] = self.steps_Z
        starts_N, ends_N = self.last_N, self.words_N1[1:] * WORD_SLOTS
        fill = np.repeat(starts_N - np.cumsum(ends_N - starts_N) + (ends_N - starts_N), ends_N - starts_N)
        steps_S[fill + np.arange(len(fill))] = 0
        shifts = np.arange(0, 32, 4, dtype=np.uint32)
        first_N = self.words_N1[:-1] * WORD_SLOTS
        starts_W = np.arange(0, self.mask_NK.shape[1], GAP_TILE)
        tiles_NW = np.add.reduceat(self.mask_NK, starts_W, axis=1, dtype=np.int64)
        return {
            "values": values_S,
            "gaps": np.bitwise_or.reduce(steps_S.reshape(-1, WORD_SLOTS) << shifts, axis=1, dtype=np.uint32),
            "row_offsets": _int32(self.words_N1),
            "mask": np.packbits(self.mask_NK, axis=1, bitorder="little"),
            "tile_offsets": _int32(first_N[:, None] + np.cumsum(tiles_NW, axis=1) - tiles_NW),
        }


PACKERS: dict[str, Callable[[NDArray, NDArray[np.bool_]], GpuWeight]] = {
    "bitmask": pack_bitmask,
    "csr": pack_csr,
    "block": pack_block,
    "nm24": pack_nm24,
    "gap": pack_gap,
}
"""Of the forms that hold a weight exactly."""
ROUNDING_PACKERS: dict[str, Callable[[NDArray, NDArray[np.bool_]], GpuWeight]] = {"gap8": pack_gap8}
FORMS = (*PACKERS, *ROUNDING_PACKERS)
TENSOR_TYPES = {
    "bitmask": ("value", "u8", "i32"),
    "csr": ("value", "u16", "i32"),
    "block": ("value", "i32", "i32"),
    "nm24": ("value", "u8", "value", "u16", "i32"),
    "gap": ("value", "i32", "i32", "u8", "i32"),
    "gap8": ("i8", "i32", "i32", "u8", "i32", "fp32"),
}
"""Element types of the tensors of each form, in the order of the kernels' arguments; "value" is that of X."""


def _two_largest(weight_NG4: NDArray, mask_NG4: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """At most two links of each group, the largest in magnitude; of equals the first."""
    magnitude = np.where(mask_NG4, np.abs(weight_NG4.astype(np.float32)), np.float32(-1))
    order = np.argsort(-magnitude, axis=2, kind="stable")
    kept = np.zeros_like(mask_NG4)
    np.put_along_axis(kept, order[..., :SLOTS], True, axis=2)
    return kept & mask_NG4


def _slots_and_places(weight_NG4: NDArray, kept_NG4: NDArray[np.bool_]) -> dict[str, NDArray]:
    """`values` and `metadata`: p0 < p1 two links, p0 = p1 one, p0 = 3 and p1 = 0 none; unused slots hold 0."""
    rows, groups, _ = kept_NG4.shape
    count_NG = kept_NG4.sum(axis=2)
    first_NG = kept_NG4.argmax(axis=2)
    last_NG = GROUP - 1 - kept_NG4[..., ::-1].argmax(axis=2)
    slots_NGS = np.zeros((rows, groups, SLOTS), weight_NG4.dtype)
    for slot, (place_NG, present_NG) in enumerate([(first_NG, count_NG > 0), (last_NG, count_NG > 1)]):
        values_NG = np.take_along_axis(weight_NG4, place_NG[..., None], axis=2)[..., 0]
        slots_NGS[..., slot] = np.where(present_NG, values_NG, np.zeros((), weight_NG4.dtype))
    code_NG = np.where(count_NG > 0, first_NG + GROUP * last_NG, GROUP - 1).astype(np.uint8)
    codes = np.pad(code_NG, [(0, 0), (0, groups % 2)]).reshape(rows, -1, 2)
    return {"values": slots_NGS.reshape(rows, -1), "metadata": codes[..., 0] | codes[..., 1] << 4}


def _csr_tensors(weight_NK: NDArray, mask_NK: NDArray[np.bool_], prefix: str) -> dict[str, NDArray]:
    kind = np.uint16 if mask_NK.shape[1] <= _UINT16_COLUMNS else np.int32
    offsets = "residual_offsets" if prefix else "row_offsets"
    return {
        f"{prefix}values": weight_NK[mask_NK],
        f"{prefix}columns": np.nonzero(mask_NK)[1].astype(kind),
        offsets: _int32(np.concatenate([[0], np.cumsum(mask_NK.sum(axis=1, dtype=np.int64))])),
    }


def _check(weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> None:
    """Raise ValueError where shapes differ, a weight off the mask is not zero, or values are of another type."""
    if weight_NK.shape != mask_NK.shape or weight_NK.ndim != 2 or 0 in weight_NK.shape:
        raise ValueError(f"weight {weight_NK.shape} and mask {mask_NK.shape} are not two equal matrices")
    if weight_NK.dtype.name not in VALUE_TYPES:
        raise ValueError(f"values are {weight_NK.dtype}, not {', '.join(VALUE_TYPES)}")
    lost = int(np.count_nonzero(weight_NK[~mask_NK]))
    if lost:
        raise ValueError(f"{lost} weights off the mask are not zero")


def _int32(values: NDArray) -> NDArray[np.int32]:
    if values.size and values.max() > np.iinfo(np.int32).max:
        raise ValueError(f"{values.max()} links are more than int32 offsets can count")
    return values.astype(np.int32)
