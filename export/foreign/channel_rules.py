"""What each operator does with channels. Of an operator that has no rule, all inputs are needed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, defs, helper
from onnx.reference import ReferenceEvaluator

from .channel_survey import Survey, attributes, given
from .channel_weights import (
    Rule,
    batch_norm,
    convolution,
    gemm,
    instance_norm,
    matmul,
    transposed_convolution,
)
from .channels import Channels, Cut
from .operators import operator

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def apply_rule(survey: Survey, node: NodeProto) -> None:
    """Note what a node does; where there is no rule, or it does not know, the node needs all of its inputs."""
    rule = _RULES.get(operator(node))
    tracked = rule in _SOURCES or any(survey.channels(name) is not None for name in node.input)
    if rule is None or not tracked or not _is_complete(node) or not rule(survey, node):
        for name in node.input:
            survey.found.need(survey.channels(name))


def _is_complete(node: NodeProto) -> bool:
    """Whether a node of standard ONNX has what its operator needs: in an unsound file one may not."""
    domain, name = operator(node)
    if not defs.has(name, domain):
        return bool(node.input and node.output)
    schema = defs.get_schema(name, domain=domain)
    needed, types = node.input[: schema.min_input], {item.name: item.type for item in node.attribute}
    for name, known in schema.attributes.items():
        kind: Any = known.type
        if types.get(name, None if known.required else kind.value) != kind.value:
            return False
    return len(needed) == schema.min_input and all(needed) and len(node.output) >= schema.min_output


def _elementwise(survey: Survey, node: NodeProto) -> bool:
    """Every output is made of the inputs at the same place; a smaller one is repeated along the other axes."""
    tracked = [found for name in node.input if (found := survey.channels(name)) is not None]
    first = tracked[0]
    if len(node.output) != 1 or any((item.axis, item.size) != (first.axis, first.size) for item in tracked):
        return False
    operands: list[tuple[NDArray, NDArray[np.bool_]] | None] = []
    cuts = []
    for place, name in enumerate(node.input):
        operand = _operand(survey, name, first)
        if operand is None and name:
            return False
        operands.append(operand)
        array = None if survey.channels(name) is not None else survey.constant(name)
        if array is not None and _size_at(array.shape, first.axis) == first.size > 1:
            cuts.append(Cut(node, place, first.axis, first.places))
    known, constants = _evaluate(survey, node, operands, first)
    for other in tracked[1:]:
        survey.found.tie(first.places, other.places)
    survey.found.add(node.output[0], first.axis, known, constants, first.places)
    survey.found.cuts += cuts
    return True


def _operand(survey: Survey, name: str, first: Channels) -> tuple[NDArray, NDArray[np.bool_]] | None:
    """Numbers that an input has at each channel, and where they are known; None where it does not fit, or is absent."""
    unknown = np.zeros(first.size, first.constants.dtype), np.zeros(first.size, bool)
    if (channels := survey.channels(name)) is not None:
        return channels.constants, channels.known
    array = survey.constant(name)
    shape = survey.shape(name) if array is None and name else (None if array is None else array.shape)
    if shape is None:
        return None
    size = _size_at(shape, first.axis)
    if size not in (1, first.size):
        return None
    if array is None:
        return unknown if size == 1 else None
    if array.size != size:
        return unknown
    return array.reshape(-1) if array.ndim else array, np.ones(first.size, bool)


def _size_at(shape: Sequence[int | None], axis: int) -> int | None:
    """The size of an axis that is counted from the end; 1 where there is no such axis."""
    return shape[axis] if len(shape) >= -axis else 1


def _evaluate(
    survey: Survey, node: NodeProto, operands: Sequence[tuple[NDArray, NDArray[np.bool_]] | None], first: Channels
) -> tuple[NDArray[np.bool_], NDArray]:
    """The channels of which every input is known, and the operator's results there."""
    present = [item for item in operands if item is not None]
    known = np.logical_and.reduce([mask for _, mask in present])
    constants = np.zeros(first.size, first.constants.dtype)
    if known.any():
        results = _run(survey, node, [None if item is None else item[0] for item in operands])
        known &= results is not None
        constants = constants if results is None else np.broadcast_to(results.reshape(-1), (first.size,))
    if node.op_type == "Mul":  # what is multiplied by 0 is 0, as for the zeros of a weight
        zero = np.logical_or.reduce([mask & (array == 0) for array, mask in present])
        known, constants = known | zero, np.where(zero, 0, constants)
    return known, constants


def _run(survey: Survey, node: NodeProto, operands: Sequence[NDArray | None]) -> NDArray | None:
    """One node on small arrays, in ONNX's reference evaluator; None where that cannot do it."""
    given_arrays = {f"x{place}": array for place, array in enumerate(operands) if array is not None}
    names = ["" if array is None else f"x{place}" for place, array in enumerate(operands)]
    alone = helper.make_node(node.op_type, names, ["y"], domain=node.domain)
    alone.attribute.extend(node.attribute)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given_arrays.items()
    ]
    graph = helper.make_graph([alone], "alone", inputs, [helper.make_empty_tensor_value_info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", survey.document.opset)])
    try:
        with np.errstate(all="ignore"):
            (result,) = ReferenceEvaluator(model).run(None, given_arrays)
    except Exception:  # the evaluator has no exception class of its own; what it cannot compute counts as unknown
        return None
    return np.asarray(result)


def _cast(survey: Survey, node: NodeProto) -> bool:
    return attributes(node).get("to") in _FLOATS and _elementwise(survey, node)


def _zero_at_zero(survey: Survey, node: NodeProto) -> bool:
    """An activation that ONNX's reference evaluator does not know, and that is 0 at 0."""
    x = survey.channels(node.input[0])
    if x is None or len([name for name in node.input if name]) != 1:
        return False
    survey.found.add(node.output[0], x.axis, x.zero, x.constants, x.places)
    return True


def _dropout(survey: Survey, node: NodeProto) -> bool:
    """In inference it does nothing."""
    x = survey.channels(node.input[0])
    if x is None or given(node, 2) or any(node.output[1:]):
        return False
    survey.found.add(node.output[0], x.axis, x.known, x.constants, x.places)
    return True


def _passed(survey: Survey, node: NodeProto, axis: int, *, any_number: bool = False) -> bool:
    """The output's channels are the input's, on another axis; of what is known only zeros stay, or any number."""
    x = survey.channels(node.input[0])
    if x is None or any(node.output[1:]):
        return False
    survey.found.add(node.output[0], axis, x.known if any_number else x.zero, x.constants, x.places)
    return True


def _pool(survey: Survey, node: NodeProto) -> bool:
    """Pooling works on each channel alone. A mean of equal numbers may differ from them in its last bit."""
    x = survey.channels(node.input[0])
    if x is None or survey.position(x) != 1:
        return False
    return _passed(survey, node, x.axis, any_number="Max" in node.op_type)


def _transpose(survey: Survey, node: NodeProto) -> bool:
    x = survey.channels(node.input[0])
    perm: list[int] = list(attributes(node).get("perm", ()))
    if x is None or len(perm) < -x.axis:
        return False
    return _passed(survey, node, perm.index(len(perm) + x.axis) - len(perm), any_number=True)


def _reduce(survey: Survey, node: NodeProto) -> bool:
    """Over other axes than that of the channels."""
    x, options = survey.channels(node.input[0]), attributes(node)
    axes = options.get("axes") if len(node.input) < 2 else survey.constant(node.input[1])
    rank = survey.rank(node.input[0])
    if x is None or axes is None or rank is None or len(axes) == 0:
        return False
    reduced = {int(axis) % rank for axis in axes}
    if rank + x.axis in reduced:
        return False
    behind = sum(axis > rank + x.axis for axis in reduced)
    return _passed(survey, node, x.axis if options.get("keepdims", 1) else x.axis + behind)


def _squeeze(survey: Survey, node: NodeProto) -> bool:
    x, rank = survey.channels(node.input[0]), survey.rank(node.input[0])
    axes = survey.constant(given(node, 1))
    if x is None or axes is None or rank is None:
        return False
    removed = {int(axis) % rank for axis in axes.reshape(-1)}
    if rank + x.axis in removed:
        return False
    return _passed(survey, node, x.axis + sum(axis > rank + x.axis for axis in removed), any_number=True)


def _unsqueeze(survey: Survey, node: NodeProto) -> bool:
    x, rank = survey.channels(node.input[0]), survey.rank(node.input[0])
    axes = survey.constant(given(node, 1))
    if x is None or axes is None or rank is None:
        return False
    full = rank + axes.size
    added = {int(axis) % full for axis in axes.reshape(-1)}
    kept = [axis for axis in range(full) if axis not in added]
    return _passed(survey, node, kept[rank + x.axis] - full, any_number=True)


def _flatten(survey: Survey, node: NodeProto) -> bool:
    """[B, K, ...] to [B, K * ...]: each channel becomes as many as it has places."""
    x, shape = survey.channels(node.input[0]), survey.shape(node.input[0])
    if x is None or shape is None or len(shape) + x.axis != 1:
        return False
    if node.op_type == "Flatten":
        whole = attributes(node).get("axis", 1) == 1
    else:
        target = survey.constant(node.input[1])
        keeps_batch = target is not None and target.shape == (2,) and target[1] == -1 and target[0] in (0, shape[0])
        whole = keeps_batch and not (attributes(node).get("allowzero", 0) and target is not None and target[0] == 0)
    behind = shape[2:]
    if not whole or any(size is None or size < 1 for size in behind):
        return False
    count = int(np.prod([size or 0 for size in behind], dtype=np.int64))
    known, constants, places = (np.repeat(array, count) for array in (x.known, x.constants, x.places))
    survey.found.add(node.output[0], -1, known, constants, places)
    return True


def _resize(survey: Survey, node: NodeProto) -> bool:
    """By factors, of which that of the channels is 1."""
    x, scales = survey.channels(node.input[0]), survey.constant(given(node, 2))
    options = attributes(node)
    if x is None or scales is None or given(node, 3) or "axes" in options or len(scales) < -x.axis:
        return False
    if scales[x.axis] != 1 or options.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
        return False
    return _passed(survey, node, x.axis)


def _pad(survey: Survey, node: NodeProto) -> bool:
    """On other axes than that of the channels."""
    x, pads = survey.channels(node.input[0]), survey.constant(given(node, 1))
    value = survey.constant(given(node, 2)) if given(node, 2) else np.zeros(1)
    if x is None or pads is None or value is None or given(node, 3) or len(pads) % 2 or len(pads) < -2 * x.axis:
        return False
    rank = len(pads) // 2
    if pads[rank + x.axis] or pads[2 * rank + x.axis]:
        return False
    known = x.zero if not value.any() else np.zeros(x.size, bool)
    survey.found.add(node.output[0], x.axis, known, x.constants, x.places)
    return True


def _concat(survey: Survey, node: NodeProto) -> bool:
    """One set of channels behind the other, or the same channels at more places."""
    parts = [survey.channels(name) for name in node.input]
    known = [part for part in parts if part is not None]
    ranks = [survey.rank(name) for name in node.input]
    rank = next((rank for rank in ranks if rank is not None), None)
    if len(known) != len(parts) or rank is None or len({part.axis for part in known}) != 1:
        return False
    axis = int(attributes(node)["axis"])
    if (axis - rank if axis >= 0 else axis) == known[0].axis:
        arrays = [
            np.concatenate(items) for items in zip(*((p.known, p.constants, p.places) for p in known), strict=True)
        ]
        survey.found.add(node.output[0], known[0].axis, *arrays)
        return True
    if len({part.size for part in known}) != 1:
        return False
    for other in known[1:]:
        survey.found.tie(known[0].places, other.places)
    zero = np.logical_and.reduce([part.zero for part in known])
    survey.found.add(node.output[0], known[0].axis, zero, known[0].constants, known[0].places)
    return True


def _split(survey: Survey, node: NodeProto) -> bool:
    """The channels in parts, or each part with all channels."""
    x, rank = survey.channels(node.input[0]), survey.rank(node.input[0])
    if x is None or rank is None or not all(node.output):
        return False
    axis = int(attributes(node).get("axis", 0))
    if (axis - rank if axis >= 0 else axis) != x.axis:
        for name in node.output:
            survey.found.add(name, x.axis, x.known, x.constants, x.places)
        return True
    count = len(node.output)
    sizes = survey.constant(node.input[1]) if given(node, 1) else None
    if given(node, 1) and sizes is None:
        return False
    if sizes is None:
        step = -(-x.size // count)
        sizes = np.diff(np.minimum(np.arange(count + 1) * step, x.size))
    if len(sizes) != count or sizes.sum() != x.size or (sizes < 1).any():
        return False
    ends = np.cumsum(sizes)[:-1]
    parts = zip(*(np.split(array, ends) for array in (x.known, x.constants, x.places)), strict=True)
    outputs = [survey.found.add(name, x.axis, *part) for name, part in zip(node.output, parts, strict=True)]
    survey.found.splits.append((node, outputs))
    return True


_ELEMENTWISE = (
    {"Abs", "Add", "Ceil", "Celu", "Clip", "Div", "Elu", "Erf"}
    | {"Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log"}
    | {"Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal"}
    | {"Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt"}
    | {"Sub", "Sum", "Tanh", "ThresholdedRelu"}
)
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool")
_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
_SOURCES = (matmul, gemm, convolution, transposed_convolution)
"""Rules of operators whose channels are new."""
_RULES: dict[tuple[str, str], Rule] = {
    **{("", name): _elementwise for name in sorted(_ELEMENTWISE)},
    **{("com.microsoft", name): _zero_at_zero for name in ("Gelu", "FastGelu", "QuickGelu")},
    **{("", name): _pool for name in _POOLS},
    **{("", name): _reduce for name in _REDUCTIONS},
    ("", "BatchNormalization"): batch_norm,
    ("", "Cast"): _cast,
    ("", "Concat"): _concat,
    ("", "Conv"): convolution,
    ("", "ConvTranspose"): transposed_convolution,
    ("", "Dropout"): _dropout,
    ("", "Flatten"): _flatten,
    ("", "Gemm"): gemm,
    ("", "InstanceNormalization"): instance_norm,
    ("", "MatMul"): matmul,
    ("", "Pad"): _pad,
    ("", "Reshape"): _flatten,
    ("", "Resize"): _resize,
    ("", "Split"): _split,
    ("", "Squeeze"): _squeeze,
    ("", "Transpose"): _transpose,
    ("", "Unsqueeze"): _unsqueeze,
}
