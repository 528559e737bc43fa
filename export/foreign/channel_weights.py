"""Channels at operators with weights: where they begin, and who needs them.

Legend: N output channels, K input channels.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from .channel_survey import Survey, attributes, given
from .channels import Channels, Cut, Fold

Rule = Callable[[Survey, NodeProto], bool]
"""Notes what a node does with channels; False, and nothing noted, where that is unknown."""


def matmul(survey: Survey, node: NodeProto) -> bool:
    """X [..., K] times a constant [K, N]."""
    weight_KN = survey.own_constant(node.input[1])
    if weight_KN is None or weight_KN.ndim != 2 or not _usable(weight_KN):
        return False
    return _layer(survey, node, weight_KN.T, (1, 0), -1, bias_place=None)


def gemm(survey: Survey, node: NodeProto) -> bool:
    """X [M, K] times a constant, plus a constant bias."""
    options, weight = attributes(node), survey.own_constant(node.input[1])
    plain = not options.get("transA", 0) and options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
    if weight is None or weight.ndim != 2 or not plain or not _usable(weight):
        return False
    transposed = not options.get("transB", 0)
    weight_NK = weight.T if transposed else weight
    return _layer(survey, node, weight_NK, (1, 0) if transposed else (0, 1), -1, bias_place=2)


def convolution(survey: Survey, node: NodeProto) -> bool:
    """Conv of one group, or of one group for each channel."""
    options, weight = attributes(node), survey.own_constant(node.input[1])
    if weight is None or weight.ndim < 3 or not _usable(weight):
        return False
    group, axis = options.get("group", 1), 1 - weight.ndim
    padded = any(options.get("pads", ())) or options.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    if group == 1:
        return _layer(survey, node, weight, (0, 1), axis, bias_place=2, padded=padded)
    if group == len(weight) and weight.shape[1] == 1:
        return _depthwise(survey, node, weight.reshape(group, -1), axis, padded)
    return False


def transposed_convolution(survey: Survey, node: NodeProto) -> bool:
    """ConvTranspose of one group. Not every output is reached by every tap, so that only zeros are passed on."""
    weight = survey.own_constant(node.input[1])
    if weight is None or weight.ndim < 3 or not _usable(weight) or attributes(node).get("group", 1) != 1:
        return False
    return _layer(survey, node, np.swapaxes(weight, 0, 1), (1, 0), 1 - weight.ndim, bias_place=2, padded=True)


def _usable(weight: NDArray) -> bool:
    return weight.dtype in (np.float16, np.float32, np.float64) and weight.size > 0 and bool(np.isfinite(weight).all())


def _layer(
    survey: Survey,
    node: NodeProto,
    weight: NDArray,
    axes: tuple[int, int],
    axis: int,
    *,
    bias_place: int | None,
    padded: bool = False,
) -> bool:
    """Every output channel is a sum over all input channels.

    Args:
        weight: [N, K, ...], the taps behind.
        axes: of the output and input channels in the stored weight.
        axis: of the channels in the values, counted from the end.
        bias_place: the node's input for a bias.
        padded: whether some outputs are reached by some taps only, so that only zeros are the same everywhere.
    """
    x = survey.channels(node.input[0])
    bias_N = _bias(survey, node, bias_place, len(weight))
    if bias_N is None or (x is not None and (x.axis != axis or x.size != weight.shape[1])):
        return False
    known_K, constants_K = _known(x, weight.shape[1], padded)
    used_NK = (weight != 0).reshape(*weight.shape[:2], -1).any(axis=2)
    sums_NK = weight.reshape(*weight.shape[:2], -1).sum(axis=2, dtype=np.float64)
    constants_N = (bias_N + sums_NK[:, known_K] @ constants_K[known_K]).astype(weight.dtype)
    y = survey.found.add(node.output[0], axis, ~used_NK[:, ~known_K].any(axis=1), constants_N)
    survey.found.made.append(y.name)
    survey.found.cuts.append(Cut(node, 1, axes[0], y.places))
    if bias_place is not None:
        survey.found.cuts.append(Cut(node, bias_place, -1, y.places))
    if x is not None:
        survey.found.need(x, used_NK.any(axis=0) & ~known_K)
        survey.found.cuts.append(Cut(node, 1, axes[1], x.places))
        if (constants_K[known_K & used_NK.any(axis=0)] != 0).any():
            survey.found.folds.append(Fold(node, bias_place, sums_NK, x, y.places))
    return True


def _depthwise(survey: Survey, node: NodeProto, weight_NS: NDArray, axis: int, padded: bool) -> bool:
    """Every output channel is made of its own input channel alone, with S taps."""
    x = survey.channels(node.input[0])
    bias_N = _bias(survey, node, 2, len(weight_NS))
    if bias_N is None or x is None or x.axis != axis or x.size != len(weight_NS):
        return False
    known_N, constants_N = _known(x, x.size, padded)
    constants_N = bias_N + weight_NS.sum(axis=1, dtype=np.float64) * constants_N
    known_N |= ~(weight_NS != 0).any(axis=1)
    survey.found.add(node.output[0], axis, known_N, constants_N.astype(weight_NS.dtype), x.places)
    survey.found.cuts += [Cut(node, 1, 0, x.places), Cut(node, 2, -1, x.places)]
    survey.found.grouped.append((node, x))
    return True


def _known(x: Channels | None, size: int, padded: bool) -> tuple[NDArray[np.bool_], NDArray]:
    """Which input channels are the same number at every tap, and the numbers, 0 elsewhere."""
    if x is None:
        return np.zeros(size, bool), np.zeros(size)
    known = x.zero if padded else x.known.copy()
    return known, np.where(known, x.constants, 0).astype(np.float64)


def _bias(survey: Survey, node: NodeProto, place: int | None, size: int) -> NDArray | None:
    """The bias [N] in float64, zeros where there is none; None where it is no constant, or of another shape."""
    name = "" if place is None else given(node, place)
    if not name:
        return np.zeros(size)
    bias = survey.constant(name)
    if bias is None or bias.size not in (1, size) or (bias.ndim and bias.shape[-1] != bias.size):
        return None
    return np.broadcast_to(bias.reshape(-1), (size,)).astype(np.float64)


def batch_norm(survey: Survey, node: NodeProto) -> bool:
    """Each channel times a number plus a number."""
    x, parameters = survey.channels(node.input[0]), [survey.constant(name) for name in node.input[1:5]]
    options = attributes(node)
    if x is None or survey.position(x) != 1 or options.get("training_mode", 0) or len(node.output) != 1:
        return False
    if any(item is None or item.shape != (x.size,) for item in parameters):
        return False
    scale, bias, mean, variance = (item.astype(np.float64) for item in parameters if item is not None)
    with np.errstate(all="ignore"):
        constants = (x.constants - mean) * scale / np.sqrt(variance + options.get("epsilon", 1e-5)) + bias
    survey.found.add(node.output[0], x.axis, x.known, constants.astype(x.constants.dtype), x.places)
    survey.found.cuts += [Cut(node, place, 0, x.places) for place in range(1, 5)]
    return True


def instance_norm(survey: Survey, node: NodeProto) -> bool:
    """Each channel of each sample by its own mean and variance: of zeros the bias is left."""
    x, parameters = survey.channels(node.input[0]), [survey.constant(name) for name in node.input[1:3]]
    if x is None or survey.position(x) != 1 or any(item is None or item.shape != (x.size,) for item in parameters):
        return False
    bias = parameters[1]
    assert bias is not None, "it was looked at above"
    survey.found.add(node.output[0], x.axis, x.zero, bias.astype(x.constants.dtype), x.places)
    survey.found.cuts += [Cut(node, place, 0, x.places) for place in (1, 2)]
    return True
