"""Lines of the report: what is said of a weight, and of each layer that uses it.

Legend: N out_features, K in_features.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from .choosing import Decision, digest
from .expansions import Expansion, Outcome
from .files import quoted
from .layer_check import LayerError
from .left_weights import Facts
from .linears import Left, Linear, layer_title, weight_title
from .report import PackedLayer
from .weights import chain_words, stored_bytes


@dataclass(frozen=True)
class Weight:
    """A weight that was read, as its first layer uses it.

    `values_NK` has +0 for every zero; `minus_zeros` counts those that were -0. `stays` says what else reads the dense
    weight, None where nothing does. `element_type` is that of the weight in the file.
    """

    layer: Linear
    values_NK: NDArray[np.float32]
    mask_NK: NDArray[np.bool_]
    minus_zeros: int
    stays: str | None
    element_type: int = TensorProto.FLOAT

    @cached_property
    def key(self) -> str:
        """What tells weights apart. Function bodies cannot see the main graph's tensors: each has its own copy."""
        place = f"{self.layer.x_shape} {self.layer.strides}" if self.layer.is_convolution else ""
        return f"{digest(self.values_NK)} {self.element_type} {self.layer.body.root.title} {place}"


def weight_row(weight: Weight, decision: Decision, error: LayerError | None) -> PackedLayer:
    """The line of the first layer that uses a weight."""
    layer, times, packed = weight.layer, decision.times, decision.layout is not None
    return PackedLayer(
        name=layer_title(layer),
        weight=weight_title(layer),
        op_type=layer.node.op_type,
        out_features=weight.mask_NK.shape[0],
        in_features=weight.mask_NK.shape[1],
        links=int(np.count_nonzero(weight.mask_NK)),
        layout="dense" if decision.layout is None else decision.layout.name,
        values="as stored" if decision.layout is None else decision.layout.values.name,
        bytes=decision.packed_bytes,
        stored_bytes=stored_bytes(layer.weight),
        reason="; ".join([decision.reason, *_remarks(weight, packed)]),
        dense_time=None if times is None else times.dense,
        packed_time=None if times is None else times.packed,
        time_unit=None if times is None else times.unit,
        weight_error=None if error is None else error.weight,
        output_error=None if error is None else error.output,
    )


def expansion_row(expansion: Expansion, outcome: Outcome) -> PackedLayer:
    """The line of an operator that can be written out, and is packed or left."""
    decision, written = outcome.decision, outcome.written
    times, layer = decision.times, Left(expansion.body, expansion.places[0], expansion.weight, "")
    names = [] if written is None else [item.name for item in written.layouts]
    values = [] if written is None else [item.values.name for item in written.layouts]
    rows, columns = outcome.shape if len(outcome.shape) == 2 else (None, None)
    return PackedLayer(
        name=layer_title(layer),
        weight=weight_title(layer),
        op_type=layer.node.op_type,
        out_features=rows,
        in_features=columns,
        links=outcome.links,
        layout=" and ".join(dict.fromkeys(names)) or "dense",
        values=" and ".join(dict.fromkeys(values)) or "as stored",
        bytes=decision.packed_bytes,
        stored_bytes=expansion.stored_bytes,
        reason=decision.reason,
        dense_time=None if times is None else times.dense,
        packed_time=None if times is None else times.packed,
        time_unit=None if times is None else times.unit,
        weight_error=None if written is None else outcome.errors[0],
        output_error=None if written is None else outcome.errors[1],
        weight_shape=None if rows is not None else outcome.shape,
    )


def weight_rows(row: PackedLayer, layers: list[tuple[Left, Facts | None]]) -> list[PackedLayer]:
    """The lines of all weights of an operator, of which `row` is the line: what is packed counts at the first."""
    if len(layers) == 1:
        return [row]
    lines: list[PackedLayer] = []
    for layer, facts in layers:
        size = 0 if layer.weight is None else stored_bytes(layer.weight)
        line = replace(row, weight=weight_title(layer), out_features=None, in_features=None, stored_bytes=size)
        shape, links = (None, None) if facts is None else facts
        line = replace(line, weight_shape=shape, links=links, bytes=size)
        if row.packed:
            line = replace(line, bytes=0 if lines else row.bytes, shared_with=row.name if lines else None)
        lines.append(line if not lines else replace(line, dense_time=None, packed_time=None, time_unit=None))
    return lines


def _remarks(weight: Weight, packed: bool) -> list[str]:
    remarks = []
    if chain := chain_words(weight.layer.weight):
        remarks.append(f"the weight is the result of {chain}")
    if packed and weight.minus_zeros:
        remarks.append(f"{weight.minus_zeros:,} weights of -0 are stored as no links, and count as +0")
    if packed and weight.stays:
        remarks.append(f"{weight.stays}, for which it is decoded when the file is loaded")
    return remarks


def shared_row(row: PackedLayer, layer: Linear) -> PackedLayer:
    """The line of a layer that uses the weight of another line; its bytes count there."""
    if row.name == layer_title(layer):
        return row
    first = quoted(row.name)
    return replace(
        row,
        name=layer_title(layer),
        weight=weight_title(layer),
        op_type=layer.node.op_type,
        bytes=0,
        stored_bytes=0,
        reason=f"shares the packed copy of {first}" if row.packed else f"left: the same weight as {first}, see there",
        shared_with=row.name,
    )


def left_row(layer: Left | Linear, reason: str, facts: Facts | None = None) -> PackedLayer:
    """The line of a layer that has no packed form, with what is known of its weight."""
    size = 0 if layer.weight is None else stored_bytes(layer.weight)
    return PackedLayer(
        name=layer_title(layer),
        weight=weight_title(layer),
        op_type=layer.node.op_type,
        out_features=None,
        in_features=None,
        links=None if facts is None else facts[1],
        layout="dense",
        values="as stored",
        bytes=size,
        stored_bytes=size,
        reason=reason,
        weight_shape=None if facts is None else facts[0],
    )
