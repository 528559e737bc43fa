"""One request from prompt to finish: what is asked, what comes back, and the state in between. It knows no slots."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..artifacts import InputError
from ..runtime.scoring import token_log_probs
from .detokenize import Detokenizer, StopStrings
from .parameters import SamplingParameters
from .sampling import Sampler, log_probability, top_log_probabilities
from .structure import Structure

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"

TopLogProbs = tuple[tuple[int, float], ...]
"""The most likely tokens of one place and their natural-log probabilities, the likeliest first."""


@dataclass(frozen=True)
class GenerationRequest:
    """What a caller submits.

    Attributes:
        prompt_ids: at least one token.
        sampling: how to go on from there; `max_tokens=0` needs `return_prompt_log_probs`, and only scores.
        return_log_probs: give the natural-log probability of every generated token.
        return_prompt_log_probs: give those of the prompt's tokens after the first, with the last chunk.
        client: whom the request is from, for a fair order among those who wait; "" is one client like any other.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    return_log_probs: bool = False
    return_prompt_log_probs: bool = False
    client: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_ids", tuple(int(token) for token in self.prompt_ids))
        if not self.prompt_ids:
            raise InputError("the prompt is empty: it takes at least one token")
        if self.sampling.max_tokens == 0 and not self.return_prompt_log_probs:
            raise InputError("max_tokens is 0 and no prompt_log_probs are asked for: there is nothing to do")

    @property
    def max_tokens(self) -> int:
        """The most tokens to generate; the request is a `fitted` one."""
        assert self.sampling.max_tokens is not None, "the request has been fitted to a context"
        return self.sampling.max_tokens

    def fitted(self, context_length: int, vocab_size: int) -> "GenerationRequest":
        """The request for a model, with `max_tokens` as many as fit where it was left out.

        Raises:
            InputError: the prompt and the completion exceed the context, or a token the vocabulary.
        """
        prompt, new = len(self.prompt_ids), self.sampling.max_tokens
        if prompt + (1 if new is None else new) > context_length:
            wanted = "one more token" if new is None else f"max_tokens {new}"
            raise InputError(
                f"the prompt's {prompt} tokens and {wanted} make {prompt + (1 if new is None else new)}, "
                f"more than the context of {context_length} tokens"
            )
        for name, ids in (
            ("input_ids", self.prompt_ids),
            ("stop_token_ids", self.sampling.stop_token_ids),
            ("logit_bias", tuple(self.sampling.logit_bias)),
        ):
            if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
                raise InputError(f"{name}: a token id is outside the vocabulary of {vocab_size} tokens")
        if new is not None:
            return self
        return replace(self, sampling=replace(self.sampling, max_tokens=context_length - prompt))


@dataclass(frozen=True)
class Chunk:
    """A piece of a completion.

    Attributes:
        text: what can be shown now; "" within a character or a possible stop string.
        token_ids: the tokens behind this piece. The end-of-sequence token is neither here nor in the text.
        log_probs: one for each of `token_ids` where they were asked for, else empty.
        finish_reason: "stop" (end-of-sequence token, stop token or string), "length" or "cancelled" in the last chunk.
        cumulative_log_prob: of all tokens so far together, where log-probabilities were asked for.
        num_input_tokens, num_output_tokens: in the last chunk, else 0.
        prompt_log_probs: of the prompt's tokens after the first, in the last chunk where they were asked for.
        top_log_probs: for each of `token_ids` the most likely tokens of its place, as many as were asked for.
        prompt_top_log_probs: the same for each of `prompt_log_probs`.
        index: of the completion among those of its request.
        queue_seconds, prompt_seconds: in the last chunk, what it waited for a place, and from there to the first token.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    finish_reason: str | None = None
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    prompt_log_probs: tuple[float, ...] | None = None
    cumulative_log_prob: float | None = None
    top_log_probs: tuple[TopLogProbs, ...] = ()
    prompt_top_log_probs: tuple[TopLogProbs, ...] | None = None
    index: int = 0
    queue_seconds: float = field(default=0.0, compare=False)
    prompt_seconds: float = field(default=0.0, compare=False)


def join_chunks(first: Chunk | None, second: Chunk) -> Chunk:
    """Two consecutive chunks of a request as one."""
    if first is None:
        return second
    return replace(
        second,
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        log_probs=first.log_probs + second.log_probs,
        top_log_probs=first.top_log_probs + second.top_log_probs,
    )


class Generation:
    """The state of one completion; `accept` is given the logits after the latest token and makes the next one.

    Attributes:
        tokens: of the prompt and the completion so far.

    Args:
        request: a fitted one.
        tokenizer: as `tokenizers` loads it.
        eos_token_ids: the model's own, any of which ends the text.
        structure: what the text follows; None: nothing.
        index: of the completion among the request's `n`.
    """

    def __init__(
        self,
        request: GenerationRequest,
        tokenizer: Tokenizer,
        eos_token_ids: Sequence[int],
        structure: Structure | None = None,
        index: int = 0,
    ) -> None:
        self.request = request
        self.index = index
        self.tokens = list(request.prompt_ids)
        self.num_output_tokens = 0
        sampling = request.sampling
        own = () if sampling.ignore_eos else eos_token_ids
        self._end_token_ids = frozenset(own) | frozenset(sampling.stop_token_ids)
        self._sampler = Sampler(sampling, request.prompt_ids, tuple(self._end_token_ids), structure, index)
        self._detokenizer = Detokenizer(tokenizer, request.prompt_ids)
        self._stop = StopStrings(sampling.stop)
        self._scored = 0
        self._prompt_log_probs: list[float] = []
        self._prompt_top: list[TopLogProbs] = []
        self._cumulative_log_prob = 0.0 if request.return_log_probs else None

    def score_prompt(self, logits_NV: NDArray[np.float32], first: int) -> None:
        """Take the logits after the prompt's tokens `first`, `first + 1`, …; the last token's are not needed.

        Tokens that were scored before are passed over: a prompt may be read again.
        """
        logits_NV = logits_NV[self._scored - first :]
        targets = self.request.prompt_ids[self._scored + 1 : self._scored + 1 + len(logits_NV)]
        logits_NV = logits_NV[: len(targets)]
        self._scored += len(targets)
        if len(targets) == 0:
            return
        self._prompt_log_probs.extend(token_log_probs(logits_NV, targets).tolist())
        if count := self.request.sampling.top_logprobs:
            self._prompt_top.extend(top_log_probabilities(logits_V, count) for logits_V in logits_NV)

    def accept(self, logits_V: NDArray[np.float32]) -> Chunk:
        """Draw a token from logits [V]; the chunk has a `finish_reason` where it is the last."""
        token = self._sampler.sample(logits_V)
        if token in self._end_token_ids:
            return self.finish(STOP, self._rest())
        self.tokens.append(token)
        self.num_output_tokens += 1
        text, stopped = self._push(token)
        chunk = self._scored_chunk(logits_V, token, text)
        if stopped:
            return self.finish(STOP, text, chunk)
        if self._sampler.is_complete:
            return self.finish(STOP, text + self._rest(), chunk)
        if self.num_output_tokens == self.request.max_tokens:
            return self._finish_at_length(text, chunk)
        return chunk

    def fork_sampler(self) -> Sampler:
        """A sampler that draws what would be drawn next, for guesses."""
        return self._sampler.fork()

    def ends_with(self, token: int) -> bool:
        """Whether a token ends the text."""
        return token in self._end_token_ids

    def finish(self, reason: str, text: str = "", chunk: Chunk | None = None) -> Chunk:
        """The last chunk, with the counts; `chunk` is that of its token, where it has one."""
        asked = self.request.return_prompt_log_probs
        return replace(
            chunk or Chunk(index=self.index),
            text=text,
            finish_reason=reason,
            num_input_tokens=len(self.request.prompt_ids),
            num_output_tokens=self.num_output_tokens,
            prompt_log_probs=tuple(self._prompt_log_probs) if asked else None,
            prompt_top_log_probs=tuple(self._prompt_top) if asked else None,
            cumulative_log_prob=self._cumulative_log_prob,
        )

    def _push(self, token: int) -> tuple[str, bool]:
        """The text that a token makes certain, and whether a stop string ends it there."""
        piece = self._detokenizer.push(token)
        if self.num_output_tokens < self.request.sampling.min_tokens:
            return piece, False
        return self._stop.push(piece)

    def _scored_chunk(self, logits_V: NDArray[np.float32], token: int, text: str) -> Chunk:
        """A chunk of one token, with its log-probabilities where they are asked for."""
        if self._cumulative_log_prob is None:
            return Chunk(text, (token,), index=self.index)
        score = log_probability(logits_V, token)
        self._cumulative_log_prob += score
        count = self.request.sampling.top_logprobs
        return Chunk(
            text,
            (token,),
            log_probs=(score,),
            cumulative_log_prob=self._cumulative_log_prob,
            top_log_probs=(top_log_probabilities(logits_V, count),) if count else (),
            index=self.index,
        )

    def _finish_at_length(self, text: str, chunk: Chunk) -> Chunk:
        rest, stopped = self._stop.push(self._detokenizer.flush())
        reason = STOP if stopped else LENGTH
        return self.finish(reason, text + rest + self._stop.flush(), chunk)

    def _rest(self) -> str:
        text, _ = self._stop.push(self._detokenizer.flush())
        return text + self._stop.flush()
