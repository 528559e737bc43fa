"""The runner on TensorRT or TensorRT-RTX: an engine over a static cache in device memory.

Legend: B slots in a step, S tokens a slot, R rows of logits, V vocabulary.

Not run where this was written, which has no GPU. What is tested there: the steps, by the same graph in ONNX Runtime;
and addresses, shapes and order of the calls below, by a stand-in for TensorRT that reads and writes at the addresses it
is given.
"""

import importlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..artifacts import CheckError, KvFormat, LanguageModelFacts
from ..kernels.gpu.driver import CudaUnavailableError, Driver
from .engines import EngineFacts, Gpu, choose_engine, is_installed, read_engines
from .onnxruntime import OnnxRunner, language_model_facts
from .opening import open_onnx
from .static_cache import StaticCacheRunner, Step, cache_names, past_name, present_name

MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""The Python module of each runtime."""
PREFILL_PROFILE, DECODE_PROFILE = 0, 1
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}

logger = logging.getLogger(__name__)


class Device(Protocol):
    """Memory and one stream of a GPU; `kernels.gpu.driver.Driver` is the one that runs."""

    @property
    def stream(self) -> int:
        """Handle of the stream."""

    def make_current(self) -> None:
        """Make the device's context that of the calling thread."""

    def allocate(self, size: int) -> int:
        """Address of `size` bytes, set to 0."""

    def copy_to_device(self, address: int, source: NDArray) -> None:
        """Copy an array, in order on the stream."""

    def copy_to_host(self, target: NDArray, address: int) -> None:
        """Copy to an array, in order on the stream."""

    def synchronize(self) -> None:
        """Wait for the stream."""


class EngineExecutor:
    """Executes steps with one engine; see `StepExecutor`.

    The engine has a context for each of its two profiles. Caches, inputs and logits are allocated once; past and
    present of a cache are one memory, so the engine writes a step's tokens in place.

    Args:
        trt: the runtime's Python module. engine: content of the engine file. description: of it, from the artifact.
        facts: sizes of the model. slots: sequences held. device: where it runs.

    Raises:
        CheckError: the runtime cannot read the engine.
    """

    def __init__(
        self, trt: Any, engine: bytes, description: EngineFacts, facts: LanguageModelFacts, slots: int, device: Device
    ) -> None:
        self._device = device
        self._thread = threading.get_ident()
        device.make_current()
        self._runtime = trt.Runtime(_make_logger(trt))
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise CheckError(f"{description.file}: {description.runtime} {trt.__version__} cannot read the engine")
        self._contexts = [self._make_context(profile) for profile in (PREFILL_PROFILE, DECODE_PROFILE)]
        limits, vocab = description.limits, facts.vocab_size
        most_rows = max(limits.batch, min(limits.tokens, facts.context_length))
        self._slot_bytes = facts.num_kv_heads * facts.context_length * facts.head_dim * _BYTES[description.precision]
        self._slot_shape = (facts.num_kv_heads, facts.context_length, facts.head_dim)
        self._caches = {name: device.allocate(slots * self._slot_bytes) for name in cache_names(facts)}
        self._inputs = {name: device.allocate(8 * most_rows) for name in ("input_ids", "position_ids", "logit_rows")}
        self._logits = device.allocate(4 * most_rows * vocab)
        self._logits_RV = np.empty((most_rows, vocab), np.float32)

    def run(self, step: Step) -> NDArray[np.float32]:
        """See `StepExecutor.run`; raises CheckError where the engine fails."""
        self._adopt_thread()
        batch, length = step.input_ids_BS.shape
        context = self._contexts[DECODE_PROFILE if length == 1 else PREFILL_PROFILE]
        for name, array in step.feeds().items():
            self._device.copy_to_device(self._inputs[name], np.ascontiguousarray(array))
            context.set_input_shape(name, array.shape)
            context.set_tensor_address(name, self._inputs[name])
        for name, address in self._caches.items():
            first = address + step.first_slot * self._slot_bytes
            context.set_input_shape(past_name(name), (batch, *self._slot_shape))
            context.set_tensor_address(past_name(name), first)
            context.set_tensor_address(present_name(name), first)
        context.set_tensor_address("logits", self._logits)
        if not context.execute_async_v3(self._device.stream):
            raise CheckError("TensorRT could not start a step; its log is above")
        logits_RV = self._logits_RV[: len(step.logit_rows_R)]
        self._device.copy_to_host(logits_RV, self._logits)
        self._device.synchronize()
        return logits_RV

    def _make_context(self, profile: int) -> Any:
        context = self._engine.create_execution_context()
        if context is None or not context.set_optimization_profile_async(profile, self._device.stream):
            raise CheckError(f"the engine has no optimization profile {profile}, or no memory for it")
        return context

    def _adopt_thread(self) -> None:
        """A CUDA context belongs to threads one by one, and the scheduler's is not the one that loads the model."""
        if self._thread != threading.get_ident():
            self._device.make_current()
            self._thread = threading.get_ident()


class TensorRtRunner(StaticCacheRunner):
    """Runs an engine of a published artifact; see `Runner` for the contract."""

    def __init__(self, artifact: Path, description: EngineFacts, slots: int, trt: Any, device: Device) -> None:
        facts = language_model_facts(artifact)
        engine = (artifact / description.file).read_bytes()
        executor = EngineExecutor(trt, engine, description, facts, slots, device)
        super().__init__(facts, slots, description.limits, executor)
        self.description = description


def open_runner(
    artifact: Path,
    slots: int,
    threads: int | None = None,
    kv: KvFormat | None = None,
    *,
    cache_bytes: int | None = None,
    open_onnx: Callable[..., OnnxRunner] = open_onnx,
) -> OnnxRunner | TensorRtRunner:
    """The runner of a published artifact: an engine that fits this machine's GPU, else the ONNX, which runs anywhere.

    Where the artifact has engines and none fits, a warning says why.

    Args:
        artifact: a directory of kind "onnx"; every file is verified.
        slots: sequences held at a time. threads: of ONNX Runtime; None: one for each physical core. kv: how ONNX
        Runtime keeps keys and values, and cache_bytes: how much of them, see `open_onnx`; an engine keeps them in
        its own precision, in slots. open_onnx: called like `open_onnx` where no engine fits.

    Raises:
        InputError: the directory is no artifact of a language model, is damaged, or ONNX Runtime cannot load it.
        CheckError: the engine that fits cannot be loaded.
    """
    language_model_facts(artifact)
    engines = read_engines(artifact)
    driver, gpu = _find_gpu()
    choice = choose_engine(engines, gpu, installed_runtimes())
    if choice.engine is not None and driver is not None:
        trt = importlib.import_module(MODULES[choice.engine.runtime])
        logger.info("running %s", choice.reason)
        return TensorRtRunner(artifact, choice.engine, slots, trt, driver)
    if engines:
        logger.warning("%s: running the ONNX on the CPU instead of an engine: %s", artifact, choice.reason)
    return open_onnx(artifact, slots, threads, kv=kv, cache_bytes=cache_bytes)


def installed_runtimes() -> dict[str, str]:
    """The version of each runtime that is installed, by name."""
    found = {name: module for name, module in MODULES.items() if is_installed(module)}
    return {name: str(importlib.import_module(module).__version__) for name, module in found.items()}


def _find_gpu() -> tuple[Driver | None, Gpu | None]:
    try:
        driver = Driver.open()
        return driver, Gpu(driver.device_name(), driver.compute_capability())
    except CudaUnavailableError:
        return None, None


def _make_logger(trt: Any) -> Any:
    class PythonLogger(trt.ILogger):
        """Passes warnings and errors on to Python's logging."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            levels = {"WARNING": logging.WARNING, "ERROR": logging.ERROR, "INTERNAL_ERROR": logging.CRITICAL}
            logger.log(levels.get(severity.name, logging.DEBUG), "TensorRT: %s", message)

    return PythonLogger()
