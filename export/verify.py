"""The parity gate: the exported graph must do what torch does, or nothing is published.

Legend: S tokens, R rows of logits, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from transformers import PreTrainedModel

from ..artifacts import CheckError, InputError
from .greedy import GreedySearch
from .layerwise import Wanted
from .reference import TorchReference, float32_rounding, torch_greedy
from .steps import AnyRunner, Decode, Logits, Prefill, Step, StepsRunner, prefill_all, run_steps

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

CHECKS = {
    "full_forward": "logits of a whole sequence, read at once",
    "chunked": "logits of the same sequence, read in two pieces and then token by token",
    "ragged_batch": "logits of sequences of different lengths in one batch, against each alone",
    "far": "logits far into the context: behind the sliding window, or the context before it was extended",
}
"""What each check of `ParityFigures` is, in words."""


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


def check_context(context_length: int) -> None:
    """Refuse a model whose context the texts of the gate do not fit.

    Raises:
        InputError: they do not.
    """
    if context_length <= max(_PROMPT_TOKENS):
        raise InputError(
            f"the model's context of {context_length} tokens is too short to be checked: max_position_embeddings must "
            f"be above {max(_PROMPT_TOKENS)}"
        )


def check_parity(
    model: PreTrainedModel, runner: AnyRunner, progress: Callable[[str], None], reach: int = 0
) -> ParityFigures:
    """`check_against` a model, in float32, of which there is one runner."""
    return check_against(TorchReference(model), lambda: runner, progress, reach)


def check_against(
    reference: TorchReference,
    open_runner: Callable[[], AnyRunner],
    progress: Callable[[str], None],
    reach: int = 0,
) -> ParityFigures:
    """Compare a runner with at least 3 slots to the torch model it was exported from.

    The runner takes all its steps and is let go; then torch computes the same texts, in one pass over its layers.
    Greedy tokens are the runner's own where it can generate, and torch says at each place whether it would have
    generated the same; a runner that takes all steps together is given tokens that torch has agreed to.

    A model that amplifies rounding can lie further than 1e-4 from torch without an error in the graph. Such a model is
    run in float64 as well, and the runner may differ from torch by 4 times what torch differs from that.

    Args:
        reference: of the model in float32.
        open_runner: opens a runner over the exported graph.
        progress: told what is checked next.
        reach: tokens behind which the model changes (see `Decoder.reach`): logits are looked at there too, up to
        `MOST_REACH`.

    Raises:
        CheckError: a logit differs by more than the tolerance, or a greedy token differs.
    """
    runner = open_runner()
    generated = min(GREEDY_TOKENS, runner.context_length - max(_PROMPT_TOKENS))
    progress(f"logits of a whole sequence, at once, in pieces, and in a batch; {generated} greedy tokens")
    search = GreedySearch(reference, _prompts(runner.vocab_size), generated)
    own = search.is_new and not isinstance(runner, StepsRunner)
    sequence_S = search.first(runner).ids_S
    greedy = None if own else search.decided(2 * max(LOGIT_TOLERANCE, reference.tolerance), open_runner)
    ragged = search.prompts[: len(_PROMPT_TOKENS)]
    far = _Far.of(runner, reach, len(sequence_S))
    # All in one run: a large graph is then decoded once.
    parts: list[list[Step]] = [
        [prefill_all(0, sequence_S)],
        _in_pieces(sequence_S),
        _together(ragged),
        far.steps(),
        [] if greedy is None else greedy.steps(),
    ]
    logits = run_steps(runner, [step for part in parts for step in part])
    *taken, generating = [[next(logits).copy() for _ in part] for part in parts]
    positions = max(len(sequence_S), len(far.ids_S))
    # Torch has the memory to itself now.
    del runner, logits
    progress("torch's own logits")
    reference.prepare([*_texts(sequence_S, ragged, far), *search.first_texts()])
    differences = _differences(reference, taken, sequence_S, ragged, far)
    tolerance = _tolerance(reference, sequence_S, far, differences, progress)
    for name, difference in differences.items():
        if not difference <= tolerance:
            raise CheckError(
                f"parity with torch: {CHECKS[name]}, differ by {difference:.2e}, over the {tolerance:.2e} that are "
                "allowed; nothing was published"
            )
    reference.tolerance = max(reference.tolerance, tolerance)
    decided = search.decided(2 * tolerance, open_runner)
    if greedy is not None and greedy != decided:
        progress(f"{generated} greedy tokens, torch against ONNX Runtime")
        generating = [logits.copy() for logits in run_steps(open_runner(), decided.steps())]
    if greedy is not None:
        decided.check(generating)
    return ParityFigures(
        **differences,
        positions=positions,
        greedy_tokens=generated,
        prompts_skipped=search.skipped(decided),
        logit_tolerance=tolerance,
    )


def _texts(sequence_S: list[int], ragged: Sequence[list[int]], far: "_Far") -> list[Wanted]:
    """What torch is asked for beside greedy tokens."""
    texts = [Wanted(tuple(sequence_S)), *(Wanted(tuple(prompt), _RAGGED_STEPS) for prompt in ragged)]
    return [*texts, far.text] if far.ids_S else texts


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

    @property
    def text(self) -> Wanted:
        """What torch is asked for."""
        return Wanted(tuple(self.ids_S), _FAR_ROWS)

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
        return _difference(np.concatenate(taken[1:]), reference.logits(self.text))


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
    expected_SV = reference.logits(Wanted(tuple(sequence_S)))
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
    texts = [Wanted(tuple(sequence_S))]
    if not differences["far"] <= LOGIT_TOLERANCE:
        texts.append(far.text)
    return max(LOGIT_TOLERANCE, ROUNDING_FACTOR * reference.rounding(texts))


def _prompts(vocab_size: int) -> list[list[int]]:
    """Prompts of random tokens, of several lengths, the same at every export."""
    rng = np.random.default_rng(0)
    lengths = [_PROMPT_TOKENS[index % len(_PROMPT_TOKENS)] for index in range(_PROMPTS_TRIED)]
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


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
        _difference(
            np.stack([logits[slot] for logits in together]), reference.logits(Wanted(tuple(prompt), _RAGGED_STEPS))
        )
        for slot, prompt in enumerate(prompts)
    )


def _difference(actual: Logits, expected: Logits) -> float:
    """Largest absolute difference; NaN anywhere gives NaN, which no tolerance admits."""
    return float(np.abs(actual - expected).max())
