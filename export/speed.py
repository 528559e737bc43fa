"""How fast an exported language model is on the machine that exported it: its graphs, timed while the checks run."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ..kernels.isa import kernels_isa
from ..runtime.fastest import PROMPT_TOKENS, GraphTimes, time_runner
from ..runtime.onnxruntime import KERNELS_MODEL_FILE, MODEL_FILE, OnnxRunner
from .steps import AnyRunner

_PACKINGS = "HEBBLINE_PACKINGS"
"""The op library's variable: the most packings of a weight."""
_MOST_BYTES_OF_ANY_PACKINGS = 2_000_000_000


@dataclass(frozen=True)
class MeasuredSpeed:
    """Tokens a second with one sequence, on all cores: in reading a prompt of 64 tokens, and in generating after it.

    Attributes:
        isa: the instruction set of the kernels.
        prompt, generated: of `model.hebbline.onnx`, by the links alone.
        dense_prompt, dense_generated: of `model.onnx`, which ONNX Runtime decodes to a dense model; None where it was
            not timed, as it is too large for this machine's memory.
        packed_once: whether each weight had one packing, where a server has the two or three that are faster (see
            `few_packings`).
    """

    isa: str
    prompt: float
    generated: float
    dense_prompt: float | None = None
    dense_generated: float | None = None
    packed_once: bool = False

    @property
    def words(self) -> str:
        """One sentence."""
        reading, generating = f"{self.prompt:,.0f} tokens a second", f"{self.generated:,.0f}"
        if self.dense_prompt and self.dense_generated:
            reading += f" ({self.prompt / self.dense_prompt:.2f} times as many as dense ONNX Runtime)"
            generating += f" ({self.generated / self.dense_generated:.2f} times)"
        once = ", each weight packed once to save memory, where a server packs it for one and for many tokens"
        return (
            f"measured on this machine, kernels with {self.isa}{once if self.packed_once else ''}: it reads a prompt "
            f"at {reading}, and generates {generating}"
        )

    def to_json(self) -> dict[str, Any]:
        """The figures by name."""
        return asdict(self)


class Stopwatch:
    """Times each graph when it is first opened to be checked, so that none is loaded for this alone."""

    def __init__(self, packed_once: bool = False) -> None:
        self._times: dict[str, GraphTimes] = {}
        self._packed_once = packed_once

    def time(self, file: str, runner: AnyRunner, progress: Callable[[str], None]) -> AnyRunner:
        """The runner of the graph `file`, timed unless one was before, or it runs a part at a time."""
        if file not in self._times and isinstance(runner, OnnxRunner) and runner.context_length > 1:
            progress(f"timing {file}")
            self._times[file] = time_runner(runner)
        return runner

    def speed(self) -> MeasuredSpeed | None:
        """What was found; None where the op library's graph was not timed."""
        return speed_of(self._times, self._packed_once)


def takes_few_packings(dense_bytes: int) -> bool:
    """Whether the checks of a model of so many bytes hold each weight in one packing."""
    return dense_bytes > _MOST_BYTES_OF_ANY_PACKINGS and not os.environ.get(_PACKINGS)


@contextmanager
def few_packings(dense_bytes: int) -> Iterator[None]:
    """Inside, the op library packs each weight of a large model once: another copy is for speed alone.

    Which packings a weight has changes the order of sums, and nothing else; each of them is tested against float64.
    """
    if not takes_few_packings(dense_bytes):
        yield
        return
    os.environ[_PACKINGS] = "1"
    try:
        yield
    finally:
        del os.environ[_PACKINGS]


def speed_of(times: Mapping[str, GraphTimes], packed_once: bool = False) -> MeasuredSpeed | None:
    """The speed by the times of graphs, by their files."""
    kernels, dense = times.get(KERNELS_MODEL_FILE), times.get(MODEL_FILE)
    if kernels is None:
        return None
    return MeasuredSpeed(
        isa=kernels_isa(),
        prompt=PROMPT_TOKENS / kernels.prompt,
        generated=1 / kernels.token,
        dense_prompt=None if dense is None else PROMPT_TOKENS / dense.prompt,
        dense_generated=None if dense is None else 1 / dense.token,
        packed_once=packed_once,
    )
