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

from .layers import Bind, Call, Layers, copies_of, dense_model, linear_model

_NBITS_BLOCK = 32
_NBITS_INT8_ACTIVATIONS = 4
"""ONNX Runtime's `accuracy_level` at which activations are int8: its fastest."""

Build = Callable[[NDArray[np.float32], int], Bind]
"""Makes R layers of a weight [N, K] on so many threads."""


@dataclass(frozen=True)
class _Peer:
    """A package, without which there is no such peer, and how its layers are built."""

    package: str
    build: Build
    has_threads: bool = True


@dataclass(frozen=True)
class PeerRow:
    """One measurement of a peer, beside dense float32 ONNX Runtime; `density` is 1 for a dense peer.

    `isa` is the instruction set of hebbline's kernels in the same run; a peer chooses its own.
    """

    out_features: int
    in_features: int
    density: float
    tokens: int
    threads: int
    isa: str
    peer: str
    us: float
    dense_us: float
    ratio: float


def dense_peer_names() -> list[str]:
    """The dense peers that are installed: ONNX Runtime's own low precision, and other libraries."""
    return [name for name, peer in _DENSE_PEERS.items() if _is_installed(peer.package)]


def sparse_peer_names(threads: int) -> list[str]:
    """The libraries installed that have sparse float32 products on so many threads."""
    return [
        name
        for name, peer in _SPARSE_PEERS.items()
        if _is_installed(peer.package) and (threads == 1 or peer.has_threads)
    ]


def build_peer(name: str, weight_NK: NDArray[np.float32], threads: int) -> Bind:
    """R layers of the weight, of which a sparse peer keeps what is not zero."""
    return (_DENSE_PEERS | _SPARSE_PEERS)[name].build(weight_NK, threads)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _nbits(bits: int) -> Build:
    def build(weight_NK: NDArray[np.float32], threads: int) -> Bind:
        return Layers(lambda copies: nbits_model(dense_model(weight_NK, copies), bits), weight_NK.shape, threads).bind

    return build


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


def _dynamic_int8(weight_NK: NDArray[np.float32], threads: int) -> Bind:
    return Layers(lambda copies: _dynamic_int8_model(weight_NK, copies), weight_NK.shape, threads).bind


def _dynamic_int8_model(weight_NK: NDArray[np.float32], copies: int) -> onnx.ModelProto:
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


def _torch_bfloat16(weight_NK: NDArray[np.float32], threads: int) -> Bind:
    import torch

    weights = [torch.from_numpy(weight).bfloat16() for weight in _copies(weight_NK)]

    def bind(x_MK: NDArray[np.float32]) -> Call:
        x = torch.from_numpy(x_MK).bfloat16()
        return lambda: _with_threads(torch, threads, lambda: [torch.nn.functional.linear(x, w) for w in weights])

    return bind


def _torch_csr(weight_NK: NDArray[np.float32], threads: int) -> Bind:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CSR tensors are in beta
        weights = [torch.from_numpy(weight).to_sparse_csr() for weight in _copies(weight_NK)]

    def bind(x_MK: NDArray[np.float32]) -> Call:
        x_KM = torch.from_numpy(x_MK.T.copy())
        return lambda: _with_threads(torch, threads, lambda: [weight @ x_KM for weight in weights])

    return bind


def _with_threads(torch: Any, threads: int, work: Callable[[], object]) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    with torch.inference_mode():
        work()


def _scipy_csr(weight_NK: NDArray[np.float32], threads: int) -> Bind:
    del threads  # it has one
    from scipy.sparse import csr_matrix

    weights = [csr_matrix(weight) for weight in _copies(weight_NK)]

    def bind(x_MK: NDArray[np.float32]) -> Call:
        x_KM = x_MK.T.copy()
        return lambda: [weight @ x_KM for weight in weights]

    return bind


def _copies(weight_NK: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    return (np.roll(weight_NK, copy, axis=0) for copy in range(copies_of(weight_NK.shape)))


def _openvino(precision: str) -> Build:
    def build(weight_NK: NDArray[np.float32], threads: int) -> Bind:
        import openvino

        core = openvino.Core()
        model = core.read_model(dense_model(weight_NK, copies_of(weight_NK.shape)).SerializeToString())
        config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
        request = core.compile_model(model, "CPU", config).create_infer_request()
        return lambda x_MK: lambda: request.infer([x_MK], share_inputs=True, share_outputs=True)

    return build


_DENSE_PEERS = {
    "onnxruntime int8, dynamic": _Peer("onnxruntime", _dynamic_int8),
    "onnxruntime 8-bit weights": _Peer("onnx_ir", _nbits(8)),
    "onnxruntime 4-bit weights": _Peer("onnx_ir", _nbits(4)),
    "torch bfloat16": _Peer("torch", _torch_bfloat16),
    "openvino f32": _Peer("openvino", _openvino("f32")),
    "openvino bf16": _Peer("openvino", _openvino("bf16")),
}
_SPARSE_PEERS = {
    "torch CSR (MKL)": _Peer("torch", _torch_csr),
    "scipy CSR": _Peer("scipy", _scipy_csr, has_threads=False),
}
