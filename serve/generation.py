"""One request from prompt to finish: what is asked, what comes back, and the state in between. It knows no slots."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..artifacts import InputError
from .detokenize import Detokenizer, StopStrings
from .engine.scoring import token_log_probs
from .sampling import Sampler, SamplingParameters, log_probability

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"


@dataclass(frozen=True)
class GenerationRequest:
    """What a caller submits.

    Attributes:
        prompt_ids: at least one token.
        sampling: how to go on from there; `max_tokens=0` needs `return_prompt_log_probs`, and only scores.
        return_log_probs: give the natural-log probability of every generated token.
        return_prompt_log_probs: give those of the prompt's tokens after the first, with the last chunk.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    return_log_probs: bool = False
    return_prompt_log_probs: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_ids", tuple(int(token) for token in self.prompt_ids))
        if not self.prompt_ids:
            raise InputError("the prompt is empty: it takes at least one token")
        if self.sampling.max_tokens == 0 and not self.return_prompt_log_probs:
            raise InputError("max_tokens is 0 and no prompt_log_probs are asked for: there is nothing to do")

    def check_fits(self, context_length: int, vocab_size: int) -> None:
        """Raise InputError where the prompt and the completion exceed the context, or a token the vocabulary."""
        prompt, new = len(self.prompt_ids), self.sampling.max_tokens
        if prompt + new > context_length:
            raise InputError(
                f"the prompt's {prompt} tokens and max_tokens {new} make {prompt + new}, "
                f"more than the context of {context_length} tokens"
            )
        if not 0 <= min(self.prompt_ids) <= max(self.prompt_ids) < vocab_size:
            raise InputError(f"input_ids: a token id is outside the vocabulary of {vocab_size} tokens")
        if max(self.sampling.stop_token_ids, default=0) >= vocab_size:
            raise InputError(f"stop_token_ids: a token id is outside the vocabulary of {vocab_size} tokens")


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
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    finish_reason: str | None = None
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    prompt_log_probs: tuple[float, ...] | None = None
    cumulative_log_prob: float | None = None


def join_chunks(first: Chunk | None, second: Chunk) -> Chunk:
    """Two consecutive chunks of a request as one."""
    if first is None:
        return second
    return replace(
        second,
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        log_probs=first.log_probs + second.log_probs,
    )


class Generation:
    """The state of one request; `accept` is given the logits after the latest token and makes the next one."""

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> None:
        self.request = request
        self.next_input = request.prompt_ids[-1]
        self.num_output_tokens = 0
        self._end_token_ids = frozenset(eos_token_ids) | frozenset(request.sampling.stop_token_ids)
        self._sampler = Sampler(request.sampling)
        self._detokenizer = Detokenizer(tokenizer, request.prompt_ids)
        self._stop = StopStrings(request.sampling.stop)
        self._prompt_log_probs: list[float] = []
        self._cumulative_log_prob = 0.0 if request.return_log_probs else None

    def score_prompt(self, logits_NV: NDArray[np.float32], first: int) -> None:
        """Take the logits after the prompt's tokens `first`, `first + 1`, …; the last token's are not needed."""
        targets = self.request.prompt_ids[first + 1 : first + 1 + len(logits_NV)]
        self._prompt_log_probs.extend(token_log_probs(logits_NV[: len(targets)], targets).tolist())

    def accept(self, logits_V: NDArray[np.float32]) -> Chunk:
        """Draw a token from logits [V]; the chunk has a `finish_reason` where it is the last."""
        token = self._sampler.sample(logits_V)
        if token in self._end_token_ids:
            return self.finish(STOP, self._rest())
        self.next_input = token
        self.num_output_tokens += 1
        log_probs = self._score(logits_V, token)
        text, stopped = self._stop.push(self._detokenizer.push(token))
        if stopped:
            return self.finish(STOP, text, (token,), log_probs)
        if self.num_output_tokens == self.request.sampling.max_tokens:
            return self._finish_at_length(text, token, log_probs)
        return Chunk(text, (token,), log_probs, cumulative_log_prob=self._cumulative_log_prob)

    def finish(
        self, reason: str, text: str = "", token_ids: tuple[int, ...] = (), log_probs: tuple[float, ...] = ()
    ) -> Chunk:
        """The last chunk, with the counts."""
        return Chunk(
            text=text,
            token_ids=token_ids,
            log_probs=log_probs,
            finish_reason=reason,
            num_input_tokens=len(self.request.prompt_ids),
            num_output_tokens=self.num_output_tokens,
            prompt_log_probs=tuple(self._prompt_log_probs) if self.request.return_prompt_log_probs else None,
            cumulative_log_prob=self._cumulative_log_prob,
        )

    def _score(self, logits_V: NDArray[np.float32], token: int) -> tuple[float, ...]:
        if self._cumulative_log_prob is None:
            return ()
        score = log_probability(logits_V, token)
        self._cumulative_log_prob += score
        return (score,)

    def _finish_at_length(self, text: str, token: int, log_probs: tuple[float, ...]) -> Chunk:
        rest, stopped = self._stop.push(self._detokenizer.flush())
        reason = STOP if stopped else LENGTH
        return self.finish(reason, text + rest + self._stop.flush(), (token,), log_probs)

    def _rest(self) -> str:
        text, _ = self._stop.push(self._detokenizer.flush())
        return text + self._stop.flush()
