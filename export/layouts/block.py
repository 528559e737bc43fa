"""BlockLinear: whole blocks of links.

Legend: N out_features, K in_features, b block size, B = ceil(N / b) rows of blocks, Q blocks. Canonical tensors:
`values` [Q, b, b] (4-bit: [Q, b, b / 2] bytes), blocks in row-major order, each row-major; `row_offsets` int32 [B + 1];
`columns` [Q], the block's column / b, ascending in each row of blocks, uint16 where K / b <= 65536, else int32;
`out_features` int64 [1], N; and the scales of the value type. Blocks at the edges are padded with zeros.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from .csr import column_type, entry_rows, row_offsets, rows_and_columns
from .functions import filled, in_features_constant, linear_tail, make_function
from .layout import check_mask_covers, layout_name
from .stored import group_scaled, halves, row_scaled
from .values import SCALE_NAMES, VALUE_TYPES, Places, Tensors, ValueType

LARGEST_BLOCK = 256


class BlockLayout:
    """Links in blocks of `block_size` x `block_size`: the mask must consist of whole blocks.

    `block_size` is 1 to 256, and even for 4-bit values; tensors of other block sizes can be decoded too. Kernels are
    at their best with multiples of 16.
    """

    def __init__(self, values: ValueType = VALUE_TYPES["float32"], block_size: int = 16) -> None:
        if not 1 <= block_size <= LARGEST_BLOCK or block_size % values.per_element:
            raise ValueError(f"block size {block_size} is not from 1 to {LARGEST_BLOCK}, or odd for 4-bit values")
        self.values = values
        self.block_size = self.needs_blocks = block_size
        self.name = layout_name("block", values)
        self.op_type = "BlockLinear" + values.op_suffix
        scales = SCALE_NAMES if values.scaled else ()
        self.tensor_names = ("values", "row_offsets", "columns", "out_features", *scales)

    def encode(self, weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> dict[str, NDArray]:
        """Pack; raises ValueError where the mask is not made of whole blocks or a weight off it is not zero."""
        check_mask_covers(weight_NK, mask_NK)
        active_BB = whole_blocks(mask_NK, self.block_size)
        if active_BB is None:
            raise ValueError(f"the mask is not made of whole blocks of {self.block_size}")
        block_rows, block_columns = np.nonzero(active_BB)
        places = _places(block_rows, block_columns, self.block_size, mask_NK.shape)
        padded = _padded(weight_NK, self.block_size)
        blocks_Qbb = _blocks(padded, self.block_size)[block_rows, block_columns]
        packed = self.values.encode(blocks_Qbb.reshape(-1), places)
        tensors = packed | {
            "values": packed["values"].reshape(-1, self.block_size, self.block_size // self.values.per_element),
            "row_offsets": row_offsets(active_BB.sum(axis=1, dtype=np.int64)),
            "columns": block_columns.astype(column_type(active_BB.shape[1])),
            "out_features": np.array(mask_NK.shape[:1], np.int64),
        }
        return {name: tensors[name] for name in self.tensor_names}

    def decode(self, tensors: Tensors, in_features: int) -> tuple[NDArray, NDArray[np.bool_]]:
        """Unpack; raises ValueError where the tensors do not fit together or padding is not zero."""
        shape = (_out_features(tensors), in_features)
        size = _block_size(tensors["values"], self.values)
        count = tensors["values"].shape[0]
        block_rows, block_columns = rows_and_columns(tensors, count, -(-in_features // size))
        if len(tensors["row_offsets"]) - 1 != -(-shape[0] // size):
            raise ValueError(f"{len(tensors['row_offsets'])} row_offsets for {shape[0]} rows in blocks of {size}")
        flat = dict(tensors) | {"values": tensors["values"].reshape(-1)}
        blocks_Qbb = self.values.decode(flat, _places(block_rows, block_columns, size, shape)).reshape(-1, size, size)
        return _assemble(blocks_Qbb, block_rows, block_columns, shape)

    def packed_bytes(self, out_features: int, in_features: int, links: int) -> int:
        """Bytes where `links` links fill whole blocks."""
        blocks = -(-links // self.block_size**2)
        column_bytes = np.dtype(column_type(-(-in_features // self.block_size))).itemsize
        values = self.values.packed_bytes(blocks * self.block_size**2, (out_features, in_features), links)
        return 4 * (-(-out_features // self.block_size) + 1) + blocks * column_bytes + 8 + values

    def function(self) -> onnx.FunctionProto:
        """A grid of block numbers says which row of which block each piece of a matrix row is."""
        node = helper.make_node
        nodes = [
            *in_features_constant(),
            node("Shape", ["values"], ["b"], start=1, end=2),
            *_grid_nodes(),
            *_pieces(),
            *self._block_rows(),
            node("Gather", ["rows_behind_zero", "pieces"], ["weight_in_pieces"], axis=0),
            *self._weight(),
        ]
        return make_function(self.op_type, self.tensor_names, nodes)

    def _block_rows(self) -> list[onnx.NodeProto]:
        """Nodes that give `rows_behind_zero`: the rows of all blocks, [b (Q + 1), b]. Block 0 is that of absent ones: a
        block of zeros is put before the others. What has no scale is made float32 while it is few."""
        node = helper.make_node
        if self.values.per_element > 1:
            stored, values = "halves", halves("values")
        else:
            stored, values = "values", []
        reshaped = "block_rows" if self.values.scaled else "block_rows_stored"
        return [
            *values,
            node("Concat", ["last", "b"], ["block_rows_shape"], axis=0),
            node("Reshape", [stored, "block_rows_shape"], [reshaped]),
            *([] if self.values.scaled else [node("Cast", [reshaped], ["block_rows"], to=TensorProto.FLOAT)]),
            node("Concat", ["b", "first", "first", "first"], ["row_pads"], axis=0),
            node("Pad", ["block_rows", "row_pads"], ["rows_behind_zero"]),
        ]

    def _weight(self) -> list[onnx.NodeProto]:
        """Nodes from `weight_in_pieces`, whole blocks, to Y. Padding of 4-bit values, whose groups of columns end with
        K, is cut off; to cut others would take another matrix, and X is padded instead."""
        node = helper.make_node
        whole = node("Flatten", ["weight_in_pieces"], ["weight_padded"], axis=1)
        if self.values.per_element > 1:
            return [
                whole,
                node("Slice", ["weight_padded", "first", "K", "second"], ["stored_NK"]),
                *group_scaled("stored_NK"),
                *linear_tail(self.values, "out_features"),
            ]
        return [
            whole,
            *row_scaled(self.values, "weight_padded"),
            node("Mul", ["block_columns", "b"], ["padded_K"]),
            *linear_tail(self.values, "out_features", "padded_K"),
        ]


def _grid_nodes() -> list[onnx.NodeProto]:
    """Nodes that give `grid_flat`, int32 [B `block_columns`]: b times the number of each block, from 1, or 0 where
    there is none."""
    node = helper.make_node
    return [
        node("Add", ["K", "b"], ["K_beyond_blocks"]),
        node("Sub", ["K_beyond_blocks", "second"], ["K_rounding_blocks"]),
        node("Div", ["K_rounding_blocks", "b"], ["block_columns"]),
        node("Cast", ["columns"], ["columns_int32"], to=TensorProto.INT32),
        *entry_rows("columns_int32"),
        node("Cast", ["block_columns"], ["block_columns_int32"], to=TensorProto.INT32),
        node("Mul", ["rows", "block_columns_int32"], ["row_places"]),
        node("Add", ["row_places", "columns_int32"], ["places"]),
        node("Cast", ["b"], ["b_int32"], to=TensorProto.INT32),
        node("Expand", ["b_int32", "Z"], ["each_block"]),
        node("CumSum", ["each_block", "zero0"], ["block_starts"]),
        node("Mul", ["N_rows", "block_columns"], ["grid_count"]),
        filled("grid_count", "empty_grid", 0, np.int32),
        node("ScatterElements", ["empty_grid", "places", "block_starts"], ["grid_flat"], axis=0),
    ]


def _pieces() -> list[onnx.NodeProto]:
    """Nodes that give `pieces`, int32 [N, `block_columns`]: for each row, which rows of blocks it consists of."""
    node = helper.make_node
    return [
        node("Concat", ["last", "second", "block_columns"], ["grid_shape"], axis=0),
        node("Reshape", ["grid_flat", "grid_shape"], ["grid"]),
        filled("b", "each_row", 1, np.int32),
        node("CumSum", ["each_row", "zero0"], ["rows_in_block"], exclusive=1),
        node("Unsqueeze", ["rows_in_block", "second"], ["rows_in_block_b1"]),
        node("Add", ["grid", "rows_in_block_b1"], ["pieces_of_blocks"]),
        node("Concat", ["last", "block_columns"], ["pieces_shape"], axis=0),
        node("Reshape", ["pieces_of_blocks", "pieces_shape"], ["pieces_padded"]),
        node("Slice", ["pieces_padded", "first", "out_features"], ["pieces"]),
    ]


def whole_blocks(mask_NK: NDArray[np.bool_], size: int) -> NDArray[np.bool_] | None:
    """Which blocks of size x size are linked, [ceil(N / size), ceil(K / size)]; None where one is linked in part."""
    blocks = _blocks(_padded(mask_NK, size), size)
    any_link = blocks.any(axis=(2, 3))
    extents = _blocks(_padded(np.ones_like(mask_NK), size), size).sum(axis=(2, 3))
    if (blocks.sum(axis=(2, 3))[any_link] != extents[any_link]).any():
        return None
    return any_link


def _padded(matrix_NK: NDArray, size: int) -> NDArray:
    return np.pad(matrix_NK, [(0, -extent % size) for extent in matrix_NK.shape])


def _blocks(padded: NDArray, size: int) -> NDArray:
    """[rows, columns] as [block rows, block columns, size, size]."""
    rows, columns = padded.shape[0] // size, padded.shape[1] // size
    return padded.reshape(rows, size, columns, size).transpose(0, 2, 1, 3)


def _places(block_rows: NDArray, block_columns: NDArray, size: int, shape: tuple[int, ...]) -> Places:
    """Places of all values of blocks; padding, which is 0 everywhere, counts to the last row and column."""
    inner = np.arange(size)
    rows = block_rows[:, None, None] * size + inner[None, :, None] + 0 * inner[None, None, :]
    columns = block_columns[:, None, None] * size + 0 * inner[None, :, None] + inner[None, None, :]
    return Places(
        np.minimum(rows, max(0, shape[0] - 1)).reshape(-1), np.minimum(columns, max(0, shape[1] - 1)).reshape(-1), shape
    )


def _out_features(tensors: Tensors) -> int:
    if tensors["out_features"].shape != (1,) or tensors["out_features"][0] < 0:
        raise ValueError("out_features is not one count of rows")
    return int(tensors["out_features"][0])


def _block_size(values: NDArray, value_type: ValueType) -> int:
    size = values.shape[1] if values.ndim == 3 else 0
    if not 1 <= size <= LARGEST_BLOCK or values.shape[2] * value_type.per_element != size:
        raise ValueError(f"values of shape {values.shape} are not square blocks of up to {LARGEST_BLOCK}")
    return size


def _assemble(
    blocks_Qbb: NDArray, block_rows: NDArray, block_columns: NDArray, shape: tuple[int, ...]
) -> tuple[NDArray, NDArray[np.bool_]]:
    size = blocks_Qbb.shape[1]
    grid = (-(-shape[0] // size), -(-shape[1] // size))
    by_blocks = np.zeros((*grid, size, size), np.float32)
    by_blocks[block_rows, block_columns] = blocks_Qbb
    active = np.zeros((*grid, size, size), bool)
    active[block_rows, block_columns] = True
    padded = by_blocks.transpose(0, 2, 1, 3).reshape(grid[0] * size, grid[1] * size)
    mask = active.transpose(0, 2, 1, 3).reshape(padded.shape)
    if padded[shape[0] :].any() or padded[:, shape[1] :].any():
        raise ValueError("values past the edges are not 0")
    return padded[: shape[0], : shape[1]].copy(), mask[: shape[0], : shape[1]].copy()
