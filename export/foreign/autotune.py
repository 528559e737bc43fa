"""Timing the candidates of a layer on this machine, in real ONNX Runtime sessions with the op library.

Dense and packed forms are timed in turn, round by round, so that a change in the machine's load meets all of them
alike; the medians are compared. One thread each. Between two calls as many bytes are read as the rest of the model
holds, up to twice the last cache: in a model that is larger than the cache, a layer finds its weights in memory.

Legend: N out_features, K in_features, T tokens.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ...artifacts import InputError
from ...kernels import library_path
from ..layouts import Layout
from .choosing import TOKENS, Times
from .layer_check import dense_model, layer_model, open_session
from .packed_weight import Target, pack_weight

_ROUNDS = 21
_NEAR = 1.05
"""Of layouts that are this near to the fastest, the one of the fewest bytes is taken: timings scatter as much."""
_CACHE_SIZES = "/sys/devices/system/cpu/cpu0/cache/index*/size"
_LARGEST_CACHE = 1 << 26
"""Bytes of cache that are reckoned with, also where the system says more: it may be shared with others."""


class Autotuner:
    """Times layers; those of one shape and nearly one density are timed once.

    Args:
        objective: how many tokens at a time, see `choosing.TOKENS`.
        opset: of the file.
        model_bytes: of all weights in the file.

    Raises:
        InputError: there is no op library, which alone makes packed layers fast.
    """

    def __init__(self, objective: str, opset: int, model_bytes: int) -> None:
        try:
            self._library = str(library_path())
        except InputError as error:
            raise InputError(f"autotune times the op library: {error}") from error
        self._by_bytes = objective == "size"
        self._tokens, self._opset, self._model_bytes = TOKENS[objective], opset, model_bytes
        self._known: dict[tuple[object, ...], dict[str, float]] = {}

    def fastest(
        self, weight_NK: NDArray[np.float32], mask_NK: NDArray[np.bool_], layouts: Sequence[Layout]
    ) -> tuple[Layout | None, Times, str]:
        """The fastest layout (None: dense), with the times of dense and of the best packed form, and all in words.

        Where the objective is size, the smallest layout instead.
        """
        names = tuple(layout.name for layout in layouts)
        key = (weight_NK.shape, round(float(mask_NK.mean()), 2), names)
        if key not in self._known:
            self._known[key] = self._measure(weight_NK, mask_NK, layouts)
        return self._choose(self._known[key], layouts, int(np.count_nonzero(mask_NK)), weight_NK.shape)

    def _choose(
        self, medians: dict[str, float], layouts: Sequence[Layout], links: int, shape: tuple[int, ...]
    ) -> tuple[Layout | None, Times, str]:
        out_features, in_features = shape
        limit = float("inf") if self._by_bytes else _NEAR * min(medians[layout.name] for layout in layouts)
        near = [layout for layout in layouts if medians[layout.name] <= limit]
        best = min(near, key=lambda layout: layout.packed_bytes(out_features, in_features, links))
        times = Times(medians["dense"], medians[best.name], "us measured")
        figures = ", ".join(f"{name} {median:.1f} us" for name, median in medians.items())
        words = f"measured at {self._tokens} token{'s' * (self._tokens > 1)}: {figures}"
        if times.speedup <= 1 and not self._by_bytes:
            return None, times, f"left dense: no layout is faster, {words}"
        why = "the smallest" if self._by_bytes else "the fastest, or as fast and smaller"
        return best, times, f"{best.name} is {why}, {words}"

    def _measure(
        self, weight_NK: NDArray[np.float32], mask_NK: NDArray[np.bool_], layouts: Sequence[Layout]
    ) -> dict[str, float]:
        """Median microseconds of a call, dense and in each layout."""
        out_features, in_features = weight_NK.shape
        sessions = {"dense": open_session(dense_model(weight_NK, self._opset))}
        for layout in layouts:
            packed = pack_weight(layout.name, layout.name, layout, weight_NK, mask_NK, Target(self._opset))
            model = layer_model(packed, packed.encode(), out_features, self._opset)
            sessions[layout.name] = open_session(model, [self._library])
        x_TK = np.random.default_rng(0).standard_normal((self._tokens, in_features)).astype(np.float32)
        others = other_weights(self._model_bytes, weight_NK.nbytes)
        return interleaved_medians(sessions, x_TK, (self._tokens, out_features), others)


def other_weights(model_bytes: int, layer_bytes: int) -> NDArray[np.int64]:
    """Stands for the rest of a model's weights, up to twice the last cache: read between two calls of a layer, it
    leaves as much of the layer in the cache as the model would.

    Ones, since pages that were never written are one page, and would fit any cache.
    """
    return np.ones(max(0, min(model_bytes - layer_bytes, 2 * _last_cache())) // 8, np.int64)


class UntimedError(Exception):
    """ONNX Runtime does not take the models that were to be timed; the message says why."""


@contextmanager
def timing() -> Iterator[None]:
    """Turns what ONNX Runtime raises in the block into UntimedError."""
    try:
        yield
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise UntimedError(" ".join(str(error).split())[:200]) from error


def interleaved_medians(
    sessions: dict[str, onnxruntime.InferenceSession],
    x_TK: NDArray,
    y_shape: tuple[int, ...],
    others: NDArray[np.int64],
) -> dict[str, float]:
    """Median microseconds of each session, after `others` was read."""
    y_TN = np.empty(y_shape, np.float32)
    bindings = {name: _bind(session, x_TK, y_TN) for name, session in sessions.items()}
    rounds: dict[str, list[float]] = {name: [] for name in sessions}
    for round_ in range(_ROUNDS + 1):
        for name, session in sessions.items():
            others.max(initial=0)
            start = time.perf_counter()
            session.run_with_iobinding(bindings[name])
            if round_ > 0:  # the first call of a session allocates
                rounds[name].append(time.perf_counter() - start)
    return {name: float(np.median(seconds)) * 1e6 for name, seconds in rounds.items()}


def _last_cache() -> int:
    """Bytes of the largest cache; where the system does not say, the most that is reckoned with."""
    sizes = [path.read_text().strip() for path in Path("/").glob(_CACHE_SIZES[1:])]
    kilobytes = [int(size[:-1]) for size in sizes if size.endswith("K")]
    return min(max(kilobytes, default=_LARGEST_CACHE >> 10) << 10, _LARGEST_CACHE)


def _bind(session: onnxruntime.InferenceSession, x_TK: NDArray, y_TN: NDArray[np.float32]) -> onnxruntime.IOBinding:
    binding = session.io_binding()
    binding.bind_input("X", "cpu", 0, x_TK.dtype, x_TK.shape, x_TK.ctypes.data)
    binding.bind_output("Y", "cpu", 0, np.float32, y_TN.shape, y_TN.ctypes.data)
    return binding
