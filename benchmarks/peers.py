"""What else computes such a layer on this machine: dense low precision, and the sparse products of other libraries.

Legend: N out_features, K in_features, R copies of the layer, M tokens.

A peer that is not installed is left out. Each runs R layers a call, as ours do.
"""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .linear import DenseLayers, Layers, LinearCases, copies_of, dense_model, linear_model
from .timing import interleaved

_NBITS_BLOCK = 32
_NBITS_INT8_ACTIVATIONS = 4
"""ONNX Runtime's `accuracy_level` at which activations are int8: its fastest."""

Call = Callable[[], object]


@dataclass(frozen=True)
class PeerRow:
    """One measurement of a peer, beside dense float32 ONNX Runtime; `density` is 1 for a dense peer."""

    out_features: int
    in_features: int
    density: float
    tokens: int
    threads: int
    peer: str
    us: float
    dense_us: float
    ratio: float


def run_peers(cases: LinearCases, on_step: Callable[[str], None] = lambda step: None) -> Iterator[PeerRow]:
    """Measure the peers of the same cases: dense ones once, sparse ones at each density."""
    for shape in cases.shapes:
        weight_NK = np.random.default_rng(0).standard_normal(shape, np.float32) / 32
        for threads in cases.threads:
            dense = DenseLayers(weight_NK, threads)
            on_step(f"{shape[0]}x{shape[1]}, dense peers, {threads} threads")
            yield from _rows(cases, dense, dense_peers(weight_NK, threads), 1.0, threads)
            for density in cases.densities:
                on_step(f"{shape[0]}x{shape[1]}, sparse peers, density {density:g}, {threads} threads")
                mask_NK = np.random.default_rng(1).random(shape) < density
                yield from _rows(cases, dense, sparse_peers(weight_NK * mask_NK, threads), density, threads)


def _rows(
    cases: LinearCases, dense: DenseLayers, peers: dict[str, Callable[[NDArray], Call]], density: float, threads: int
) -> Iterator[PeerRow]:
    for tokens in cases.tokens:
        x_MK = np.random.default_rng(2).standard_normal((tokens, dense.in_features), np.float32)
        calls = {name: bind(x_MK) for name, bind in peers.items()}
        seconds = interleaved({"": dense.bind(x_MK), **calls}, threads=threads)
        dense_us = seconds.pop("") / dense.copies * 1e6
        for name, value in seconds.items():
            us = value / dense.copies * 1e6
            shape = (dense.out_features, dense.in_features)
            yield PeerRow(*shape, density, tokens, threads, name, us, dense_us, dense_us / us)


def dense_peers(weight_NK: NDArray[np.float32], threads: int) -> dict[str, Callable[[NDArray], Call]]:
    """Dense layers in ONNX Runtime's int8 and 4-bit forms, and in what else is installed; each binds an X [M, K]."""
    shape = weight_NK.shape
    peers: dict[str, Callable[[NDArray], Call]] = {
        "onnxruntime int8, dynamic": Layers(lambda copies: _dynamic_int8(weight_NK, copies), shape, threads).bind
    }
    if importlib.util.find_spec("onnx_ir"):
        for bits in (8, 4):
            peers[f"onnxruntime {bits}-bit weights"] = _nbits(weight_NK, bits, threads).bind
    if importlib.util.find_spec("torch"):
        peers["torch bfloat16"] = lambda x_MK: _torch_bfloat16(weight_NK, x_MK, threads)
    if importlib.util.find_spec("openvino"):
        for precision in ("f32", "bf16"):
            peers[f"openvino {precision}"] = _openvino(weight_NK, threads, precision)
    return peers


def sparse_peers(weight_NK: NDArray[np.float32], threads: int) -> dict[str, Callable[[NDArray], Call]]:
    """Float32 sparse products of other libraries; each binds an X [M, K]."""
    peers: dict[str, Callable[[NDArray], Call]] = {}
    if importlib.util.find_spec("torch"):
        peers["torch CSR (MKL)"] = lambda x_MK: _torch_csr(weight_NK, x_MK, threads)
    if importlib.util.find_spec("scipy") and threads == 1:
        peers["scipy CSR"] = lambda x_MK: _scipy_csr(weight_NK, x_MK)
    return peers


def _nbits(weight_NK: NDArray[np.float32], bits: int, threads: int) -> Layers:
    return Layers(lambda copies: nbits_model(dense_model(weight_NK, copies), bits), weight_NK.shape, threads)


def nbits_model(model: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    """The model with its MatMul nodes in ONNX Runtime's own 4- or 8-bit form, by its own quantizer at its fastest."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.WARNING)  # it tells each node
    config = DefaultWeightOnlyQuantConfig(
        block_size=_NBITS_BLOCK, is_symmetric=True, accuracy_level=_NBITS_INT8_ACTIVATIONS, bits=bits
    )
    quantizer = MatMulNBitsQuantizer(model, algo_config=config)
    quantizer.process()
    return quantizer.model.model


def _dynamic_int8(weight_NK: NDArray[np.float32], copies: int) -> onnx.ModelProto:
    """Activations quantised with one scale for all tokens, weights with one a row: DynamicQuantizeMatMul."""
    scales_N = np.abs(weight_NK).max(axis=1) / 127
    quants_KN = np.rint(weight_NK / scales_N[:, None]).astype(np.int8).T
    nodes, initializers = [], []
    for copy in range(copies):
        parts = {
            f"W{copy}": np.roll(quants_KN, copy, axis=1).copy(),
            f"S{copy}": np.roll(scales_N, copy),
            f"Z{copy}": np.zeros(len(scales_N), np.int8),
        }
        initializers += [numpy_helper.from_array(value, name) for name, value in parts.items()]
        inputs = ["X", *parts]
        nodes.append(helper.make_node("DynamicQuantizeMatMul", inputs, [f"Y{copy}"], domain="com.microsoft"))
    return linear_model(nodes, initializers, weight_NK.shape)


def _torch_bfloat16(weight_NK: NDArray[np.float32], x_MK: NDArray[np.float32], threads: int) -> Call:
    import torch

    weights = [
        torch.from_numpy(np.roll(weight_NK, copy, axis=0)).bfloat16() for copy in range(copies_of(weight_NK.shape))
    ]
    x = torch.from_numpy(x_MK).bfloat16()

    def call() -> None:
        _with_threads(torch, threads, lambda: [torch.nn.functional.linear(x, weight) for weight in weights])

    return call


def _torch_csr(weight_NK: NDArray[np.float32], x_MK: NDArray[np.float32], threads: int) -> Call:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CSR tensors are in beta
        weights = [
            torch.from_numpy(np.roll(weight_NK, copy, axis=0)).to_sparse_csr()
            for copy in range(copies_of(weight_NK.shape))
        ]
    x_KM = torch.from_numpy(x_MK.T.copy())

    def call() -> None:
        _with_threads(torch, threads, lambda: [weight @ x_KM for weight in weights])

    return call


def _with_threads(torch: Any, threads: int, work: Callable[[], object]) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    with torch.inference_mode():
        work()


def _scipy_csr(weight_NK: NDArray[np.float32], x_MK: NDArray[np.float32]) -> Call:
    from scipy.sparse import csr_matrix

    weights = [csr_matrix(np.roll(weight_NK, copy, axis=0)) for copy in range(copies_of(weight_NK.shape))]
    x_KM = x_MK.T.copy()
    return lambda: [weight @ x_KM for weight in weights]


def _openvino(weight_NK: NDArray[np.float32], threads: int, precision: str) -> Callable[[NDArray], Call]:
    import openvino

    core = openvino.Core()
    model = core.read_model(dense_model(weight_NK, copies_of(weight_NK.shape)).SerializeToString())
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
    compiled = core.compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    return lambda x_MK: lambda: request.infer([x_MK], share_inputs=True, share_outputs=True)
