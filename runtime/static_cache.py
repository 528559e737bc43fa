"""The runner over a graph with a static cache, whoever executes its steps: TensorRT, or ONNX Runtime in its checks.

Legend: B slots in a step, S tokens a slot, R rows of logits, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..artifacts import InputError, LanguageModelFacts


@dataclass(frozen=True)
class StepLimits:
    """The largest steps that a graph was built for: slots decoded together, and tokens of one prompt chunk."""

    batch: int = 16
    tokens: int = 256

    def __post_init__(self) -> None:
        for name in ("batch", "tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"limits.{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Step:
    """One step: tokens and their positions [B, S], and the rows [R] >= 1 of the flattened tokens that want logits.

    The step is over the slots `first_slot` … `first_slot + B - 1`.
    """

    first_slot: int
    input_ids_BS: NDArray[np.int64]
    position_ids_BS: NDArray[np.int64]
    logit_rows_R: NDArray[np.int64]

    def feeds(self) -> dict[str, NDArray[np.int64]]:
        """The graph's inputs apart from the cache, by name."""
        return {
            "input_ids": self.input_ids_BS,
            "position_ids": self.position_ids_BS,
            "logit_rows": self.logit_rows_R,
        }


class StepExecutor(Protocol):
    """Holds the cache of all slots and computes steps over it."""

    def run(self, step: Step) -> NDArray[np.float32]:
        """The logits [R, V] of a step within the limits, valid until the next one; the cache is updated."""


class StaticCacheRunner:
    """A `Runner` that checks what it is asked, cuts it into steps within the limits, and has them executed.

    Args:
        facts: sizes of the model's cache and vocabulary. slots: sequences that the executor's cache holds.
        limits: of a step. executor: computes steps.
    """

    def __init__(self, facts: LanguageModelFacts, slots: int, limits: StepLimits, executor: StepExecutor) -> None:
        self.facts = facts
        self.slots = slots
        self.context_length = facts.context_length
        self.vocab_size = facts.vocab_size
        self._limits = limits
        self._executor = executor

    def prefill(self, slot: int, ids_S: Sequence[int], past: int, rows_N: Sequence[int]) -> NDArray[np.float32]:
        """See `Runner.prefill`."""
        ids_BS = np.asarray(ids_S, np.int64).reshape(1, -1)
        self._check(slot, ids_BS, np.array([past]))
        rows = np.asarray(rows_N, np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < ids_BS.shape[1]:
            raise ValueError(f"rows {list(rows_N)} are not within the {ids_BS.shape[1]} tokens of the step")
        logits_NV = np.empty((len(rows), self.vocab_size), np.float32)
        for start in range(0, ids_BS.shape[1], self._limits.tokens):
            chunk_BS = ids_BS[:, start : start + self._limits.tokens]
            wanted = (rows >= start) & (rows < start + chunk_BS.shape[1])
            logits_NV[wanted] = self._prefill_chunk(slot, chunk_BS, past + start, rows[wanted] - start)
        return logits_NV

    def decode(self, first_slot: int, ids_B: Sequence[int], past_B: Sequence[int]) -> NDArray[np.float32]:
        """See `Runner.decode`."""
        ids_BS, past = np.asarray(ids_B, np.int64).reshape(-1, 1), np.asarray(past_B, np.int64)
        self._check(first_slot, ids_BS, past)
        parts = []
        for start in range(0, len(ids_BS), self._limits.batch):
            group_BS = ids_BS[start : start + self._limits.batch]
            positions_BS = past[start : start + len(group_BS), None]
            step = Step(first_slot + start, group_BS, positions_BS, np.arange(len(group_BS)))
            parts.append(self._executor.run(step))
            if len(group_BS) < len(ids_BS):
                parts[-1] = parts[-1].copy()
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _prefill_chunk(self, slot: int, ids_BS: NDArray, past: int, rows: NDArray) -> NDArray[np.float32]:
        """The logits of one chunk. A step without rows does not exist in an engine: one is asked for and dropped."""
        positions_BS = past + np.arange(ids_BS.shape[1], dtype=np.int64)[None]
        # The executor's buffers hold as many rows as a chunk has tokens; more are repetitions.
        distinct, places = np.unique(rows if rows.size else np.zeros(1, np.int64), return_inverse=True)
        logits_RV = self._executor.run(Step(slot, ids_BS, positions_BS, distinct))
        return logits_RV[places[: len(rows)]]

    def _check(self, first_slot: int, ids_BS: NDArray, past_B: NDArray) -> None:
        """Refuse a step that would read or write outside a cache: an engine writes where it is told."""
        batch, length = ids_BS.shape
        if min(batch, length) < 1 or len(past_B) != batch or not 0 <= first_slot < first_slot + batch <= self.slots:
            raise ValueError(f"a step of {batch}x{length} tokens at slot {first_slot} does not fit {self.slots} slots")
        if past_B.min() < 0 or past_B.max() + length > self.context_length:
            raise ValueError(f"{length} tokens after {past_B.max()} exceed the context of {self.context_length} tokens")
        if ids_BS.min() < 0 or ids_BS.max() >= self.vocab_size:
            raise ValueError(f"a token id is outside the vocabulary of {self.vocab_size}")


def cache_names(facts: LanguageModelFacts) -> list[str]:
    """The caches of a model: keys and values of each layer."""
    return [f"{layer}.{part}" for layer in range(facts.num_layers) for part in ("key", "value")]


def past_name(cache: str) -> str:
    """The graph's input for a cache."""
    return f"past.{cache}"


def present_name(cache: str) -> str:
    """The graph's output for a cache: bind it to the memory of the input."""
    return f"present.{cache}"
