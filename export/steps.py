"""Steps that a gate lets a graph do, all of them known before the first is taken.

Legend: B slots, S tokens of a slot in a step, N rows of logits, V vocabulary.

Whatever a gate feeds a runner follows from the torch model, greedy tokens included: a runner that is right generates
torch's token at every place, and the first place where it does not is seen in the logits. So a runner may take the
steps in an order of its own, as long as each finds the caches that the ones before it have left.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..runtime.runner import Runner

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Prefill:
    """Append the tokens `ids_S` to a slot that holds `past`; logits are wanted after those with indices `rows_N`."""

    slot: int
    ids_S: Sequence[int]
    past: int
    rows_N: Sequence[int]

    def take(self, runner: Runner) -> Logits:
        """The logits [N, V], valid until the runner's next step."""
        return runner.prefill(self.slot, self.ids_S, self.past, self.rows_N)


@dataclass(frozen=True)
class Decode:
    """Append one token to each of the slots from `first_slot` on, which hold `past_B`; the logits of all are wanted."""

    first_slot: int
    ids_B: Sequence[int]
    past_B: Sequence[int]

    def take(self, runner: Runner) -> Logits:
        """The logits [B, V], valid until the runner's next step."""
        return runner.decode(self.first_slot, self.ids_B, self.past_B)


Step = Prefill | Decode


class StepsRunner(ABC):
    """Runs a graph for all steps together; sizes as `Runner` has them."""

    slots: int
    context_length: int
    vocab_size: int

    @abstractmethod
    def run(self, steps: Sequence[Step]) -> Iterator[Logits]:
        """The logits of each step in turn, each valid until the next is asked for. Caches are empty at first."""


AnyRunner = Runner | StepsRunner


def run_steps(runner: AnyRunner, steps: Sequence[Step]) -> Iterator[Logits]:
    """The logits [N, V] after each step in turn, each valid until the next is asked for."""
    if isinstance(runner, StepsRunner):
        yield from runner.run(steps)
    else:
        for step in steps:
            yield step.take(runner)


def prefill_all(slot: int, ids_S: Sequence[int], past: int = 0) -> Prefill:
    """The step that appends tokens to a slot and wants the logits after every one."""
    return Prefill(slot, ids_S, past, range(len(ids_S)))
