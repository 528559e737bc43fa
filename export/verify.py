"""The parity gate: the exported graph must do what torch does, or nothing is published.

Legend: S tokens, R rows of logits, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from transformers import PreTrainedModel

from ..artifacts import CheckError
from .reference import TorchReference, float32_rounding, torch_greedy
from .steps import AnyRunner, Decode, Logits, Prefill, Step, prefill_all, run_steps

__all__ = ["ParityFigures", "check_against", "check_parity", "float32_rounding", "torch_greedy"]

LOGIT_TOLERANCE = 1e-4
"""Largest difference allowed, where torch's own float32 is accurate enough to ask for it."""
ROUNDING_FACTOR = 4.0
"""Else this many times the distance between torch's float32 and float64: two roundings add up, and are random."""
GREEDY_TOKENS = 64
_PROMPT_TOKENS = (5, 17, 33)
_PROMPTS_TRIED = 8
_RAGGED_STEPS = 4
MOST_REACH = 8192
"""Far positions are looked at up to here: a forward pass of a long text takes minutes."""
_FAR_ROWS = 24
_FAR_STEPS = 4


@dataclass(frozen=True)
class ParityFigures:
    """What the gate measured.

    `full_forward`: largest logit difference between torch and ONNX Runtime over a whole sequence; `chunked`: the same
    with the sequence given as two prefill chunks and single decode steps; `ragged_batch`: slots of different lengths
    decoded together against each alone; `far`: the same behind the sliding window and the context before it was
    extended, where a model has them; `positions`: tokens of the longest sequence that was looked at; `greedy_tokens`:
    tokens generated greedily that are identical; `prompts_skipped`: prompts set aside because torch's own two best
    logits came closer than twice the tolerance; `logit_tolerance`: the difference that was allowed: 1e-4, or more where
    float32 itself is less exact.
    """

    full_forward: float
    chunked: float
    ragged_batch: float
    far: float
    positions: int
    greedy_tokens: int
    prompts_skipped: int
    logit_tolerance: float

    @property
    def largest(self) -> float:
        """The largest logit difference of all."""
        return max(self.full_forward, self.chunked, self.ragged_batch, self.far)

    def __str__(self) -> str:
        return (
            f"logits within {self.largest:.1e} (allowed {self.logit_tolerance:.1e}), {self.greedy_tokens} of "
            f"{self.greedy_tokens} greedy tokens identical"
        )

    def to_json(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def check_parity(
    model: PreTrainedModel, runner: AnyRunner, progress: Callable[[str], None], reach: int = 0
) -> ParityFigures:
    """`check_against` a model, in float32, of which there is one runner."""
    return check_against(TorchReference(model), runner, progress, reach)


def check_against(
    reference: TorchReference, runner: AnyRunner, progress: Callable[[str], None], reach: int = 0
) -> ParityFigures:
    """Compare a runner with at least 3 slots to the torch model it was exported from.

    A model that amplifies rounding can lie further than 1e-4 from torch without an error in the graph. Such a model is
    run in float64 as well, and the runner may differ from torch by 4 times what torch differs from that.

    Args:
        reference: of the model in float32.
        runner: over the exported graph.
        progress: told what is checked next.
        reach: tokens behind which the model changes (see `Decoder.reach`): logits are looked at there too, up to
        `MOST_REACH`.

    Raises:
        CheckError: a logit differs by more than the tolerance, or a greedy token differs.
    """
    generated = min(GREEDY_TOKENS, runner.context_length - max(_PROMPT_TOKENS))
    if generated < 1:
        raise CheckError(f"a context of {runner.context_length} tokens is too short to check parity in")
    prompts = _prompts(runner.vocab_size)
    progress("torch's own logits and greedy tokens")
    sequence_S = [*prompts[0], *reference.greedy(prompts[0], generated)[0]]
    ragged = prompts[: len(_PROMPT_TOKENS)]
    decided = _decided(reference, prompts, generated, 2 * LOGIT_TOLERANCE)
    progress(f"logits of a whole sequence, at once, in pieces, and in a batch; {generated} greedy tokens")
    far = _Far.of(runner, reach, len(sequence_S))
    # All in one run: a large graph is then decoded once.
    parts: list[list[Step]] = [
        [prefill_all(0, sequence_S)],
        _in_pieces(sequence_S),
        _together(ragged),
        far.steps(),
        decided.steps(),
    ]
    logits = run_steps(runner, [step for part in parts for step in part])
    *taken, greedy = [[next(logits).copy() for _ in part] for part in parts]
    differences = _differences(reference, taken, sequence_S, ragged, far)
    tolerance = _tolerance(reference, sequence_S, far, differences, progress)
    for name, difference in differences.items():
        if not difference <= tolerance:
            raise CheckError(
                f"parity: logits of check '{name}' differ by {difference:.2e}, over {tolerance:.2e}; "
                "nothing was published"
            )
    if decided.margin < 2 * tolerance:
        progress(f"{generated} greedy tokens, torch against ONNX Runtime")
        decided = _decided(reference, prompts, generated, 2 * tolerance)
        greedy = [logits.copy() for logits in run_steps(runner, decided.steps())]
    decided.check(greedy)
    return ParityFigures(
        **differences,
        positions=max(len(sequence_S), len(far.ids_S)),
        greedy_tokens=generated,
        prompts_skipped=decided.skipped,
        logit_tolerance=tolerance,
    )


@dataclass(frozen=True)
class _Far:
    """Random tokens that go behind what a model changes at; none where it changes nowhere, or the rest reaches it."""

    ids_S: list[int]

    @classmethod
    def of(cls, runner: AnyRunner, reach: int, reached: int) -> "_Far":
        """`reached`: tokens of the longest other sequence."""
        length = min(min(reach, MOST_REACH) + _FAR_ROWS, runner.context_length) if reach else 0
        if length <= max(reached, _FAR_ROWS):
            return cls([])
        return cls(np.random.default_rng(2).integers(0, runner.vocab_size, length).tolist())

    def steps(self) -> list[Step]:
        """Two chunks, of whose second the last tokens want logits, and single tokens."""
        if not self.ids_S:
            return []
        decoded = len(self.ids_S) - _FAR_STEPS
        half = decoded // 2
        rows = range(decoded - half - (_FAR_ROWS - _FAR_STEPS), decoded - half)
        chunks: list[Step] = [Prefill(0, self.ids_S[:half], 0, []), Prefill(0, self.ids_S[half:decoded], half, rows)]
        return chunks + [Decode(0, [self.ids_S[place]], [place]) for place in range(decoded, len(self.ids_S))]

    def difference(self, reference: TorchReference, taken: Sequence[Logits]) -> float:
        """The largest logit difference from torch; 0 where nothing was looked at."""
        if not self.ids_S:
            return 0.0
        return _difference(np.concatenate(taken[1:]), reference.logits(self.ids_S, _FAR_ROWS))


def _differences(
    reference: TorchReference,
    taken: Sequence[Sequence[Logits]],
    sequence_S: list[int],
    ragged: Sequence[list[int]],
    far: _Far,
) -> dict[str, float]:
    """The logit differences of `ParityFigures`, by name.

    Args:
        taken: the logits of the steps over `sequence_S`, at once and in pieces, of those over `ragged`, and of `far`.
    """
    expected_SV = reference.logits(sequence_S)
    whole, pieces, together, behind = taken
    return {
        "full_forward": _difference(whole[0], expected_SV),
        "chunked": _difference(np.concatenate(pieces), expected_SV),
        "ragged_batch": _ragged_difference(reference, together[len(ragged) :], ragged),
        "far": far.difference(reference, behind),
    }


def _tolerance(
    reference: TorchReference,
    sequence_S: list[int],
    far: _Far,
    differences: dict[str, float],
    progress: Callable[[str], None],
) -> float:
    if all(difference <= LOGIT_TOLERANCE for difference in differences.values()):
        return LOGIT_TOLERANCE
    progress("how far torch's float32 is from float64")
    rounding = reference.rounding(sequence_S)
    if not differences["far"] <= LOGIT_TOLERANCE:
        rounding = max(rounding, reference.rounding(far.ids_S, _FAR_ROWS))
    return max(LOGIT_TOLERANCE, ROUNDING_FACTOR * rounding)


def _prompts(vocab_size: int) -> list[list[int]]:
    """Prompts of random tokens, of several lengths, the same at every export."""
    rng = np.random.default_rng(0)
    lengths = [_PROMPT_TOKENS[index % len(_PROMPT_TOKENS)] for index in range(_PROMPTS_TRIED)]
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


@dataclass(frozen=True)
class _Greedy:
    """A prompt, the tokens that torch generates after it, by at least `margin` over the next best, and the number of
    prompts before it that torch is less decided on."""

    prompt: list[int]
    expected: list[int]
    margin: float
    skipped: int

    def steps(self) -> list[Step]:
        """The prompt, then the expected tokens one by one: a runner that is right would have generated them."""
        after = len(self.prompt)
        steps: list[Step] = [Prefill(0, self.prompt, 0, [after - 1])]
        return steps + [Decode(0, [token], [after + place]) for place, token in enumerate(self.expected[:-1])]

    def check(self, taken: Sequence[Logits]) -> None:
        """Raise CheckError where the best logit of a step is not that of the expected token."""
        for place, (logits_RV, expected) in enumerate(zip(taken, self.expected, strict=True)):
            actual = int(logits_RV[0].argmax())
            if actual != expected:
                raise CheckError(
                    f"parity: greedy token {place + 1} of {len(self.expected)} is {actual}, torch generates "
                    f"{expected}; nothing was published"
                )


def _decided(reference: TorchReference, prompts: Sequence[list[int]], count: int, least_margin: float) -> _Greedy:
    """The first prompt that torch continues by at least this margin: else two rounding errors could swap the best two.

    Raises:
        CheckError: there is none.
    """
    for skipped, prompt in enumerate(prompts):
        expected, margin = reference.greedy(prompt, count)
        if margin >= least_margin:
            return _Greedy(prompt, expected, margin, skipped)
    raise CheckError(
        f"parity: torch is undecided between two tokens after each of {len(prompts)} prompts; train longer"
    )


def _in_pieces(ids: list[int]) -> list[Step]:
    """The steps to all logits of a sequence: two prefill chunks of unequal length, and decode steps for the rest."""
    first, second = len(ids) // 3, 2 * len(ids) // 3
    chunks: list[Step] = [prefill_all(0, ids[:first]), prefill_all(0, ids[first:second], first)]
    return chunks + [Decode(0, [ids[place]], [place]) for place in range(second, len(ids))]


def _together(prompts: Sequence[list[int]]) -> list[Step]:
    """A prefill step a prompt, each in a slot of its own, and the steps that decode the last tokens of all together."""
    steps: list[Step] = [Prefill(slot, prompt[:-_RAGGED_STEPS], 0, []) for slot, prompt in enumerate(prompts)]
    for left in range(_RAGGED_STEPS, 0, -1):
        steps.append(Decode(0, [prompt[-left] for prompt in prompts], [len(prompt) - left for prompt in prompts]))
    return steps


def _ragged_difference(reference: TorchReference, together: Sequence[Logits], prompts: Sequence[list[int]]) -> float:
    """Largest difference between slots decoded together and torch on each sequence alone."""
    return max(
        _difference(np.stack([logits[slot] for logits in together]), reference.logits(prompt)[-_RAGGED_STEPS:])
        for slot, prompt in enumerate(prompts)
    )


def _difference(actual: Logits, expected: Logits) -> float:
    """Largest absolute difference; NaN anywhere gives NaN, which no tolerance admits."""
    return float(np.abs(actual - expected).max())
