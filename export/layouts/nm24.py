"""Nm24Linear: at most two links in every four columns, the form that sparse tensor cores multiply.

Legend: N out_features, K in_features, Q = ceil(K / 4) groups of four columns. Canonical tensors:
`values` [N, 2 Q] (4-bit: [N, Q] bytes), two slots a group; `metadata` uint8 [N, ceil(Q / 2)], four bits a group, low
half first: p0 + 4 p1, the places in the group of its first and second slot; and the scales of the value type.

What a group's four bits say: p0 < p1: two links; p0 = p1: one link, there; p0 = 3, p1 = 0: none. A slot without a link
holds 0, and the unused half of a row's last byte is 0. So active zeros keep their place, and four bits a group suffice.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from .functions import constant, filled, in_features_constant, linear_tail, make_function
from .layout import check_countable, check_mask_covers, layout_name
from .rounds import rounds
from .stored import byte_scaled, halves, row_scaled
from .values import SCALE_NAMES, VALUE_TYPES, Places, Tensors, ValueType

GROUP = 4
SLOTS = 2
_NO_LINK = (3, 0)


class Nm24Layout:
    """Two links of four columns: a mask that has more in any group is refused; `kernels/gpu/packing` puts what does not
    fit into a residual.

    Columns need not come in fours: the last group of a row may be short. Never smaller than a bitmask of the same
    values, with which the op library computes as well: so an ONNX export never chooses it. It is for targets that
    multiply this form and none less regular.
    """

    needs_blocks = 0

    def __init__(self, values: ValueType = VALUE_TYPES["float32"]) -> None:
        self.values = values
        self.name = layout_name("nm24", values)
        self.op_type = "Nm24Linear" + values.op_suffix
        self.tensor_names = ("values", "metadata", *(SCALE_NAMES if values.scaled else ()))

    def encode(self, weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> dict[str, NDArray]:
        """Pack; raises ValueError where a group has more than two links, a weight off the mask is not zero, or int32
        cannot count the slots."""
        check_mask_covers(weight_NK, mask_NK)
        check_countable(mask_NK.shape[0] * -(-mask_NK.shape[1] // GROUP) * SLOTS)
        check_two_of_four(mask_NK)
        places_NQS, linked_NQS = _slots(mask_NK)
        slot_places = _slot_places(places_NQS, mask_NK.shape)
        slots = np.where(linked_NQS.reshape(-1), weight_NK[slot_places.rows_S, slot_places.columns_S], np.float32(0))
        packed = self.values.encode(slots, slot_places)
        rows = mask_NK.shape[0]
        tensors = packed | {
            "values": packed["values"].reshape(rows, places_NQS.shape[1] * SLOTS // self.values.per_element),
            "metadata": _pack_metadata(places_NQS, linked_NQS),
        }
        return {name: tensors[name] for name in self.tensor_names}

    def decode(self, tensors: Tensors, in_features: int) -> tuple[NDArray, NDArray[np.bool_]]:
        """Unpack; raises ValueError where the tensors do not fit together or are not of the canonical form."""
        places_NQS, linked_NQS = _unpack_metadata(tensors["metadata"], in_features)
        shape = (len(places_NQS), in_features)
        width = places_NQS.shape[1] * SLOTS // self.values.per_element
        if tensors["values"].shape != (shape[0], width):
            raise ValueError(f"values of shape {tensors['values'].shape}, not {(shape[0], width)}")
        slot_places = _slot_places(places_NQS, shape)
        slots = self.values.decode(dict(tensors) | {"values": tensors["values"].reshape(-1)}, slot_places)
        linked = linked_NQS.reshape(-1)
        if (slots[~linked] != 0).any():
            raise ValueError("values of slots without a link are not 0")
        rows, columns = slot_places.rows_S[linked], slot_places.columns_S[linked]
        weight_NK, mask_NK = np.zeros(shape, np.float32), np.zeros(shape, bool)
        weight_NK[rows, columns], mask_NK[rows, columns] = slots[linked], True
        return weight_NK, mask_NK

    def packed_bytes(self, out_features: int, in_features: int, links: int) -> int:
        """Two values and half a byte a group, whatever the links."""
        groups = -(-in_features // GROUP)
        values = self.values.packed_bytes(out_features * groups * SLOTS, (out_features, in_features), links)
        return out_features * -(-groups // 2) + values

    def function(self) -> onnx.FunctionProto:
        """The slots of a row go to their columns; one without a link brings its 0 to a column that has none."""
        node = helper.make_node
        nodes = [
            *in_features_constant(),
            *rounds(2),
            *_slot_table(),
            node("Shape", ["metadata"], ["N"], end=1),
            *self._slot_values(),
            *self._slot_columns(),
            node("Concat", ["N", "padded_K"], ["padded_shape"], axis=0),
            node("Mul", ["padded_shape", "round2"], ["padded_shape_in_time"]),
            filled("padded_shape_in_time", "zeros_float", 0, np.float32),
            node("Cast", ["zeros_float"], ["zeros"], to=TensorProto.INT8 if self.values.scaled else TensorProto.FLOAT),
            node("ScatterElements", ["zeros", "slot_columns", "slots"], ["stored"], axis=1),
            *self._weight(),
            *linear_tail(self.values, "N", "padded_K"),
        ]
        return make_function(self.op_type, self.tensor_names, nodes)

    def _slot_columns(self) -> list[onnx.NodeProto]:
        """Nodes that give `slot_columns`, int32, the columns of the slots of each row; `P`, the bytes of a row, and
        `padded_K`, the columns of so many bytes, int64 [1]."""
        node = helper.make_node
        return [
            node("Shape", ["metadata"], ["P_bytes"], start=1),
            constant("byte_columns_of_slots", [2 * GROUP], np.int64),
            node("Mul", ["P_bytes", "byte_columns_of_slots"], ["padded_K"]),
            node("Cast", ["metadata"], ["metadata_int32"], to=TensorProto.INT32),
            node("Gather", ["slot_table", "metadata_int32"], ["columns_in_bytes"]),
            node("Cast", ["byte_columns_of_slots"], ["byte_columns_int32"], to=TensorProto.INT32),
            node("Expand", ["byte_columns_int32", "P_bytes"], ["columns_of_bytes"]),
            node("CumSum", ["columns_of_bytes", "zero0"], ["columns_before"], exclusive=1),
            node("Unsqueeze", ["columns_before", "second"], ["columns_before_P1"]),
            node("Add", ["columns_in_bytes", "columns_before_P1"], ["columns_of_slots"]),
            node("Flatten", ["columns_of_slots"], ["columns_of_all_slots"], axis=1),
            # The last byte of a row of an odd number of groups has two slots that are not there.
            node("Shape", ["slots"], ["slot_count"], start=1),
            node("Slice", ["columns_of_all_slots", "first", "slot_count", "second"], ["slot_columns"]),
        ]

    def _slot_values(self) -> list[onnx.NodeProto]:
        """Nodes that give `slots`, the values of each row; what has no scale as float32."""
        node = helper.make_node
        if not self.values.scaled:
            return [node("Cast", ["values"], ["slots"], to=TensorProto.FLOAT)]
        if self.values.per_element == 1:
            return [node("Identity", ["values"], ["slots"])]
        return [
            *halves("values"),
            node("Concat", ["N", "last"], ["slots_shape"], axis=0),
            node("Reshape", ["halves", "slots_shape"], ["slots"]),
        ]

    def _weight(self) -> list[onnx.NodeProto]:
        """Nodes from `stored`, whole bytes of columns, to `weight_NK`."""
        if self.values.per_element == 1:
            return row_scaled(self.values, "stored")
        return [
            helper.make_node("Concat", ["last", "byte_columns_of_slots"], ["bytes_shape"], axis=0),
            helper.make_node("Reshape", ["stored", "bytes_shape"], ["stored_B8"]),
            *byte_scaled("stored_B8", "metadata", "round2"),
            helper.make_node("Reshape", ["scaled_B8", "padded_shape"], ["weight_NK"]),
        ]


NM24_LAYOUTS: dict[str, Nm24Layout] = {
    layout.name: layout for layout in (Nm24Layout(values) for values in VALUE_TYPES.values())
}
"""By name. Apart from `LAYOUTS`, whose members hold any mask or are smaller, and have kernels in the op library."""


def links_per_group(mask_NK: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Links in each group of four columns, [N, Q]; a short last group counts what it has."""
    return _grouped(mask_NK).sum(axis=2)


def is_two_of_four(mask_NK: NDArray[np.bool_]) -> bool:
    """Whether no group of four columns has more than two links."""
    return not (links_per_group(mask_NK) > SLOTS).any()


def check_two_of_four(mask_NK: NDArray[np.bool_]) -> None:
    """Raise ValueError, naming the first group at fault, where a group has more than two links."""
    crowded_NQ = links_per_group(mask_NK) > SLOTS
    if crowded_NQ.any():
        row, group = np.argwhere(crowded_NQ)[0]
        raise ValueError(
            f"{np.count_nonzero(crowded_NQ)} groups of {GROUP} columns have more than {SLOTS} links, the first in row "
            f"{row} from column {group * GROUP}; permute the columns, or split off a residual"
        )


def fitting_links(mask_NK: NDArray[np.bool_]) -> int:
    """The links that a best two of every four columns hold."""
    return int(np.minimum(links_per_group(mask_NK), SLOTS).sum())


def _grouped(mask_NK: NDArray[np.bool_]) -> NDArray[np.bool_]:
    rows, columns = mask_NK.shape
    groups = -(-columns // GROUP)
    return np.pad(mask_NK, [(0, 0), (0, groups * GROUP - columns)]).reshape(rows, groups, GROUP)


def _slots(mask_NK: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Place in its group [N, Q, 2] of each slot, as the metadata has it, and whether it is linked."""
    mask_NQ4 = _grouped(mask_NK)
    places_NQS = np.argsort(~mask_NQ4, axis=2, kind="stable")[..., :SLOTS]
    linked_NQS = np.take_along_axis(mask_NQ4, places_NQS, axis=2)
    single_NQ = linked_NQS[..., 0] & ~linked_NQS[..., 1]
    places_NQS[single_NQ, 1] = places_NQS[single_NQ, 0]
    places_NQS[~linked_NQS[..., 0]] = _NO_LINK
    return places_NQS, linked_NQS


def _slot_places(places_NQS: NDArray[np.int64], shape: tuple[int, ...]) -> Places:
    """Row and column of each slot; one without a link beyond the last column counts to that column."""
    rows, groups, _ = places_NQS.shape
    columns = places_NQS + GROUP * np.arange(groups)[:, None]
    row_of_slot = np.repeat(np.arange(rows), groups * SLOTS)
    return Places(row_of_slot, np.minimum(columns, shape[1] - 1).reshape(-1), shape)


def _pack_metadata(places_NQS: NDArray[np.int64], linked_NQS: NDArray[np.bool_]) -> NDArray[np.uint8]:
    codes_NQ = (places_NQS[..., 0] | places_NQS[..., 1] << 2).astype(np.uint8)
    even_NQ = np.pad(codes_NQ, [(0, 0), (0, codes_NQ.shape[1] % 2)])
    return (even_NQ[:, ::2] | even_NQ[:, 1::2] << 4).astype(np.uint8)


def _unpack_metadata(metadata: NDArray[np.uint8], in_features: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    groups = -(-in_features // GROUP)
    if metadata.ndim != 2 or metadata.shape[1] != -(-groups // 2):
        raise ValueError(f"metadata of shape {metadata.shape} does not hold rows of {groups} groups")
    codes = np.stack([metadata & 15, metadata >> 4], axis=2).reshape(len(metadata), -1)
    if codes[:, groups:].any():
        raise ValueError("the unused half of a row's last byte is not 0")
    places_NQS = np.stack([codes & 3, codes >> 2], axis=2)[:, :groups].astype(np.int64)
    first, second = places_NQS[..., 0], places_NQS[..., 1]
    empty = (first == _NO_LINK[0]) & (second == _NO_LINK[1])
    if ((first > second) & ~empty).any():
        raise ValueError("the places of a group do not ascend")
    linked_NQS = np.stack([~empty, first < second], axis=2)
    if ((places_NQS + GROUP * np.arange(groups)[:, None] >= in_features) & linked_NQS).any():
        raise ValueError(f"links beyond the {in_features} columns")
    return places_NQS, linked_NQS


def _slot_table() -> list[onnx.NodeProto]:
    """Nodes that give `slot_table`, int32 [256, 4]: the column of a byte's eight that each of its slots goes to.

    Where a group names one place twice, its second slot, which has no link, goes to the place after it.
    """
    node = helper.make_node
    return [
        constant("byte_count", [256], np.int64),
        filled("byte_count", "each_byte", 1, np.int32),
        node("CumSum", ["each_byte", "zero0"], ["byte_numbers"], exclusive=1),
        node("Unsqueeze", ["byte_numbers", "second"], ["bytes"]),
        constant("weights_of_first", [1, GROUP**2], np.int32),
        constant("weights_of_second", [GROUP, GROUP**3], np.int32),
        constant("place_count", GROUP, np.int32),
        constant("columns_of_groups", [0, GROUP], np.int32),
        node("Div", ["bytes", "weights_of_first"], ["first_shifted"]),
        node("Mod", ["first_shifted", "place_count"], ["first_places"]),
        node("Div", ["bytes", "weights_of_second"], ["second_shifted"]),
        node("Mod", ["second_shifted", "place_count"], ["second_named"]),
        node("Equal", ["first_places", "second_named"], ["is_one_link"]),
        node("Cast", ["is_one_link"], ["places_on"], to=TensorProto.INT32),
        node("Add", ["second_named", "places_on"], ["second_moved"]),
        node("Mod", ["second_moved", "place_count"], ["second_places"]),
        node("Add", ["first_places", "columns_of_groups"], ["first_columns"]),
        node("Add", ["second_places", "columns_of_groups"], ["second_columns"]),
        node("Unsqueeze", ["first_columns", "last"], ["first_columns_1"]),
        node("Unsqueeze", ["second_columns", "last"], ["second_columns_1"]),
        node("Concat", ["first_columns_1", "second_columns_1"], ["columns_by_group"], axis=2),
        node("Flatten", ["columns_by_group"], ["slot_table"], axis=1),
    ]
