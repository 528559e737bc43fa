"""Makers of packed layers, models of one op, and what they should compute.

Legend: N out_features, K in_features, M tokens.
"""

import numpy as np
import onnx
import onnxruntime
from layout_models import make_model

from hebbline.export.layouts import LAYOUTS, BlockLayout
from hebbline.kernels import register

BLOCK = BlockLayout().block_size


def make_layer(layout, shape, density, seed=0):
    """A masked weight [N, K]: whole blocks for block layouts; an empty row, an active zero and minus zero else."""
    rng = np.random.default_rng(seed)
    if size := layout.needs_blocks:
        coarse = rng.random([-(-extent // size) for extent in shape]) < density
        mask = np.kron(coarse, np.ones((size, size), bool))[: shape[0], : shape[1]].astype(bool)
    else:
        mask = rng.random(shape) < density
        if shape[0] > 2:
            mask[shape[0] // 2] = False
    weight = np.where(mask, rng.standard_normal(shape), 0).astype(np.float32)
    for place, value in zip(np.argwhere(mask)[:2], (0.0, -0.0), strict=False):
        weight[tuple(place)] = value
    return weight, mask


def open_session(model, threads=1, kernels=True):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if kernels:
        register(options)
    serialized = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])


def round_activations(x, values, activation_scale=0.0):
    """X as the op rounds it, in float64."""
    if values == "float32":
        return x.astype(np.float64)
    if values == "bfloat16":
        bits = x.view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
        return rounded.view(np.float32).astype(np.float64)
    largest = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-30))
    scale, inverse = largest / np.float32(127), np.float32(127) / largest
    if activation_scale:
        scale = np.float32(activation_scale)
        inverse = np.float32(1) / max(scale, np.float32(1e-30))
    return np.clip(np.rint(x * inverse), -128, 127).astype(np.float64) * scale


def expected(x, weight, bias=None, values="float32", activation_scale=0.0):
    """Y in float64 from the weight that the tensors stand for."""
    y = round_activations(x, values, activation_scale) @ weight.astype(np.float64).T
    return y if bias is None else y + bias


def error(actual, wanted):
    """The largest difference relative to the largest magnitude."""
    if wanted.size == 0:
        return 0.0
    return float(np.abs(actual - wanted).max() / max(np.abs(wanted).max(), 1e-30))


__all__ = ["BLOCK", "LAYOUTS", "error", "expected", "make_layer", "make_model", "open_session", "round_activations"]
