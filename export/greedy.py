"""Greedy tokens of the gate: a graph and torch must generate the same ones.

Legend: B prompts, S tokens, V vocabulary.

Torch without a cache of keys and values, one layer at a time, would read all weights for each token. It need not
generate: asked for the logits after all tokens of a text in one pass, it says at each place which token it would have
generated there. Where that is the text's own next token at every place, torch generates this text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..artifacts import CheckError
from ..runtime.runner import Runner
from .layerwise import Wanted
from .reference import TorchReference
from .steps import AnyRunner, Decode, Logits, Prefill, Step, StepsRunner

GROUP = 3
"""Prompts that are continued together: as many as a gate's runner has slots."""


@dataclass(frozen=True)
class Greedy:
    """A prompt, and the tokens that are generated greedily after it."""

    prompt: list[int]
    tokens: list[int]

    @property
    def ids_S(self) -> list[int]:
        """The prompt and the tokens."""
        return [*self.prompt, *self.tokens]

    @property
    def text(self) -> Wanted:
        """What torch is asked for to say whether it generates these tokens."""
        return Wanted(tuple(self.ids_S[:-1]), len(self.tokens))

    def steps(self) -> list[Step]:
        """The prompt, then the tokens one by one: a runner that is right would have generated them."""
        after = len(self.prompt)
        steps: list[Step] = [Prefill(0, self.prompt, 0, [after - 1])]
        return steps + [Decode(0, [token], [after + place]) for place, token in enumerate(self.tokens[:-1])]

    def check(self, taken: Sequence[Logits]) -> None:
        """Raise CheckError where the best logit of a step is not that of the next token."""
        for place, (logits_RV, expected) in enumerate(zip(taken, self.tokens, strict=True)):
            actual = int(logits_RV[0].argmax())
            if actual != expected:
                raise _differs(place, len(self.tokens), actual, expected)

    def agrees(self, logits_SV: Logits, least_margin: float) -> bool:
        """Whether torch, with these logits, generates the tokens, each by this margin over the next best at least.

        Raises:
            CheckError: it generates another token somewhere, by this margin. Where it is less decided, two rounding
            errors could swap the best two, and nothing follows from the text.
        """
        margins_S = _margins(logits_SV, self.tokens)
        undecided = np.flatnonzero(margins_S < least_margin)
        if not len(undecided):
            return True
        place = int(undecided[0])
        if margins_S[place] <= -least_margin:
            raise _differs(place, len(self.tokens), self.tokens[place], int(logits_SV[place].argmax()))
        return False


@dataclass
class GreedySearch:
    """Looks for a prompt that torch continues decidedly; `prompts` are tried in order, a group at a time.

    The first graph that can generate continues them, and torch is asked; for other graphs all of it is known.
    """

    reference: TorchReference
    prompts: list[list[int]]
    count: int
    _greedy: list[Greedy] = field(default_factory=list)

    @property
    def is_new(self) -> bool:
        """Whether no graph has continued the first prompts yet."""
        return tuple(self.prompts[0]) not in self.reference.continuations

    def first(self, runner: AnyRunner) -> Greedy:
        """The first prompt, with the rest of its group continued."""
        if not self._greedy:
            self._extend(lambda: runner)
        return self._greedy[0]

    def first_texts(self) -> list[Wanted]:
        """What torch is asked for of the prompts that are continued so far."""
        return [greedy.text for greedy in self._greedy]

    def skipped(self, greedy: Greedy) -> int:
        """The number of prompts before this one."""
        return self.prompts.index(greedy.prompt)

    def decided(self, least_margin: float, open_runner: Callable[[], AnyRunner]) -> Greedy:
        """The first prompt that torch continues as the graph does, by this margin at least.

        Raises:
            CheckError: there is none, or torch generates other tokens.
        """
        tried = 0
        while True:
            self.reference.prepare(self.first_texts())
            for greedy in self._greedy[tried:]:
                if greedy.agrees(self.reference.logits(greedy.text), least_margin):
                    return greedy
            tried = len(self._greedy)
            if tried == len(self.prompts):
                raise CheckError(
                    f"parity: torch is undecided between two tokens after each of {tried} prompts; train longer"
                )
            self._extend(open_runner)

    def _extend(self, open_runner: Callable[[], AnyRunner]) -> None:
        """Continue the next group: as before, or by a runner that can, or by torch itself."""
        known, first = self.reference.continuations, len(self._greedy)
        group = self.prompts[first : first + GROUP]
        missing = [prompt for prompt in group if tuple(prompt) not in known]
        if missing:
            runner = open_runner()
            found = (
                self.reference.greedy(missing, self.count)
                if isinstance(runner, StepsRunner)
                else generate(runner, missing, self.count)
            )
            known |= {tuple(prompt): tokens for prompt, tokens in zip(missing, found, strict=True)}
        self._greedy += [Greedy(prompt, known[tuple(prompt)][: self.count]) for prompt in group]


def generate(runner: Runner, prompts: Sequence[list[int]], count: int) -> list[list[int]]:
    """The `count` tokens that a runner generates greedily after each prompt, all prompts in a batch."""
    last_BV = [runner.prefill(slot, prompt, 0, [len(prompt) - 1])[0].copy() for slot, prompt in enumerate(prompts)]
    tokens = [[int(logits_V.argmax())] for logits_V in last_BV]
    for made in range(1, count):
        past_B = [len(prompt) + made - 1 for prompt in prompts]
        logits_BV = runner.decode(0, [found[-1] for found in tokens], past_B)
        for found, logits_V in zip(tokens, logits_BV, strict=True):
            found.append(int(logits_V.argmax()))
    return tokens


def _margins(logits_SV: Logits, tokens_S: Sequence[int]) -> NDArray[np.float32]:
    """By how much each token's logit exceeds the largest of the others; below 0 where another one is best."""
    places = np.arange(len(tokens_S))
    others_SV = logits_SV.copy()
    others_SV[places, tokens_S] = -np.inf
    return logits_SV[places, tokens_S] - others_SV.max(axis=1)


def _differs(place: int, count: int, actual: int, expected: int) -> CheckError:
    return CheckError(
        f"parity: greedy token {place + 1} of {count} is {actual}, torch generates {expected}; nothing was published"
    )
