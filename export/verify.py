"""The parity gate: the exported graph must do what torch does, or nothing is published.

Legend: S tokens, R rows of logits, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from ..artifacts import CheckError
from ..serve.engine.runner import Runner

LOGIT_TOLERANCE = 1e-4
"""Largest difference allowed, where torch's own float32 is accurate enough to ask for it."""
ROUNDING_FACTOR = 4.0
"""Else this many times the distance between torch's float32 and float64: two roundings add up, and are random."""
GREEDY_TOKENS = 64
_PROMPT_TOKENS = (5, 17, 33)
_PROMPTS_TRIED = 8

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class ParityFigures:
    """What the gate measured.

    `full_forward`: largest logit difference between torch and ONNX Runtime over a whole sequence; `chunked`: the same
    with the sequence given as two prefill chunks and single decode steps; `ragged_batch`: slots of different lengths
    decoded together against each alone; `greedy_tokens`: tokens generated greedily that are identical;
    `prompts_skipped`: prompts set aside because torch's own two best logits came closer than twice the tolerance;
    `logit_tolerance`: the difference that was allowed: 1e-4, or more where float32 itself is less exact.
    """

    full_forward: float
    chunked: float
    ragged_batch: float
    greedy_tokens: int
    prompts_skipped: int
    logit_tolerance: float

    @property
    def largest(self) -> float:
        """The largest logit difference of all."""
        return max(self.full_forward, self.chunked, self.ragged_batch)

    def __str__(self) -> str:
        return (
            f"logits within {self.largest:.1e} (allowed {self.logit_tolerance:.1e}), {self.greedy_tokens} of "
            f"{self.greedy_tokens} greedy tokens identical"
        )

    def to_json(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def check_parity(model: LlamaForCausalLM, runner: Runner, progress: Callable[[str], None]) -> ParityFigures:
    """Compare a runner with at least 3 slots to the torch model it was exported from.

    A model that amplifies rounding can lie further than 1e-4 from torch without an error in the graph. Such a model is
    run in float64 as well, and the runner may differ from torch by 4 times what torch differs from that.

    Args:
        model: in float32.
        runner: over the exported graph.
        progress: told what is checked next.

    Raises:
        CheckError: a logit differs by more than the tolerance, or a greedy token differs.
    """
    generated = min(GREEDY_TOKENS, runner.context_length - max(_PROMPT_TOKENS))
    if generated < 1:
        raise CheckError(f"a context of {runner.context_length} tokens is too short to check parity in")
    prompts = _prompts(runner.vocab_size)
    progress("logits of a whole sequence, at once, in pieces, and in a batch")
    sequence_S = [*prompts[0], *torch_greedy(model, prompts[0], generated)[0]]
    differences = _differences(model, runner, sequence_S, prompts[: len(_PROMPT_TOKENS)])
    tolerance = _tolerance(model, sequence_S, differences, progress)
    for name, difference in differences.items():
        if not difference <= tolerance:
            raise CheckError(
                f"parity: logits of check '{name}' differ by {difference:.2e}, over {tolerance:.2e}; "
                "nothing was published"
            )
    progress(f"{generated} greedy tokens, torch against ONNX Runtime")
    skipped = _check_greedy(model, runner, prompts, generated, 2 * tolerance)
    return ParityFigures(**differences, greedy_tokens=generated, prompts_skipped=skipped, logit_tolerance=tolerance)


def _differences(
    model: LlamaForCausalLM, runner: Runner, sequence_S: list[int], prompts: Sequence[list[int]]
) -> dict[str, float]:
    """The logit differences of `ParityFigures`, by name."""
    expected_SV = _torch_logits(model, sequence_S)
    return {
        "full_forward": _difference(_prefill(runner, 0, sequence_S), expected_SV),
        "chunked": _difference(_in_pieces(runner, sequence_S), expected_SV),
        "ragged_batch": _ragged_difference(model, runner, prompts),
    }


def _tolerance(
    model: LlamaForCausalLM, sequence_S: list[int], differences: dict[str, float], progress: Callable[[str], None]
) -> float:
    if all(difference <= LOGIT_TOLERANCE for difference in differences.values()):
        return LOGIT_TOLERANCE
    progress("how far torch's float32 is from float64")
    return max(LOGIT_TOLERANCE, ROUNDING_FACTOR * float32_rounding(model, sequence_S))


def float32_rounding(model: LlamaForCausalLM, ids_S: Sequence[int]) -> float:
    """Largest difference between the logits of a float32 model and of the same weights in float64."""
    single_SV = _torch_logits(model, ids_S)
    # Both conversions are exact. (transformers' own methods refuse models whose configuration says "quantized".)
    torch.nn.Module.double(model)
    try:
        double_SV = _torch_logits(model, ids_S)
    finally:
        torch.nn.Module.float(model)
    return _difference(single_SV, double_SV)


def _prompts(vocab_size: int) -> list[list[int]]:
    """Prompts of random tokens, of several lengths, the same at every export."""
    rng = np.random.default_rng(0)
    lengths = [_PROMPT_TOKENS[index % len(_PROMPT_TOKENS)] for index in range(_PROMPTS_TRIED)]
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


def _check_greedy(
    model: LlamaForCausalLM, runner: Runner, prompts: Sequence[list[int]], count: int, least_margin: float
) -> int:
    """Compare on the first prompt that torch continues by at least this margin; returns the prompts before it."""
    for skipped, prompt in enumerate(prompts):
        expected, margin = torch_greedy(model, prompt, count)
        if margin < least_margin:  # two rounding errors could swap the best two
            continue
        actual = _runner_greedy(runner, prompt, count)
        if actual != expected:
            place = next(i for i in range(count) if actual[i] != expected[i])
            raise CheckError(
                f"parity: greedy token {place + 1} of {count} is {actual[place]}, torch generates {expected[place]}; "
                "nothing was published"
            )
        return skipped
    raise CheckError(
        f"parity: torch is undecided between two tokens after each of {len(prompts)} prompts; train longer"
    )


def torch_greedy(model: LlamaForCausalLM, prompt: Sequence[int], count: int) -> tuple[list[int], float]:
    """The `count` tokens that torch generates greedily, and the least margin between its two best logits."""
    ids, margin, cache = list(prompt), float("inf"), None
    step = torch.tensor([ids])
    with torch.inference_mode():
        for _ in range(count):
            output = model(step, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            best = torch.topk(output.logits[0, -1], 2).values
            margin = min(margin, float(best[0] - best[1]))
            ids.append(int(output.logits[0, -1].argmax()))
            step = torch.tensor([ids[-1:]])
    return ids[len(prompt) :], margin


def _runner_greedy(runner: Runner, prompt: list[int], count: int) -> list[int]:
    logits_RV = runner.prefill(0, prompt, 0, [len(prompt) - 1])
    tokens = [int(logits_RV[0].argmax())]
    while len(tokens) < count:
        logits_RV = runner.decode(0, tokens[-1:], [len(prompt) + len(tokens) - 1])
        tokens.append(int(logits_RV[0].argmax()))
    return tokens


def _torch_logits(model: LlamaForCausalLM, ids: Sequence[int]) -> Logits:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


def _prefill(runner: Runner, slot: int, ids: list[int]) -> Logits:
    return runner.prefill(slot, ids, 0, range(len(ids))).copy()


def _in_pieces(runner: Runner, ids: list[int]) -> Logits:
    """All logits of a sequence, from two prefill chunks of unequal length and decode steps for the rest."""
    first, second = len(ids) // 3, 2 * len(ids) // 3
    parts = [runner.prefill(0, ids[:first], 0, range(first)).copy()]
    parts.append(runner.prefill(0, ids[first:second], first, range(second - first)).copy())
    parts += [runner.decode(0, [ids[place]], [place]).copy() for place in range(second, len(ids))]
    return np.concatenate(parts)


def _ragged_difference(model: LlamaForCausalLM, runner: Runner, prompts: Sequence[list[int]]) -> float:
    """Largest difference between slots decoded together and torch on each sequence alone."""
    steps = 4
    for slot, prompt in enumerate(prompts):
        runner.prefill(slot, prompt[:-steps], 0, [])
    together = [
        runner.decode(
            0, [prompt[step - steps] for prompt in prompts], [len(prompt) - steps + step for prompt in prompts]
        ).copy()
        for step in range(steps)
    ]
    return max(
        _difference(np.stack([logits[slot] for logits in together]), _torch_logits(model, prompt)[-steps:])
        for slot, prompt in enumerate(prompts)
    )


def _difference(actual: Logits, expected: Logits) -> float:
    """Largest absolute difference; NaN anywhere gives NaN, which no tolerance admits."""
    return float(np.abs(actual - expected).max())
