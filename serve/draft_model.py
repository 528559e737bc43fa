"""Guesses of the next tokens by a second, smaller model of the same vocabulary.

Speculative decoding (Leviathan et al. 2023, Chen et al. 2023) draws from the small model, and accepts what it drew with
a probability that leaves the large model's distribution as it is. Here the guess is what the request's own sampler
would draw from the small model's logits, with the very random number, penalties and structure that the large model's
token will be drawn with; it is right where both come out the same. The more alike the two distributions are, the more
often they do, at any temperature; and a seed gives the same text with a draft as without.

Legend: N rows of logits, V vocabulary.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..artifacts import CheckError, InputError, LanguageModelFacts
from ..runtime.onnxruntime import language_model_facts
from ..runtime.opening import open_onnx
from ..runtime.runner import MixedRunner, Runner, Segment
from ..runtime.tokenizer import load_tokenizer
from .pace import Recent
from .sampling import Sampler
from .tickets import Ticket


@dataclass(frozen=True)
class Wanted:
    """A request that guesses are wanted for: its slot, and how many at most."""

    slot: int
    ticket: Ticket
    most: int


@dataclass
class _Sequence:
    """What the draft's cache holds of one request: `known` of its tokens, and guesses after them.

    `sampler` draws this round's guesses; it is a copy of the request's own.
    """

    wanted: Wanted
    known: int = 0
    guesses: list[int] = field(default_factory=list)
    sampler: Sampler | None = None

    def settle(self, wanted: Wanted) -> None:
        """Take note of which guesses have become tokens, before the next ones. The last token is to be read anew."""
        tokens = wanted.ticket.generation.tokens
        cached = self.guesses[:-1]  # the last one was never put into the cache
        right = 0
        while right < len(cached) and tokens[self.known : self.known + 1] == [cached[right]]:
            self.known += 1
            right += 1
        self.known = min(self.known, len(tokens) - 1)
        self.wanted, self.guesses, self.sampler = wanted, [], None

    @property
    def unread(self) -> int:
        """Its tokens that the cache does not hold."""
        return len(self.wanted.ticket.generation.tokens) - self.known

    def read(self, budget: int) -> Segment:
        """The next of its tokens, up to `budget` of them; with a row of logits after the last of all."""
        tokens = self.wanted.ticket.generation.tokens
        ids_S = tokens[self.known : self.known + max(1, budget)]
        is_last = self.known + len(ids_S) == len(tokens)
        segment = Segment(self.wanted.slot, ids_S, self.known, (len(ids_S) - 1,) if is_last else ())
        self.known += len(ids_S)
        return segment

    def go_on(self) -> Segment:
        """The latest guess."""
        return Segment(self.wanted.slot, self.guesses[-1:], self.known + len(self.guesses) - 1, (0,))

    def draw(self, logits_V: NDArray[np.float32]) -> bool:
        """Guess a token; returns whether another one is wanted."""
        generation = self.wanted.ticket.generation
        self.sampler = self.sampler or generation.fork_sampler()
        try:
            token = self.sampler.sample(logits_V)
        except CheckError:
            return False  # what the request asks leaves nothing to guess
        if generation.ends_with(token):
            return False
        self.guesses.append(token)
        return len(self.guesses) < self.wanted.most


class DraftModel:
    """Guesses for all requests of a batch together; used by the scheduler's thread.

    Args:
        runner: of the small model, with a slot for each of the large one's.
    """

    def __init__(self, runner: MixedRunner) -> None:
        self._runner = runner
        self._sequences: dict[int, _Sequence] = {}
        self._round = Recent()

    @property
    def round_seconds(self) -> float:
        """What a guess for each request takes lately; 0 before the first."""
        return self._round.middle or 0.0

    def propose(self, wanting: Sequence[Wanted], budget: int) -> dict[Ticket, tuple[int, ...]]:
        """The guesses for each request, by the request; of one whose tokens are not read yet, up to `budget` are read.

        The requests' own state does not change.
        """
        # Those with the most to read come last: they must not keep the others from a guess.
        sequences = sorted((self._sequence(w) for w in wanting if self._fits(w)), key=lambda sequence: sequence.unread)
        active = self._step(sequences, list(_readings(sequences, budget)))
        while active:
            started = time.perf_counter()
            active = self._step(active, [sequence.go_on() for sequence in active])
            self._round.add(time.perf_counter() - started)
        return {sequence.wanted.ticket: tuple(sequence.guesses) for sequence in sequences if sequence.guesses}

    def _fits(self, wanted: Wanted) -> bool:
        return len(wanted.ticket.generation.tokens) + wanted.most <= self._runner.context_length

    def _sequence(self, wanted: Wanted) -> _Sequence:
        sequence = self._sequences.get(wanted.slot)
        if sequence is None or sequence.wanted.ticket is not wanted.ticket:
            sequence = self._sequences[wanted.slot] = _Sequence(wanted)
        sequence.settle(wanted)
        return sequence

    def _step(self, sequences: list[_Sequence], segments: list[Segment]) -> list[_Sequence]:
        """Compute segments, and draw where there are logits; returns the sequences that want another guess."""
        if not segments:
            return []
        logits_NV = self._runner.step(segments)
        drawing = [sequence for sequence, segment in zip(sequences, segments, strict=True) if segment.rows_N]
        return [sequence for sequence, logits_V in zip(drawing, logits_NV, strict=True) if sequence.draw(logits_V)]


def _readings(sequences: Sequence[_Sequence], budget: int) -> Iterator[Segment]:
    for sequence in sequences:
        segment = sequence.read(budget)
        budget -= len(segment.ids_S)
        yield segment


def open_draft(artifact: Path, runner: Runner, tokenizer: Tokenizer, threads: int | None = None) -> DraftModel | None:
    """The draft of a published artifact, for the model of a runner; None where that runner cannot check guesses.

    Raises:
        InputError: it has another vocabulary, is damaged, or the op library cannot run it.
    """
    _check_vocabulary(language_model_facts(artifact), artifact, runner.vocab_size, tokenizer)
    if not isinstance(runner, MixedRunner):
        return None
    small = open_onnx(artifact, runner.slots, threads, graph="kernels")
    assert isinstance(small, MixedRunner), "the op library takes mixed steps"
    return DraftModel(small)


def check_draft(artifact: Path, draft: Path) -> None:
    """Raise InputError where an artifact cannot be the draft of another one."""
    facts = language_model_facts(artifact)
    _check_vocabulary(language_model_facts(draft), draft, facts.vocab_size, load_tokenizer(artifact))


def _check_vocabulary(facts: LanguageModelFacts, draft: Path, vocab_size: int, tokenizer: Tokenizer) -> None:
    if facts.vocab_size != vocab_size:
        raise InputError(
            f"the draft {draft} has a vocabulary of {facts.vocab_size} tokens, the model one of {vocab_size}: a draft "
            f"has the vocabulary of its model"
        )
    if load_tokenizer(draft).get_vocab() != tokenizer.get_vocab():
        raise InputError(f"the draft {draft} has other tokens than the model: a draft has the tokenizer of its model")
