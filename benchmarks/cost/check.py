"""How well the cost model predicts, and whether the packings that it chooses are the fastest there are.

A plan is judged by what was measured: of each layer and number of tokens, the time of the family that the plan takes
over the least time of any family.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from ...artifacts import CheckError
from ...kernels.cost import BASELINE, predict
from ..cases import LinearCases
from .fit import Fit, dense_key, usual_dense
from .ledger import Sample

LARGEST_MEDIAN_ERROR = 0.25
"""Of predicted over measured speed-up."""
LARGEST_LOSS = 1.15
"""Time of the chosen packing over that of the fastest, in the cells that `bench linear` measures."""
_WORST = 8
_NOISE = 1.05

Predict = Callable[[Sample], float]
"""The speed-up over dense that a model predicts."""


@dataclass(frozen=True)
class Verdict:
    """What was found: the bars are `LARGEST_MEDIAN_ERROR` and `LARGEST_LOSS`; `worst` are lines on the worst cells."""

    median_error: float
    largest_error: float
    samples: int
    largest_loss: float
    lossy: int
    choices: int
    worst: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether both bars are met."""
        return self.median_error <= LARGEST_MEDIAN_ERROR and not self.lossy

    @property
    def summary(self) -> str:
        """Both figures in a line."""
        return (
            f"speed-ups are off by {self.median_error:.0%} in the median of {self.samples} samples, by "
            f"{self.largest_error:.0%} at most; in the cells of bench linear {self.lossy} of "
            f"{self.choices} choices lose over {LARGEST_LOSS - 1:.0%}, the worst {self.largest_loss - 1:.0%}"
        )


def check(table: str, samples: Sequence[Sample]) -> Verdict:
    """A table that is built into the library, against the samples of its processors."""

    def library(sample: Sample) -> float:
        asked = sample.work, sample.tokens, table
        dense = predict(*asked, BASELINE, cached=sample.cached).microseconds
        return dense / predict(*asked, sample.family, cached=sample.cached).microseconds

    return _judge(samples, library, lambda sample: predict(sample.work, sample.tokens, table).family)


def check_fit(fitted: Fit, samples: Sequence[Sample]) -> Verdict:
    """A fit that is not built in yet: how well it predicts, and what the fastest by its own predictions would lose."""

    def speedup(sample: Sample) -> float:
        return _microseconds(fitted, sample, BASELINE) / _microseconds(fitted, sample, sample.family)

    fastest: dict[tuple, Sample] = {}
    for sample in samples:
        if sample.layer not in fastest or speedup(sample) > speedup(fastest[sample.layer]):
            fastest[sample.layer] = sample
    return _judge(samples, speedup, lambda sample: fastest[sample.layer].family)


def _microseconds(fitted: Fit, sample: Sample, family: str) -> float:
    asked = predict(sample.work, sample.tokens, fitted.table, family, cached=sample.cached)
    row = fitted.baseline if family == BASELINE else fitted.families[family, sample.values]
    return sum(amount * each for amount, each in zip(asked.amounts, row, strict=True)) / 1e3


def _judge(samples: Sequence[Sample], speedup: Predict, choose: Callable[[Sample], str]) -> Verdict:
    usual = usual_dense(samples)
    if not usual:
        raise CheckError("there are no samples to judge by")
    errors = [(abs(speedup(sample) / (usual[dense_key(sample)] / sample.us) - 1), sample) for sample in samples]
    losses = _losses([sample for sample in samples if not sample.cached], choose)
    judged = [loss for loss, taken, _ in losses if _is_benchmarked(taken)]
    errors.sort(key=lambda pair: -pair[0])
    worst = [f"off by {error:.0%}: {_name(sample)}" for error, sample in errors[:_WORST]]
    slower = [loss for loss in losses if loss[0] > _NOISE][:_WORST]
    worst += [f"{loss - 1:.0%} slower than {best.family}: {_name(taken)}" for loss, taken, best in slower]
    return Verdict(
        median([error for error, _ in errors]),
        errors[0][0],
        len(samples),
        max(judged, default=1.0),
        sum(loss > LARGEST_LOSS for loss in judged),
        len(judged),
        tuple(worst),
    )


def _losses(samples: Sequence[Sample], choose: Callable[[Sample], str]) -> list[tuple[float, Sample, Sample]]:
    """Of each layer: time of what is chosen over the least, with both samples; the largest first."""
    layers: dict[tuple, dict[str, Sample]] = {}
    for sample in samples:
        layers.setdefault(sample.layer, {})[sample.family] = sample
    losses = []
    for families in layers.values():
        if len(families) == 1 or choose(next(iter(families.values()))) not in families:
            continue  # nothing to choose from was measured
        best = min(families.values(), key=lambda sample: sample.us)
        taken = families[choose(best)]
        losses.append((taken.us / best.us, taken, best))
    return sorted(losses, key=lambda loss: -loss[0])


def _is_benchmarked(sample: Sample) -> bool:
    cases = LinearCases()
    return (sample.out_features, sample.in_features) in cases.shapes and sample.tokens in cases.tokens


def _name(sample: Sample) -> str:
    where = ", from a cache" if sample.cached else ""
    return (
        f"{sample.family} {sample.values} {sample.out_features}x{sample.in_features} at {sample.density:g}, "
        f"{sample.tokens} tokens{where} ({sample.us:g} us, {sample.dense_us / sample.us:.2f} times as fast as dense)"
    )
