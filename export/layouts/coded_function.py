"""The values of a coded layout in standard operators: from codes, powers and fractions to the values of all links.

Legend: S links, E of them stored as they are, C = S - E coded, b bits of a code, P = ceil(S / 8), R bytes of sign and
fraction.

Arithmetic makes the coded values, and nothing rounds: they are normal numbers, products of a power of two and a
significand of as many bits as the type has. What is no normal number is only moved.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper

from .functions import constant


def coded_values() -> list[onnx.NodeProto]:
    """Nodes that give `S`, the number of links, at once, and `stored_S`, their values, in the fourth round of folding
    (see `rounds`). Places in the mask must wait as long, for memory's sake.

    They read `bits` of `links_before_bytes`, and the scalars of `in_features_constant`.
    """
    return [*_link_codes(), *_link_order(), *_coded_floats(), *_in_order()]


def _link_codes() -> list[onnx.NodeProto]:
    """First round: `codes_S`, int32; a table has the bits of each byte, worth what their plane is."""
    node = helper.make_node
    return [
        node("Shape", ["codes"], ["planes"], start=0, end=1),
        node("Shape", ["values"], ["E"]),
        node("Shape", ["fractions"], ["C"], start=0, end=1),
        node("Add", ["E", "C"], ["S"]),
        constant("plane_worths", [1, 2, 4, 8, 16, 32, 64, 128], np.int32),
        node("Slice", ["plane_worths", "first", "planes"], ["worths"]),
        constant("worth_shape", [-1, 1, 1], np.int64),
        node("Reshape", ["worths", "worth_shape"], ["worths_b11"]),
        node("Mul", ["bits", "worths_b11"], ["bits_by_plane"]),
        constant("table_shape", [-1, 8], np.int64),
        node("Reshape", ["bits_by_plane", "table_shape"], ["code_table"]),
        constant("table_rows", [256], np.int64),
        node("Expand", ["table_rows", "planes"], ["rows_of_planes"]),
        node("CumSum", ["rows_of_planes", "zero0"], ["plane_starts"], exclusive=1),
        node("Cast", ["plane_starts"], ["plane_starts_int32"], to=TensorProto.INT32),
        node("Unsqueeze", ["plane_starts_int32", "second"], ["plane_starts_b1"]),
        node("Cast", ["codes"], ["code_bytes"], to=TensorProto.INT32),
        node("Add", ["code_bytes", "plane_starts_b1"], ["code_rows"]),
        node("Gather", ["code_table", "code_rows"], ["code_bits"]),
        node("ReduceSum", ["code_bits", "first"], ["codes_P8"], keepdims=0),
        node("Reshape", ["codes_P8", "last"], ["codes_padded"]),
        node("Slice", ["codes_padded", "first", "S"], ["codes_S"]),
    ]


def _link_order() -> list[onnx.NodeProto]:
    """Second round: where the value of each link is among the stored ones with the coded ones behind, and the powers
    of these."""
    node = helper.make_node
    return [
        constant("uncoded", [0], np.int32),
        node("Cast", ["round2"], ["round2_int32"], to=TensorProto.INT32),
        node("Mul", ["uncoded", "round2_int32"], ["uncoded_in_time"]),
        node("Equal", ["codes_S", "uncoded_in_time"], ["is_stored"]),
        node("Cast", ["is_stored"], ["is_stored_int32"], to=TensorProto.INT32),
        node("CumSum", ["is_stored_int32", "zero0"], ["stored_so_far"]),
        constant("next", 1, np.int32),
        node("Sub", ["stored_so_far", "next"], ["stored_places"]),
        node("Not", ["is_stored"], ["is_coded"]),
        node("Cast", ["is_coded"], ["is_coded_int32"], to=TensorProto.INT32),
        node("CumSum", ["is_coded_int32", "zero0"], ["coded_so_far"]),
        node("Cast", ["E"], ["E_int32"], to=TensorProto.INT32),
        node("Sub", ["E_int32", "next"], ["last_stored"]),
        node("Add", ["coded_so_far", "last_stored"], ["coded_places"]),
        node("Where", ["is_stored", "stored_places", "coded_places"], ["value_places"]),
        # Codes in the order of what they stand for; ONNX Runtime does not fold Compress.
        node("ScatterElements", ["codes_S", "value_places", "codes_S"], ["codes_out_of_order"], axis=0),
        node("Slice", ["codes_out_of_order", "E", "S"], ["codes_C"]),
    ]


def _coded_floats() -> list[onnx.NodeProto]:
    """Third round: `coded_C`. Sign and fraction f is from 0 to 2, from 1 on with the sign set: the number is 1 + f or
    -f, times its power. All of that is exact."""
    node = helper.make_node
    return [
        constant("byte_worths_4", [2.0**-31, 2.0**-23, 2.0**-15, 2.0**-7], np.float32),
        node("Shape", ["fractions"], ["R"], start=1, end=2),
        node("Mul", ["R", "last"], ["lowest_byte"]),
        constant("worths_end", [4], np.int64),
        node("Slice", ["byte_worths_4", "lowest_byte", "worths_end"], ["byte_worths"]),
        node("Cast", ["round3"], ["round3_float"], to=TensorProto.FLOAT),
        node("Mul", ["byte_worths", "round3_float"], ["byte_worths_in_time"]),
        node("Cast", ["fractions"], ["fraction_bytes"], to=TensorProto.FLOAT),
        node("Mul", ["fraction_bytes", "byte_worths_in_time"], ["fraction_parts"]),
        node("ReduceSum", ["fraction_parts", "second"], ["fraction_C"], keepdims=0),
        constant("whole", 1, np.float32),
        node("Less", ["fraction_C", "whole"], ["is_positive"]),
        node("Add", ["fraction_C", "whole"], ["positive_C"]),
        node("Neg", ["fraction_C"], ["negative_C"]),
        node("Where", ["is_positive", "positive_C", "negative_C"], ["significand_C"]),
        constant("no_power", [1], np.float32),
        node("Cast", ["powers"], ["powers_float"], to=TensorProto.FLOAT),
        node("Concat", ["no_power", "powers_float"], ["power_table"], axis=0),
        node("Mul", ["power_table", "round3_float"], ["power_table_in_time"]),
        node("Gather", ["power_table_in_time", "codes_C"], ["power_C"]),
        node("Mul", ["significand_C", "power_C"], ["coded_float_C"]),
        node("CastLike", ["coded_float_C", "values"], ["coded_C"]),
    ]


def _in_order() -> list[onnx.NodeProto]:
    """Fourth round: the values of the links in their order."""
    node = helper.make_node
    return [
        node("Concat", ["values", "coded_C"], ["values_out_of_order"], axis=0),
        node("Cast", ["round4"], ["round4_int32"], to=TensorProto.INT32),
        node("Mul", ["value_places", "round4_int32"], ["value_places_in_time"]),
        node("Gather", ["values_out_of_order", "value_places_in_time"], ["stored_S"]),
    ]
