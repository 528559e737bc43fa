"""Sparse linear layers Y = X W^T as Triton-language kernels: one for decode and one for prefill of each form.

Legend: T tokens, N out_features, K in_features, G groups of four columns. Tiles: t tokens (BLOCK_T), n rows of W
(BLOCK_N), k columns (BLOCK_K), z links (BLOCK_Z), w words of 8 slots (BLOCK_W), b block size.

A decode kernel is a matrix-vector product: a program takes rows of W and one token (of gap-coded rows up to eight), and
the time is that of reading W once. A prefill kernel takes a tile of tokens; it rebuilds a dense tile of W in registers,
so that tensor cores can multiply it, and gains memory traffic but no arithmetic. CSR, whose links lie anywhere, gathers
from X instead.

X [T, K], values and Y [T, N] are float16 or bfloat16; sums are in float32, in an order of their own. The tensors of a
form are those of `packing`, in the order of its table. Sizes T, N, K are the last arguments before Y, which is the
order in which TensorRT passes them.
"""

# Arguments of kernels are pointers and tiles of the Triton language, which have no Python types.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _product(left, right):
    """The product of two tiles, summed in float32."""
    # Triton's interpreter would multiply the bit patterns of bfloat16 as integers.
    if _INTERPRETED and left.dtype == tl.bfloat16:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    return tl.dot(left, right)


@triton.jit
def _bitmask_tile(values, mask, tile_offsets, rows, tile, N, K, TILE: tl.constexpr):
    """The dense tile [n, TILE / 8, 8] of a bitmask weight.

    A byte's eight bits are spread to the eight nibbles of a word; one multiplication then gives, in each nibble, how
    many links of the byte come before it.
    """
    row_bytes = (K + 7) // 8
    places = tile * (TILE // 8) + tl.arange(0, TILE // 8)
    inside = (rows[:, None] < N) & (places[None, :] < row_bytes)
    packed = tl.load(mask + rows[:, None] * row_bytes + places[None, :], mask=inside, other=0).to(tl.uint32)
    spread = (packed | (packed << 12)) & 0x000F000F
    spread = (spread | (spread << 6)) & 0x03030303
    spread = (spread | (spread << 3)) & 0x11111111
    before_in_byte = spread * 0x11111110
    count = ((spread * 0x11111111) >> 28).to(tl.int32)
    start = tl.load(tile_offsets + rows * ((K + TILE - 1) // TILE) + tile, mask=rows < N, other=0)
    first = start[:, None] + tl.cumsum(count, axis=1) - count
    shift = 4 * tl.arange(0, 8)[None, None, :].to(tl.uint32)
    before = ((before_in_byte[:, :, None] >> shift) & 15).to(tl.int32)
    is_link = ((spread[:, :, None] >> shift) & 1) == 1
    return tl.load(values + (first[:, :, None] + before), mask=is_link, other=0)


@triton.jit
def _bitmask_product(
    x, values, mask, tile_offsets, rows, tokens, T, N, K,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Rows of a bitmask weight times a tile of tokens, [t, n]."""
    total = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for tile in range(0, (K + TILE - 1) // TILE):
        weight = tl.reshape(_bitmask_tile(values, mask, tile_offsets, rows, tile, N, K, TILE), (BLOCK_N, TILE))
        columns = tile * TILE + tl.arange(0, TILE)
        inside = (tokens[:, None] < T) & (columns[None, :] < K)
        tile_x = tl.load(x + tokens[:, None] * K + columns[None, :], mask=inside, other=0.0)
        if weight.dtype == tl.int8:  # through float32, as Triton's interpreter would keep the bits
            weight = weight.to(tl.float32).to(x.dtype.element_ty)
        total += _product(tile_x, tl.trans(weight))
    return total


@triton.jit
def _gap_columns(packed, start):
    """The columns [n, w, 8] of a tile of words of steps, and the column behind each row's last slot.

    Sums of steps within a word come from its nibbles, spread to bytes, by one multiplication; sums over the words of a
    row from a scan of the lanes that hold them.
    """
    even = packed & 0x0F0F0F0F
    odd = (packed >> 4) & 0x0F0F0F0F
    through_odd = (even + odd) * 0x01010101
    through_even = through_odd - odd
    slot = tl.arange(0, 8)[None, None, :]
    through = tl.where(slot % 2 == 1, through_odd[:, :, None], through_even[:, :, None])
    gaps = (through >> (8 * (slot // 2)).to(tl.uint32)) & 255
    width = (through_odd >> 24).to(tl.int32) + 8
    first = start[:, None] + tl.cumsum(width, axis=1) - width
    return first[:, :, None] + slot + gaps.to(tl.int32), start + tl.sum(width, axis=1)


@triton.jit
def _gap_product(
    x, values, gaps, row_offsets, rows, T, N, K, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Gap-coded rows times a few tokens, [n, t]: a lane takes a word of steps and its 8 values."""
    start = tl.load(row_offsets + rows, mask=rows < N, other=0)
    end = tl.load(row_offsets + rows + 1, mask=rows < N, other=0)
    column = tl.zeros((BLOCK_N,), dtype=tl.int32)
    total = tl.zeros((BLOCK_N, BLOCK_W, BLOCK_T), dtype=tl.float32)
    for first in range(0, tl.max(end - start, axis=0), BLOCK_W):
        words = start[:, None] + first + tl.arange(0, BLOCK_W)[None, :]
        inside = words < end[:, None]
        packed = tl.load(gaps + words, mask=inside, other=0).to(tl.uint32, bitcast=True)
        slots = (words * 8)[:, :, None] + tl.arange(0, 8)[None, None, :]
        weight = tl.load(values + slots, mask=inside[:, :, None], other=0).to(tl.float32)
        columns, column = _gap_columns(packed, column)
        # Slots without a link hold 0; those that only fill the last word may lie beyond the last column.
        columns = tl.minimum(columns, K - 1)
        for token in tl.static_range(BLOCK_T):
            # Beyond the last token its sums are taken once more, which nobody stores.
            row = tl.minimum(tl.program_id(1) * BLOCK_T + token, T - 1)
            gathered = tl.load(x + row * K + columns).to(tl.float32)
            sums = tl.sum(weight * gathered, axis=2)
            total += tl.where(tl.arange(0, BLOCK_T)[None, None, :] == token, sums[:, :, None], 0.0)
    return tl.sum(total, axis=1)


@triton.jit
def _nm24_tile(values, metadata, rows, columns, N, K):
    """The dense tile [n, k] of a 2:4 weight: of two slots a group, the one whose place a column is."""
    inside = (rows[:, None] < N) & (columns[None, :] < K)
    groups = (K + 3) // 4
    group = columns // 4
    codes = tl.load(metadata + rows[:, None] * ((groups + 1) // 2) + group[None, :] // 2, mask=inside, other=0)
    code = (codes.to(tl.int32) >> (4 * (group % 2))[None, :]) & 15
    place = (columns % 4)[None, :]
    is_first = place == code % 4
    is_second = (place == code // 4) & (code // 4 > code % 4)
    slot = values + rows[:, None] * (2 * groups) + 2 * group[None, :] + tl.where(is_second, 1, 0)
    return tl.load(slot, mask=inside & (is_first | is_second), other=0.0)


@triton.jit
def _nm24_slots(values, metadata, rows, slots, N, K):
    """Of a 2:4 weight the values [n, s] of slots, and the columns that they belong to."""
    groups = (K + 3) // 4
    group = slots // 2
    inside = (rows[:, None] < N) & (group[None, :] < groups)
    codes = tl.load(metadata + rows[:, None] * ((groups + 1) // 2) + group[None, :] // 2, mask=inside, other=0)
    code = codes.to(tl.int32) >> (4 * (group % 2) + 2 * (slots % 2))[None, :]
    weight = tl.load(values + rows[:, None] * (2 * groups) + slots[None, :], mask=inside, other=0.0)
    return weight, 4 * group[None, :] + (code & 3)


@triton.jit
def _csr_row(values, columns, row_offsets, row, x_row, x_valid, BLOCK_Z: tl.constexpr):
    """One row of a CSR weight times one token."""
    total = tl.zeros((BLOCK_Z,), dtype=tl.float32)
    start = tl.load(row_offsets + row, mask=x_valid, other=0)
    end = tl.load(row_offsets + row + 1, mask=x_valid, other=0)
    for first in range(start, end, BLOCK_Z):
        links = first + tl.arange(0, BLOCK_Z)
        column = tl.load(columns + links, mask=links < end, other=0).to(tl.int32)
        weight = tl.load(values + links, mask=links < end, other=0.0).to(tl.float32)
        total += weight * tl.load(x_row + column, mask=links < end, other=0.0).to(tl.float32)
    return tl.sum(total, axis=0)


@triton.jit
def _csr_row_tokens(
    values, columns, row_offsets, row, is_row, x, tokens, T, K, BLOCK_T: tl.constexpr, BLOCK_Z: tl.constexpr
):
    """One row of a CSR weight times a tile of tokens, [t]."""
    total = tl.zeros((BLOCK_T,), dtype=tl.float32)
    start = tl.load(row_offsets + row, mask=is_row, other=0)
    end = tl.load(row_offsets + row + 1, mask=is_row, other=0)
    for first in range(start, end, BLOCK_Z):
        links = first + tl.arange(0, BLOCK_Z)
        column = tl.load(columns + links, mask=links < end, other=0).to(tl.int32)
        weight = tl.load(values + links, mask=links < end, other=0.0).to(tl.float32)
        inside = (tokens[:, None] < T) & (links[None, :] < end)
        gathered = tl.load(x + tokens[:, None] * K + column[None, :], mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(gathered * weight[None, :], axis=1)
    return total


@triton.jit
def bitmask_decode(x, values, mask, tile_offsets, T, N, K, y, BLOCK_N: tl.constexpr, TILE: tl.constexpr):
    """Grid: (ceil(N / BLOCK_N), T)."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(1)
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for tile in range(0, (K + TILE - 1) // TILE):
        weight = _bitmask_tile(values, mask, tile_offsets, rows, tile, N, K, TILE).to(tl.float32)
        columns = tile * TILE + 8 * tl.arange(0, TILE // 8)[:, None] + tl.arange(0, 8)[None, :]
        token_x = tl.load(x + token * K + columns, mask=columns < K, other=0.0).to(tl.float32)
        total += tl.sum(tl.sum(weight * token_x[None, :, :], axis=2), axis=1)
    tl.store(y + token * N + rows, total.to(y.dtype.element_ty), mask=rows < N)


@triton.jit
def bitmask_prefill(
    x, values, mask, tile_offsets, T, N, K, y, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, TILE: tl.constexpr
):
    """Grid: (ceil(N / BLOCK_N), ceil(T / BLOCK_T))."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    total = _bitmask_product(x, values, mask, tile_offsets, rows, tokens, T, N, K, BLOCK_T, BLOCK_N, TILE)
    inside = (tokens[:, None] < T) & (rows[None, :] < N)
    tl.store(y + tokens[:, None] * N + rows[None, :], total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def csr_decode(x, values, columns, row_offsets, T, N, K, y, BLOCK_Z: tl.constexpr):
    """Grid: (N, T)."""
    row = tl.program_id(0)
    token = tl.program_id(1)
    total = _csr_row(values, columns, row_offsets, row, x + token * K, row < N, BLOCK_Z)
    tl.store(y + token * N + row, total.to(y.dtype.element_ty))


@triton.jit
def csr_prefill(x, values, columns, row_offsets, T, N, K, y, BLOCK_T: tl.constexpr, BLOCK_Z: tl.constexpr):
    """Grid: (N, ceil(T / BLOCK_T))."""
    row = tl.program_id(0)
    tokens = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    total = _csr_row_tokens(values, columns, row_offsets, row, row < N, x, tokens, T, K, BLOCK_T, BLOCK_Z)
    tl.store(y + tokens * N + row, total.to(y.dtype.element_ty), mask=tokens < T)


@triton.jit
def block_decode(x, values, columns, row_offsets, T, N, K, y, SIZE: tl.constexpr):
    """Grid: (ceil(N / SIZE), T)."""
    block_row = tl.program_id(0)
    token = tl.program_id(1)
    inner = tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), dtype=tl.float32)
    for place in range(tl.load(row_offsets + block_row), tl.load(row_offsets + block_row + 1)):
        block_columns = tl.load(columns + place) * SIZE + inner
        weight = tl.load(values + (place * SIZE + inner[:, None]) * SIZE + inner[None, :])
        token_x = tl.load(x + token * K + block_columns, mask=block_columns < K, other=0.0)
        total += tl.sum(weight.to(tl.float32) * token_x.to(tl.float32)[None, :], axis=1)
    rows = block_row * SIZE + inner
    tl.store(y + token * N + rows, total.to(y.dtype.element_ty), mask=rows < N)


@triton.jit
def block_prefill(x, values, columns, row_offsets, T, N, K, y, BLOCK_T: tl.constexpr, SIZE: tl.constexpr):
    """Grid: (ceil(N / SIZE), ceil(T / BLOCK_T))."""
    block_row = tl.program_id(0)
    tokens = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    inner = tl.arange(0, SIZE)
    total = tl.zeros((BLOCK_T, SIZE), dtype=tl.float32)
    for place in range(tl.load(row_offsets + block_row), tl.load(row_offsets + block_row + 1)):
        block_columns = tl.load(columns + place) * SIZE + inner
        inside = (tokens[:, None] < T) & (block_columns[None, :] < K)
        tile_x = tl.load(x + tokens[:, None] * K + block_columns[None, :], mask=inside, other=0.0)
        # Read transposed, [inputs, outputs].
        weight = tl.load(values + (place * SIZE + inner[None, :]) * SIZE + inner[:, None])
        total += _product(tile_x, weight)
    rows = block_row * SIZE + inner
    inside = (tokens[:, None] < T) & (rows[None, :] < N)
    tl.store(y + tokens[:, None] * N + rows[None, :], total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def nm24_decode(
    x, values, metadata, residual_values, residual_columns, residual_offsets, T, N, K, y,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_Z: tl.constexpr,
):  # fmt: skip
    """Grid: (ceil(N / BLOCK_N), T)."""
    lanes = tl.arange(0, BLOCK_N)
    rows = tl.program_id(0) * BLOCK_N + lanes
    token = tl.program_id(1)
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    # Half as many slots as columns: each looks its column up in X.
    for first in range(0, (K + 3) // 4 * 2, BLOCK_K):
        weight, columns = _nm24_slots(values, metadata, rows, first + tl.arange(0, BLOCK_K), N, K)
        token_x = tl.load(x + token * K + columns, mask=columns < K, other=0.0)
        total += tl.sum(weight.to(tl.float32) * token_x.to(tl.float32), axis=1)
    for lane in range(BLOCK_N):
        row = tl.program_id(0) * BLOCK_N + lane
        rest = _csr_row(residual_values, residual_columns, residual_offsets, row, x + token * K, row < N, BLOCK_Z)
        total += tl.where(lanes == lane, rest, 0.0)
    tl.store(y + token * N + rows, total.to(y.dtype.element_ty), mask=rows < N)


@triton.jit
def nm24_prefill(
    x, values, metadata, residual_values, residual_columns, residual_offsets, T, N, K, y,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_Z: tl.constexpr,
):  # fmt: skip
    """Grid: (ceil(N / BLOCK_N), ceil(T / BLOCK_T))."""
    lanes = tl.arange(0, BLOCK_N)
    rows = tl.program_id(0) * BLOCK_N + lanes
    tokens = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    total = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        columns = first + tl.arange(0, BLOCK_K)
        weight = _nm24_tile(values, metadata, rows, columns, N, K)
        inside = (tokens[:, None] < T) & (columns[None, :] < K)
        tile_x = tl.load(x + tokens[:, None] * K + columns[None, :], mask=inside, other=0.0)
        total += _product(tile_x, tl.trans(weight))
    for lane in range(BLOCK_N):
        row = tl.program_id(0) * BLOCK_N + lane
        rest = _csr_row_tokens(
            residual_values, residual_columns, residual_offsets, row, row < N, x, tokens, T, K, BLOCK_T, BLOCK_Z
        )
        total += tl.where(lanes[None, :] == lane, rest[:, None], 0.0)
    inside = (tokens[:, None] < T) & (rows[None, :] < N)
    tl.store(y + tokens[:, None] * N + rows[None, :], total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def gap_decode(
    x, values, gaps, row_offsets, mask, tile_offsets, T, N, K, y,
    BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Grid: (ceil(N / BLOCK_N), ceil(T / BLOCK_T))."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    total = _gap_product(x, values, gaps, row_offsets, rows, T, N, K, BLOCK_N, BLOCK_T, BLOCK_W)
    inside = (rows[:, None] < N) & (tokens[None, :] < T)
    tl.store(y + tokens[None, :] * N + rows[:, None], total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def gap_prefill(
    x, values, gaps, row_offsets, mask, tile_offsets, T, N, K, y,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid: (ceil(N / BLOCK_N), ceil(T / BLOCK_T))."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    total = _bitmask_product(x, values, mask, tile_offsets, rows, tokens, T, N, K, BLOCK_T, BLOCK_N, TILE)
    inside = (tokens[:, None] < T) & (rows[None, :] < N)
    tl.store(y + tokens[:, None] * N + rows[None, :], total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def gap8_decode(
    x, values, gaps, row_offsets, mask, tile_offsets, row_scales, T, N, K, y,
    BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Grid: (ceil(N / BLOCK_N), ceil(T / BLOCK_T))."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    total = _gap_product(x, values, gaps, row_offsets, rows, T, N, K, BLOCK_N, BLOCK_T, BLOCK_W)
    total *= tl.load(row_scales + rows, mask=rows < N, other=0.0)[:, None]
    inside = (rows[:, None] < N) & (tokens[None, :] < T)
    tl.store(y + tokens[None, :] * N + rows[:, None], total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def gap8_prefill(
    x, values, gaps, row_offsets, mask, tile_offsets, row_scales, T, N, K, y,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid: (ceil(N / BLOCK_N), ceil(T / BLOCK_T))."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    total = _bitmask_product(x, values, mask, tile_offsets, rows, tokens, T, N, K, BLOCK_T, BLOCK_N, TILE)
    total *= tl.load(row_scales + rows, mask=rows < N, other=0.0)[None, :]
    inside = (tokens[:, None] < T) & (rows[None, :] < N)
    tl.store(y + tokens[:, None] * N + rows[None, :], total.to(y.dtype.element_ty), mask=inside)
