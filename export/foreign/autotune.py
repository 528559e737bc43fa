"""Timing the candidates of a layer on this machine, in real ONNX Runtime sessions with the op library.

Dense and packed forms are timed in turn, round by round, so that a change in the machine's load meets all of them
alike; the medians are compared. One thread each.

Legend: N out_features, K in_features, T tokens.
"""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ...artifacts import InputError
from ...kernels import library_path
from ..layouts import Layout
from .choosing import Times
from .layer_check import dense_model, layer_model, open_session
from .rewriting import Target, pack_weight

TOKENS = {"latency": 1, "throughput": 64, "size": 1}
"""Tokens at a time that an objective stands for."""
_ROUNDS = 15
_ROUND_SECONDS = 1e-3
"""A form runs in each round at least once, and about as often as fits this time."""


class Autotuner:
    """Times layers; those of one shape and nearly one density are timed once.

    Args:
        objective: how many tokens at a time, see `TOKENS`.
        opset: of the file.

    Raises:
        InputError: there is no op library, which alone makes packed layers fast.
    """

    def __init__(self, objective: str, opset: int) -> None:
        try:
            self._library = str(library_path())
        except InputError as error:
            raise InputError(f"autotune times the op library: {error}") from error
        self._tokens, self._opset = TOKENS[objective], opset
        self._known: dict[tuple[object, ...], dict[str, float]] = {}

    def fastest(
        self, weight_NK: NDArray[np.float32], mask_NK: NDArray[np.bool_], layouts: Sequence[Layout]
    ) -> tuple[Layout | None, Times, str]:
        """The fastest layout (None: dense), with the times of dense and of the best packed form, and all in words."""
        names = tuple(layout.name for layout in layouts)
        key = (weight_NK.shape, round(float(mask_NK.mean()), 2), names)
        if key not in self._known:
            self._known[key] = self._measure(weight_NK, mask_NK, layouts)
        medians = self._known[key]
        packed = {name: median for name, median in medians.items() if name != "dense"}
        best = min(packed, key=lambda name: packed[name])
        times = Times(medians["dense"], packed[best], "us measured")
        figures = ", ".join(f"{name} {median:.1f} us" for name, median in medians.items())
        words = f"measured at {self._tokens} token{'s' * (self._tokens > 1)}: {figures}"
        if times.speedup <= 1:
            return None, times, f"left dense: no layout is faster ({words})"
        return next(layout for layout in layouts if layout.name == best), times, f"{best} is the fastest ({words})"

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
        return _interleaved_medians(sessions, x_TK, out_features)


def _interleaved_medians(
    sessions: dict[str, onnxruntime.InferenceSession], x_TK: NDArray[np.float32], out_features: int
) -> dict[str, float]:
    y_TN = np.empty((len(x_TK), out_features), np.float32)
    calls = {
        name: partial(session.run_with_iobinding, _bind(session, x_TK, y_TN)) for name, session in sessions.items()
    }
    counts = {name: _calls_a_round(call) for name, call in calls.items()}
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            rounds[name].append(_seconds(call, counts[name]) / counts[name])
    return {name: float(np.median(seconds)) * 1e6 for name, seconds in rounds.items()}


def _calls_a_round(call: "partial[None]") -> int:
    call()  # not timed: the first call allocates
    return max(1, round(_ROUND_SECONDS / _seconds(call, 3) * 3))


def _seconds(call: "partial[None]", count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start


def _bind(
    session: onnxruntime.InferenceSession, x_TK: NDArray[np.float32], y_TN: NDArray[np.float32]
) -> onnxruntime.IOBinding:
    binding = session.io_binding()
    binding.bind_input("X", "cpu", 0, np.float32, x_TK.shape, x_TK.ctypes.data)
    binding.bind_output("Y", "cpu", 0, np.float32, y_TN.shape, y_TN.ctypes.data)
    return binding
