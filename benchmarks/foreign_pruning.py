"""Pruning anyone's ONNX file by magnitude: not to keep what the model knows, but to have real shapes with zeros.

Each weight of a product, convolution or recurrent layer loses its smallest values on its own. Embeddings stay.
"""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from ..export.foreign import Document, open_document
from ..export.foreign.bodies import Body, all_bodies
from ..export.foreign.folding import fold_weights
from ..export.foreign.operators import operator, weight_places, zero_point_name
from ..export.foreign.weights import (
    Constant,
    Derived,
    Folded,
    NotConstant,
    Stored,
    load,
    parts_of,
    source_of,
    trace,
    trace_stored,
)

_KEPT = {("", "Gather"), ("com.microsoft", "EmbedLayerNormalization"), ("com.microsoft", "GatherBlockQuantized")}
_SMALLEST = 1024
"""Elements below which a weight is not worth a zero."""


def prune_file(source: Path, target: Path, sparsity: float) -> int:
    """Write the model with a share of each weight set to zero; returns how many weights were pruned.

    Raises:
        InputError: the file is unsound.
    """
    with open_document(source) as document, tempfile.TemporaryDirectory() as scratch:
        pruned = {}
        bodies = all_bodies(document.proto)
        fold_weights(document, bodies, Path(scratch))
        for body in bodies:
            for node in body.nodes:
                for place in () if operator(node) in _KEPT else weight_places(node):
                    constant = trace(body, node.input[place])
                    if isinstance(constant, NotConstant):
                        continue
                    found = _stored(constant) or _computed_from(constant)
                    if found is not None and id(found) not in pruned and _worth_zeros(found):
                        array = load(Stored(body, "", found), document)
                        size, zero = _sizes(constant, array, zero_point_name(node), body, document)
                        if _prune(found, array, size, zero, sparsity):
                            pruned[id(found)] = found
        target.write_bytes(document.proto.SerializeToString())
    return len(pruned)


def _stored(constant: Constant) -> TensorProto | None:
    """The tensor that a weight is, through transpositions, casts and DequantizeLinear; None where it is none."""
    source = source_of(constant)
    return source.tensor if isinstance(source, Stored) and isinstance(source.tensor, TensorProto) else None


def _computed_from(constant: Constant) -> TensorProto | None:
    """The one tensor of the shape of a weight that other nodes compute, as Cast and Mul by a scale; else None."""
    source = source_of(constant)
    if not isinstance(source, Folded):
        return None
    stored = [part.tensor for part in source.parts if isinstance(part, Stored)]
    like = [tensor for tensor in stored if isinstance(tensor, TensorProto) and tuple(tensor.dims) == source.array.shape]
    return like[0] if len(like) == 1 else None


def _worth_zeros(tensor: TensorProto) -> bool:
    large = len(tensor.dims) >= 2 and np.prod(list(tensor.dims)) >= _SMALLEST
    return bool(large and tensor.data_location != TensorProto.EXTERNAL)


def _sizes(
    constant: Constant, array: NDArray, zero_point: str, body: Body, document: Document
) -> tuple[NDArray, NDArray | None]:
    """The magnitudes of a stored weight, and the number that stands for zero in it; None where no number is seen to.

    Where nodes compute the weight, magnitudes are those of the result, and what is stored where that is zero is zero.
    """
    source = source_of(constant)
    if isinstance(source, Folded):
        zeros = np.unique(array[source.array == 0])
        return np.abs(source.array.astype(np.float64)), zeros if zeros.size == 1 else None
    steps = [part for part in parts_of(constant) if isinstance(part, Derived)]
    zero = _zero(body, zero_point, steps, document)
    return np.abs(array.astype(np.float64) - zero), zero


def _zero(body: Body, name: str, steps: list[Derived], document: Document) -> NDArray:
    """The number that stands for zero: of DequantizeLinear, or of the operator itself."""
    for step in steps:
        point = step.inputs[2] if len(step.inputs) > 2 else None
        if point is not None:
            return load(point, document).reshape(-1)[:1]
    stored = trace_stored(body, name) if name else None
    return np.zeros(1) if stored is None else stored.load(document).reshape(-1)[:1]


def _prune(tensor: TensorProto, array: NDArray, size: NDArray, zero: NDArray | None, sparsity: float) -> bool:
    if zero is None:
        return False
    limit = np.partition(size.reshape(-1), int(sparsity * size.size))[int(sparsity * size.size)]
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(np.where(size < limit, zero.astype(array.dtype), array), name))
    return True
