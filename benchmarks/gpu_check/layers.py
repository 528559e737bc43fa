"""Single layers of TensorRT timed on a GPU: 2:4 weights with and without sparse tactics, and plugins against dense.

Legend: T tokens, N out_features, K in_features.
"""

import importlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from ...artifacts import CheckError
from ...export.tensorrt.build import EngineRequest, EngineRuntime, build_engine
from ...export.tensorrt.packed import add_packed_linear
from ...export.tensorrt.sparsity import LayerSparsity, layer_sparsity, parse_sparsity_log
from ...export.tensorrt.typed_graph import PRECISIONS, TypedGraph, save_typed_model
from ...kernels.gpu.check.cases import random_weight, timed_mask
from ...kernels.gpu.check.speed import LayerTime
from ...kernels.gpu.check.timing import GraphReplay, Timing, compare, copies_beyond_cache
from ...kernels.gpu.packing import PACKERS

TOKENS = (1, 4, 64, 512)
TIMED_SHAPE = (4096, 4096)
TWO_FOUR_DENSITY = 0.5
PLUGIN_DENSITY = 0.1
_PARITY_FACTOR = 2.0**-8
"""Error allowed to a float16 layer of TensorRT, relative to the sum of magnitudes."""


@dataclass(frozen=True)
class TensorRtLayer:
    """A layer that TensorRT ran: times with sparse tactics allowed over times without, and the builder's verdict."""

    tokens: int
    error: float
    timing: Timing
    sparsity: LayerSparsity


def time_tensorrt(runtime: EngineRuntime, capability: str) -> Iterator[TensorRtLayer]:
    """A 2:4 layer built with and without sparse tactics, compared with float64 and timed.

    Raises:
        CheckError: a build fails, or a result is wrong.
    """
    mask_NK = timed_mask("nm24", TWO_FOUR_DENSITY, TIMED_SHAPE)
    weight_NK = random_weight(np.random.default_rng(0), mask_NK, "float16").astype(np.float16)
    with tempfile.TemporaryDirectory(prefix="hebbline-gpu-check-") as directory:
        for tokens in TOKENS:
            folder = Path(directory) / str(tokens)
            folder.mkdir()
            yield _time_two_four(runtime, capability, weight_NK, mask_NK, tokens, folder)


def _time_two_four(
    runtime: EngineRuntime, capability: str, weight_NK: NDArray, mask_NK: NDArray, tokens: int, folder: Path
) -> TensorRtLayer:
    save_typed_model(_layer_graph("dense", weight_NK, mask_NK, tokens), folder / "layer.onnx")
    replays, logs, errors = [], [], []
    for sparse in (False, True):
        engine = folder / f"{'sparse' if sparse else 'dense'}.engine"
        request = EngineRequest(runtime, folder / "layer.onnx", engine, [], (capability,), sparse_weights=sparse)
        logs.append(build_engine(request).log)
        trt = importlib.import_module(runtime.module)
        # A sparse weight takes 9 / 16 of the bytes.
        copies = copies_beyond_cache(weight_NK.nbytes * 9 // 16)
        layers = [LayerEngine(trt, engine, tokens, weight_NK.shape) for _ in range(copies)]
        errors.append(layers[0].error(weight_NK))
        replays.append(GraphReplay([layer.launch for layer in layers]))
    log = None if runtime.builds_without_gpu else parse_sparsity_log(logs[1])
    timing = compare(replays[0], replays[1])
    return TensorRtLayer(tokens, max(errors), timing, layer_sparsity("layer", mask_NK, "layer", log))


def time_plugins(runtime: EngineRuntime, capability: str) -> Iterator[LayerTime]:
    """Every form as a plugin in a TensorRT engine, against TensorRT's dense product, at each number of tokens.

    Raises:
        CheckError: a build fails, or a result is wrong.
    """
    for form in PACKERS:
        mask_NK = timed_mask(form, PLUGIN_DENSITY, TIMED_SHAPE)
        weight_NK = random_weight(np.random.default_rng(0), mask_NK, "float16").astype(np.float16)
        for tokens in TOKENS:
            with tempfile.TemporaryDirectory(prefix="hebbline-gpu-check-") as directory:
                replays = []
                for what in ("dense", form):
                    path = Path(directory) / f"{what}.onnx"
                    save_typed_model(_layer_graph(what, weight_NK, mask_NK, tokens), path)
                    request = EngineRequest(
                        runtime, path, path.with_suffix(".engine"), [], (capability,), plugins=what != "dense"
                    )
                    build_engine(request)
                    replays.append(_replay(runtime, request.engine, tokens, weight_NK))
                timing = compare(replays[0], replays[1])
            yield LayerTime(f"{form} plugin", "TensorRT dense", *TIMED_SHAPE, float(mask_NK.mean()), tokens, timing)


def _layer_graph(form: str, weight_NK: NDArray, mask_NK: NDArray[np.bool_], tokens: int) -> onnx.ModelProto:
    """One layer, dense or packed for the plugin of a form."""
    graph = TypedGraph(PRECISIONS["float16"])
    graph.input("x", [tokens, weight_NK.shape[1]])
    graph.output("y", [tokens, weight_NK.shape[0]])
    if form == "dense":
        graph.linear("x", "layer", weight_NK, None, "y")
    else:
        add_packed_linear(graph, "x", "layer", PACKERS[form](weight_NK, mask_NK), "y")
    return graph.model("layer")


def _replay(runtime: EngineRuntime, engine: Path, tokens: int, weight_NK: NDArray) -> GraphReplay:
    """Several copies of an engine, whose results were compared with float64."""
    trt = importlib.import_module(runtime.module)
    # An engine file is about as large as the weight in it.
    copies = copies_beyond_cache(engine.stat().st_size)
    layers = [LayerEngine(trt, engine, tokens, weight_NK.shape) for _ in range(copies)]
    layers[0].error(weight_NK)
    return GraphReplay([layer.launch for layer in layers])


class LayerEngine:
    """An engine with one input x [T, K] and one output y [T, N], in torch's memory and stream."""

    def __init__(self, trt: Any, engine: Path, tokens: int, shape: tuple[int, ...]) -> None:
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(engine.read_bytes())
        if self._engine is None:
            raise CheckError(f"{engine}: TensorRT {trt.__version__} cannot read the engine that it built")
        self._context = self._engine.create_execution_context()
        self._x_TK = torch.randn(tokens, shape[1], dtype=torch.float16, device="cuda")
        self._y_TN = torch.empty(tokens, shape[0], dtype=torch.float16, device="cuda")
        self._context.set_tensor_address("x", self._x_TK.data_ptr())
        self._context.set_tensor_address("y", self._y_TN.data_ptr())

    def launch(self) -> torch.Tensor:
        """Run once on torch's current stream."""
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise CheckError("TensorRT could not start a layer")
        return self._y_TN

    def error(self, weight_NK: NDArray) -> float:
        """The largest error against float64, relative to the sum of magnitudes.

        Raises:
            CheckError: it is more than float16 explains.
        """
        actual = self.launch().to(torch.float64).cpu().numpy()
        x64, w64 = self._x_TK.to(torch.float64).cpu().numpy(), weight_NK.astype(np.float64)
        error = float((np.abs(actual - x64 @ w64.T) / (np.abs(x64) @ np.abs(w64).T)).max())
        if not error <= _PARITY_FACTOR:
            raise CheckError(f"a TensorRT layer of {TIMED_SHAPE} is wrong: relative error {error:.1e}")
        return error
