"""Packed linear layers in a graph for TensorRT: a node that is a plugin where one is registered, else its own function.

Legend: N out_features, K in_features, Z links, G groups of four columns, Q blocks, b block size.

The node's name and inputs are those of the plugin (`kernels/gpu/plugins.py`). The function of the same name decodes the
tensors with standard operators that NVIDIA's parser takes, and multiplies; it is dense in time. From TensorRT 10.7 on a
registered plugin goes before a function of its name, so one file serves both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from ...kernels.gpu.packing import GROUP, PACKERS, SLOTS, GpuWeight
from ...kernels.gpu.plugins import NAMESPACE, plugin_name, plugin_tensors
from .ordering import Orders, in_order
from .typed_graph import OPSET, Precision, TypedGraph

DOMAIN = "ai.hebbline.gpu"
_ATTRIBUTES = ("in_features", "out_features", "block_size", "plugin_namespace", "plugin_version")
_SEARCH_STEPS = 20
"""Doublings of the binary search for a link's row: up to 2^20 rows."""
_COLUMNS = 1 << 16
"""What 16 bit wide columns can number."""


class PackedGraph(TypedGraph):
    """A graph some of whose linear layers are packed nodes.

    Args:
        precision: of every number. masks: bool [N, K] of each sparse layer. forms: by name, the layers to pack, and the
        form of `kernels/gpu/packing` of each. orders: by name, the order in which a layer gathers its inputs.
    """

    def __init__(
        self,
        precision: Precision,
        masks: Mapping[str, NDArray[np.bool_]],
        forms: Mapping[str, str],
        orders: Orders,
    ) -> None:
        super().__init__(precision)
        self._masks, self._forms, self._orders = masks, forms, orders

    def linear(self, x: str, name: str, weight_NK: NDArray, bias_N: NDArray | None, output: str) -> str:
        """See `TypedGraph.linear`; raises ValueError where a form cannot hold the layer (see `add_packed_linear`)."""
        order_K = self._orders.get(name)
        weight_NK = in_order(weight_NK, order_K)
        if order_K is not None:
            x = self.node("Gather", [x, self.constant(f"{name}.order", order_K)], f"{name}.inputs", axis=-1)
        if name not in self._forms:
            return super().linear(x, name, weight_NK, bias_N, output)
        mask_NK = in_order(self._masks[name], order_K)
        packed = PACKERS[self._forms[name]](linked_weight(weight_NK, mask_NK, self.precision), mask_NK)
        product = output if bias_N is None else f"{output}.product"
        add_packed_linear(self, x, name, packed, product)
        if bias_N is None:
            return product
        return self.node("Add", [product, self.weight(f"{name}.bias", bias_N)], output)


def linked_weight(weight_NK: NDArray, mask_NK: NDArray[np.bool_], precision: Precision) -> NDArray:
    """The weight in a precision, +0 where there is no link (a weight there may be -0)."""
    return np.where(mask_NK, weight_NK, np.float32(0)).astype(precision.numpy)


def holds(out_features: int, in_features: int) -> bool:
    """Whether packed nodes take layers of this size."""
    return out_features < 1 << _SEARCH_STEPS and in_features <= _COLUMNS


def add_packed_linear(graph: TypedGraph, x: str, name: str, weight: GpuWeight, output: str) -> str:
    """Y = X W^T for layer `name`, packed; returns the output's name.

    Raises:
        ValueError: the weight's values are not of the graph's precision, or it has 2^20 rows or more, or over 65,536
            columns.
    """
    tensors = plugin_tensors(weight)
    if weight.form != "gap8" and tensors["values"].dtype != graph.precision.numpy:
        raise ValueError(f"layer '{name}': values are {tensors['values'].dtype} in a graph of {graph.precision.name}")
    if not holds(weight.out_features, weight.in_features):
        raise ValueError(
            f"layer '{name}' is {weight.out_features} by {weight.in_features}; the plugins take fewer than "
            f"{1 << _SEARCH_STEPS} rows and up to {_COLUMNS} columns"
        )
    # TensorRT has no empty constants: a weight without links gets one that no offset points to.
    stored = {
        part: array if array.size else np.zeros((1, *array.shape[1:]), array.dtype) for part, array in tensors.items()
    }
    names = [graph.constant(f"{name}.{part}", array) for part, array in stored.items()]
    operator = plugin_name(weight.form)
    graph.functions[operator] = packed_function(weight.form, list(tensors))
    block_size = weight.tensors["values"].shape[-1] if weight.form == "block" else 0
    return graph.node(
        operator,
        [x, *names],
        output,
        DOMAIN,
        node_name=name,
        in_features=weight.in_features,
        out_features=weight.out_features,
        block_size=block_size,
        plugin_namespace=NAMESPACE,
        plugin_version="1",
    )


def packed_function(form: str, tensors: Sequence[str]) -> onnx.FunctionProto:
    """The function of a form's operator; `tensors` are the names of its inputs after X."""
    body = _Body()
    decode = {"bitmask": _bitmask, "csr": _csr, "block": _block, "nm24": _nm24, "gap": _bitmask, "gap8": _gap8}[form]
    transposed = body("Transpose", decode(body), perm=[1, 0])
    body.nodes.append(helper.make_node("MatMul", ["X", transposed], ["Y"]))
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(
        DOMAIN, plugin_name(form), ["X", *tensors], ["Y"], body.nodes, opsets, attributes=list(_ATTRIBUTES)
    )


class _Body:
    """Nodes of a function, each with one output whose name is made up. `N`, `K` and `b` are int64 [1]."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.N, self.K, self.b = (self._attribute(name) for name in ("out_features", "in_features", "block_size"))

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, value: ArrayLike, kind: type = np.int64) -> str:
        return self("Constant", value=numpy_helper.from_array(np.asarray(value, kind)))

    def shape(self, *sizes: str) -> str:
        return self("Concat", *sizes, axis=0)

    def first(self, tensor: str, count: str, axis: int = 0) -> str:
        """The first `count` along an axis."""
        return self("Slice", tensor, self.constant([0]), count, self.constant([axis]))

    def pieces(self, words: str, width: int) -> str:
        """Unsigned integers of `width` bits out of int32 words, low ones first, as a flat int64 tensor."""
        wide = self("Cast", words, to=TensorProto.INT64)
        is_negative = self("Less", wide, self.constant(0))
        unsigned = self("Where", is_negative, self("Add", wide, self.constant(1 << 32)), wide)
        steps = [1 << shift for shift in range(0, 32, width)]
        column = self("Unsqueeze", self("Reshape", unsigned, self.constant([-1])), self.constant([1]))
        parts = self("Mod", self("Div", column, self.constant(steps)), self.constant(1 << width))
        return self("Reshape", parts, self.constant([-1]))

    def rows(self, offsets: str, count: str, row_count: str) -> str:
        """The row of each of `count` entries: by binary search the last of `row_count` rows that begins by then."""
        entries = self("Range", self.constant(0), self("Squeeze", count), self.constant(1))
        place = self("Mul", entries, self.constant(0))
        for step in reversed(range(_SEARCH_STEPS)):
            ahead = self("Add", place, self.constant(1 << step))
            inside = self("Min", ahead, row_count)
            offset = self("Cast", self("Gather", offsets, inside), to=TensorProto.INT64)
            exists = self("LessOrEqual", ahead, row_count)
            is_reached = self("And", exists, self("LessOrEqual", offset, entries))
            place = self("Where", is_reached, ahead, place)
        return place

    def zero(self) -> str:
        """A scalar 0 of X's type."""
        return self("CastLike", self.constant(0.0, np.float32), "X")

    def _attribute(self, name: str) -> str:
        output = f"attribute_{name}"
        node = helper.make_node("Constant", [], [output])
        node.attribute.append(onnx.AttributeProto(name="value_int", ref_attr_name=name, type=onnx.AttributeProto.INT))
        self.nodes.append(node)
        return self("Reshape", output, self.constant([1]))


def _bitmask(body: _Body, values: str = "values") -> str:
    """Places of links: the row's start, and a running count along the row, which float32 holds exactly.

    The slots of gap-coded rows are such a bitmask, too; their steps are not read.
    """
    row_bytes = body("Div", body("Add", body.K, body.constant([7])), body.constant([8]))
    bytes_flat = body.first(body.pieces("mask", 8), body("Mul", body.N, row_bytes))
    shifted = body("Div", body("Unsqueeze", bytes_flat, body.constant([1])), body.constant(1 << np.arange(8)))
    bits = body("Mod", shifted, body.constant(2))
    padded = body("Reshape", bits, body.shape(body.N, body.constant([-1])))
    bits_NK = body.first(padded, body.K, axis=1)
    counts = body("CumSum", body("Cast", bits_NK, to=TensorProto.FLOAT), body.constant(1), exclusive=1)
    tiles = body("Reshape", "tile_offsets", body.shape(body.N, body.constant([-1])))
    starts = body("Cast", body.first(tiles, body.constant([1]), axis=1), to=TensorProto.INT64)
    places = body("Add", body("Cast", counts, to=TensorProto.INT64), starts)
    # Behind the last link of the last row a place lies one past the values.
    padded_values = body("Concat", values, body("Reshape", body.zero(), body.constant([1])), axis=0)
    is_link = body("Cast", bits_NK, to=TensorProto.BOOL)
    return body("Where", is_link, body("Gather", padded_values, places), body.zero())


def _gap8(body: _Body) -> str:
    """The slots of gap-coded rows are a bitmask; values are signed bytes over a scale for each row."""
    unsigned = body.pieces("values", 8)
    is_negative = body("GreaterOrEqual", unsigned, body.constant(128))
    signed = body("Where", is_negative, body("Sub", unsigned, body.constant(256)), unsigned)
    integers_NK = _bitmask(body, body("CastLike", signed, "X"))
    scales_N1 = body("Unsqueeze", "row_scales", body.constant([1]))
    scaled = body("Mul", body("Cast", integers_NK, to=TensorProto.FLOAT), scales_N1)
    return body("CastLike", scaled, "X")


def _csr(body: _Body) -> str:
    return _scattered(body, "values", "columns", "row_offsets")


def _scattered(body: _Body, values: str, columns: str, offsets: str) -> str:
    """A CSR weight: each link scattered to row * K + column."""
    count = body("Cast", body("Gather", offsets, body.N), to=TensorProto.INT64)
    links = body.first(body.pieces(columns, 16), count)
    places = body("Add", body("Mul", body.rows(offsets, count, body.N), body.K), links)
    empty = body("Expand", body.zero(), body("Mul", body.N, body.K))
    flat = body("ScatterElements", empty, places, body.first(values, count), axis=0)
    return body("Reshape", flat, body.shape(body.N, body.K))


def _block(body: _Body) -> str:
    """Blocks scattered into a grid of zero blocks, the grid laid out as a matrix, the padding cut off."""
    rows, columns = (
        body("Div", body("Sub", body("Add", size, body.b), body.constant([1])), body.b) for size in (body.N, body.K)
    )
    count = body("Cast", body("Gather", "row_offsets", rows), to=TensorProto.INT64)
    block_rows = body.rows("row_offsets", count, rows)
    block_columns = body("Cast", body.first("columns", count), to=TensorProto.INT64)
    places = body("Unsqueeze", body("Add", body("Mul", block_rows, columns), block_columns), body.constant([1]))
    blocks = body.first(body("Reshape", "values", body.shape(body.constant([-1]), body.b, body.b)), count)
    grid_shape = body.shape(body("Mul", rows, columns), body.b, body.b)
    grid = body("ScatterND", body("Expand", body.zero(), grid_shape), places, blocks)
    by_blocks = body("Reshape", grid, body.shape(rows, columns, body.b, body.b))
    by_rows = body("Transpose", by_blocks, perm=[0, 2, 1, 3])
    padded = body("Reshape", by_rows, body.shape(body("Mul", rows, body.b), body("Mul", columns, body.b)))
    return body.first(body.first(padded, body.N), body.K, axis=1)


def _nm24(body: _Body) -> str:
    """Each group's slots compared with its four places; and the residual."""
    group_count = body("Div", body("Add", body.K, body.constant([GROUP - 1])), body.constant([GROUP]))
    row_bytes = body("Div", body("Add", group_count, body.constant([1])), body.constant([2]))
    bytes_flat = body.first(body.pieces("metadata", 8), body("Mul", body.N, row_bytes))
    shifted = body("Div", body("Unsqueeze", bytes_flat, body.constant([1])), body.constant([1, 16]))
    halves = body("Mod", shifted, body.constant(16))
    codes = body.first(body("Reshape", halves, body.shape(body.N, body.constant([-1]))), group_count, axis=1)
    codes_NG1 = body("Unsqueeze", codes, body.constant([2]))
    first, second = (body("Mod", codes_NG1, body.constant(GROUP)), body("Div", codes_NG1, body.constant(GROUP)))
    places = body.constant(np.arange(GROUP))
    slots = body("Reshape", "values", body.shape(body.N, group_count, body.constant([SLOTS])))
    slot_values = [body("Gather", slots, body.constant([slot]), axis=2) for slot in range(SLOTS)]
    is_second = body("And", body("Equal", places, second), body("Less", first, second))
    rest = body("Where", is_second, slot_values[1], body.zero())
    grouped = body("Where", body("Equal", places, first), slot_values[0], rest)
    kept = body.first(body("Reshape", grouped, body.shape(body.N, body.constant([-1]))), body.K, axis=1)
    return body("Add", kept, _scattered(body, "residual_values", "residual_columns", "residual_offsets"))
