"""Pruning anyone's ONNX file by magnitude: not to keep what the model knows, but to have real shapes with zeros.

Each weight of a product, convolution or recurrent layer loses its smallest values on its own. Embeddings stay.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from ..export.foreign import Document, open_document
from ..export.foreign.bodies import Body, all_bodies
from ..export.foreign.operators import operator, weight_places, zero_point_name
from ..export.foreign.weights import Derived, NotConstant, Stored, load, parts_of, source_of, trace, trace_stored

_KEPT = {("", "Gather"), ("com.microsoft", "EmbedLayerNormalization"), ("com.microsoft", "GatherBlockQuantized")}
_SMALLEST = 1024
"""Elements below which a weight is not worth a zero."""


def prune_file(source: Path, target: Path, sparsity: float) -> int:
    """Write the model with a share of each weight set to zero; returns how many weights were pruned.

    Raises:
        InputError: the file is unsound.
    """
    with open_document(source) as document:
        pruned = {}
        for body in all_bodies(document.proto):
            for node in body.nodes:
                for place in () if operator(node) in _KEPT else weight_places(node):
                    found = _weight(body, node.input[place])
                    if found is not None and id(found[0]) not in pruned:
                        zero = _zero(body, zero_point_name(node), found[1], document)
                        _prune(found[0], load(Stored(body, "", found[0]), document), zero, sparsity)
                        pruned[id(found[0])] = found[0]
        target.write_bytes(document.proto.SerializeToString())
    return len(pruned)


def _weight(body: Body, name: str) -> tuple[TensorProto, list[Derived]] | None:
    """The stored tensor that a weight is made of, and the steps to it; None where it is none, or small."""
    constant = trace(body, name)
    if isinstance(constant, NotConstant):
        return None
    source = source_of(constant)
    if not isinstance(source, Stored) or not isinstance(source.tensor, TensorProto):
        return None
    tensor = source.tensor
    large = len(tensor.dims) >= 2 and np.prod(list(tensor.dims)) >= _SMALLEST
    inline = tensor.data_location != TensorProto.EXTERNAL
    return (tensor, [part for part in parts_of(constant) if isinstance(part, Derived)]) if large and inline else None


def _zero(body: Body, name: str, steps: list[Derived], document: Document) -> NDArray:
    """The number that stands for zero: of DequantizeLinear, or of the operator itself."""
    for step in steps:
        point = step.inputs[2] if len(step.inputs) > 2 else None
        if point is not None:
            return load(point, document).reshape(-1)[:1]
    stored = trace_stored(body, name) if name else None
    return np.zeros(1) if stored is None else stored.load(document).reshape(-1)[:1]


def _prune(tensor: TensorProto, array: NDArray, zero: NDArray, sparsity: float) -> None:
    size = np.abs(array.astype(np.float64) - zero)
    limit = np.partition(size.reshape(-1), int(sparsity * size.size))[int(sparsity * size.size)]
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(np.where(size < limit, zero.astype(array.dtype), array), name))
