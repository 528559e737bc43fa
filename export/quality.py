"""What values that are not exact cost: perplexity on text, before and after. It stands in the report, and is the gate.

Legend: S tokens of a window, R rows of logits, V vocabulary.

Rounded weights and activations cannot pass a gate of 1e-4. So the float32 form of the same graphs passes it first, and
the published ones are held against the text: both must find it about as probable, and not much less than float32 does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..artifacts import CheckError
from ..artifacts.tokenizer_files import read_tokenizer
from ..runtime.perplexity import Perplexity, perplexity, token_windows
from ..runtime.scoring import scored_chunk, token_log_probs
from .layerwise import Wanted
from .reference import TorchReference
from .steps import AnyRunner, Step, prefill_all, run_steps

LARGEST_COST = 2.0
"""A perplexity that is multiplied by more than this is not published."""
LARGEST_DISAGREEMENT = 0.02
"""Two graphs of the same rounded weights round activations alike up to ties: their perplexities agree to this."""
_WINDOW = 128
_WINDOWS = 64
_FEWEST_WINDOWS = 8
_MOST_PRODUCTS = 10**13
"""Weights times tokens: a core takes some minutes for so many multiplications."""


@dataclass(frozen=True)
class Rounding:
    """What numbers are stored as: `values` of the projections, `lm_head` and `kv_cache` of the op library's graph."""

    values: str
    lm_head: str
    kv_cache: str

    @property
    def is_exact(self) -> bool:
        """Whether nothing is rounded."""
        return {self.values, self.lm_head, self.kv_cache} == {"float32"}

    def __str__(self) -> str:
        named = {"values": self.values, "lm_head": self.lm_head, "keys and values": self.kv_cache}
        return ", ".join(f"{name} in {kind}" for name, kind in named.items() if kind != "float32")


@dataclass(frozen=True)
class QualityFigures:
    """The cost in perplexity on `tokens` tokens of held-out English text (see `text_windows`).

    `values`, `lm_head` and `kv_cache` are those of `Rounding`. `perplexity_float32` is torch's; `perplexity` has one
    for each graph of the artifact.
    """

    values: str
    lm_head: str
    kv_cache: str
    perplexity_float32: float
    perplexity: dict[str, float]
    tokens: int

    @property
    def largest(self) -> float:
        """The largest perplexity of a graph."""
        return max(self.perplexity.values())

    @property
    def cost(self) -> float:
        """The largest perplexity over the float32 one."""
        return self.largest / self.perplexity_float32

    def compared(self, what: str) -> str:
        """A line that sets float32 beside `what`, such as "as exported"."""
        return (
            f"perplexity of held-out English text: {self.perplexity_float32:.4f} in float32, {self.largest:.4f} {what} "
            f"({self.cost - 1:+.2%})"
        )

    def to_json(self) -> dict[str, object]:
        """The figures by name."""
        return asdict(self) | {"cost": self.cost}


def text_windows(tokenizer: Path, eos_token_id: int | None, context_length: int, weights: int = 0) -> list[list[int]]:
    """Up to 64 windows of up to 128 tokens, of the held-out part of the text that comes with CPython.

    A model of more than a billion `weights` gets fewer, so that reading them takes minutes and not hours.
    """
    from ..data.documents import PYTHON_SOURCE, load_documents

    texts = load_documents(PYTHON_SOURCE, 0.05).validation
    length = min(_WINDOW, context_length)
    affordable = _MOST_PRODUCTS // max(1, weights * length)
    return token_windows(
        read_tokenizer(tokenizer), texts, eos_token_id, length, min(_WINDOWS, max(_FEWEST_WINDOWS, affordable))
    )


def measure_quality(
    reference: TorchReference,
    runners: Mapping[str, Callable[[], AnyRunner]],
    windows_WS: Sequence[list[int]],
    rounding: Rounding,
    progress: Callable[[str], None],
) -> QualityFigures:
    """Perplexity of the torch model and of each runner, by graph.

    Args:
        reference: of the model in float32. runners: what opens each; one is open at a time. windows_WS: the text, as
        `text_windows` has it. rounding: what is rounded, for the report. progress: told each graph.

    Raises:
        CheckError: a perplexity is not finite, is more than doubled, or the runners disagree.
    """
    progress("perplexity in float32")
    texts = [Wanted(tuple(ids_S)) for ids_S in windows_WS]
    scored = iter(reference.each(texts, lambda place, x: token_log_probs(x.numpy()[:-1], windows_WS[place][1:])))
    exact = perplexity(windows_WS, lambda ids_S: next(scored))
    found: dict[str, Perplexity] = {}
    for name, open_runner in runners.items():
        progress(f"perplexity of {name}")
        found[name] = _runner_perplexity(open_runner(), windows_WS)
    by_graph = {name: result.value for name, result in found.items()}
    figures = QualityFigures(
        **asdict(rounding), perplexity_float32=exact.value, perplexity=by_graph, tokens=exact.tokens
    )
    _check(figures, rounding)
    return figures


def _check(figures: QualityFigures, rounding: Rounding) -> None:
    least, most = min(figures.perplexity.values()), figures.largest
    if not figures.cost <= LARGEST_COST:
        raise CheckError(
            f"{rounding} raise the perplexity from {figures.perplexity_float32:.4g} to {most:.4g}: choose "
            "a more exact type. Nothing was published"
        )
    if most > (1 + LARGEST_DISAGREEMENT) * least:
        raise CheckError(
            f"the graphs of the artifact disagree: their perplexities are {figures.perplexity}. Nothing was published"
        )


def _runner_perplexity(runner: AnyRunner, windows_WS: Sequence[list[int]]) -> Perplexity:
    scores = _log_probs(runner, windows_WS)
    return perplexity(windows_WS, lambda ids_S: next(scores))


def _log_probs(runner: AnyRunner, windows_WS: Sequence[list[int]]) -> Iterator[NDArray[np.float64]]:
    """Natural-log probability [S - 1] of each token of a window after the first, window by window."""
    size = scored_chunk(runner.vocab_size, _WINDOW)
    steps: list[Step] = []
    for ids_S in windows_WS:
        inputs = ids_S[:-1]
        steps += [prefill_all(0, inputs[past : past + size], past) for past in range(0, len(inputs), size)]
    logits = run_steps(runner, steps)
    for ids_S in windows_WS:
        targets = ids_S[1:]
        chunks = [targets[past : past + size] for past in range(0, len(targets), size)]
        yield np.concatenate([token_log_probs(next(logits), chunk) for chunk in chunks])
