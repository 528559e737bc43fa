"""What is measured of a training run, the same for all studies."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch.optim.optimizer import register_optimizer_step_post_hook

from ..train.tasks.result import TrainingResult
from .study import Outcome


@dataclass
class StepClock:
    """Processor seconds of this process at every optimizer step."""

    moments: list[float] = field(default_factory=list)

    def seconds(self) -> float:
        """Of all steps, from the mean between the first and the last."""
        steps = len(self.moments)
        return (self.moments[-1] - self.moments[0]) / max(1, steps - 1) * steps if steps else 0.0


@contextmanager
def step_clock() -> Iterator[StepClock]:
    """Watch the steps of every optimizer while the block lasts.

    Processor time, because runs share the machine; what comes before the first step, such as reading data, is left out.
    """
    clock = StepClock()
    hook = register_optimizer_step_post_hook(lambda *_: clock.moments.append(time.process_time()))
    try:
        yield clock
    finally:
        hook.remove()


def outcome_of(result: TrainingResult, clock: StepClock, score: float, **facts: float) -> Outcome:
    """The outcome of a run, with what its updates say of the graphs."""
    # The first update of a run has no links of an earlier one to judge.
    survived = [report.survived for report in result.updates[1:] if report.regrown]
    masks = result.masks.values()
    links, possible = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
    return Outcome(
        score=score,
        seconds=clock.seconds(),
        updates=len(result.updates),
        itop=result.updates[-1].itop if result.updates else links / possible if possible else 1.0,
        survived=sum(survived) / len(survived) if survived else None,
        facts={"density": links / possible if possible else 1.0, **facts},
    )
