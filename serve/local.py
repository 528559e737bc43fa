"""An artifact as an object in the process at hand: generate and score text without a server."""

from collections.abc import Generator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import InputError, KvFormat
from ..runtime.fastest import open_fastest
from ..runtime.perplexity import Perplexity, stream_perplexity, stream_windows
from ..runtime.tokenizer import encode, load_tokenizer
from .draft_model import open_draft
from .fields import sampling_parameters
from .generation import Chunk, GenerationRequest, join_chunks
from .parameters import SamplingParameters
from .scheduler import Scheduler
from .tickets import Event, Failure

Prompt = str | Sequence[int]
"""A prompt as text or as tokens."""


class LanguageModel:
    """A published artifact, run in this process by what a server runs; usable from several threads.

    Args:
        artifact: the directory that `hebbline export` published; every file is verified before it is read.
        slots: requests that are generated at a time; others wait.
        threads: of ONNX Runtime within an operator; None takes one for each physical core.
        kv_cache: how keys and values are kept; None: as the artifact was exported.
        cache_bytes: the most memory that they take, where they are kept in blocks; 0: see `pool_blocks`.
        draft: the artifact of a smaller model of the same vocabulary, whose guesses the model checks; None: none.

    Attributes:
        graph_choice: which of the artifact's graphs runs, and the measurement that decided it.

    Raises:
        InputError: the directory is no artifact of a language model, is damaged, or ONNX Runtime cannot load it.
    """

    def __init__(
        self,
        artifact: str | Path,
        *,
        slots: int = 4,
        threads: int | None = None,
        kv_cache: KvFormat | None = None,
        cache_bytes: int = 0,
        draft: str | Path | None = None,
    ) -> None:
        path = Path(artifact)
        runner, self.graph_choice = open_fastest(path, slots, threads, kv=kv_cache, cache_bytes=cache_bytes)
        self.context_length = runner.context_length
        self._tokenizer = load_tokenizer(path)
        guessing = None if draft is None else open_draft(Path(draft), runner, self._tokenizer, threads)
        self._scheduler = Scheduler(runner, self._tokenizer, runner.facts.eos_token_ids, draft=guessing)

    def __enter__(self) -> "LanguageModel":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the model's thread; open requests fail."""
        self._scheduler.close()

    def generate(self, prompt: Prompt, **sampling: Any) -> str:
        """The text that follows a prompt.

        Args:
            prompt: text, or tokens.
            sampling: fields of `SamplingParameters`, `n` excepted. Greedy unless a temperature is given.

        Raises:
            InputError: a field is unknown or wrong, or prompt and completion do not fit the context.
        """
        return self.complete(prompt, **sampling).text

    def complete(self, prompt: Prompt, *, return_log_probs: bool = False, **sampling: Any) -> Chunk:
        """As `generate`, with tokens, counts, the reason of the end and, if asked for, log-probabilities."""
        whole: Chunk | None = None
        for chunk in self.stream(prompt, return_log_probs=return_log_probs, **sampling):
            whole = join_chunks(whole, chunk)
        assert whole is not None  # a request ends with a chunk, or with an error
        return whole

    def stream(
        self, prompt: Prompt, *, return_log_probs: bool = False, **sampling: Any
    ) -> Generator[Chunk, None, None]:
        """As `complete`, a piece at a time. Closing the generator cancels the request."""
        parameters = sampling_parameters(sampling)
        if parameters.n != 1:
            raise InputError("n must be 1 here: ask as often as completions are wanted")
        return self._run(GenerationRequest(self._ids(prompt), parameters, return_log_probs))

    def perplexity(self, text: str, *, window: int | None = None, stride: int | None = None) -> Perplexity:
        """Perplexity on a whole text, as one stream: see `hebbline.runtime.perplexity.stream_windows`.

        Args:
            text: at least two tokens long.
            window: the most tokens of a window; the context, at most 2048, unless given.
            stride: tokens between the beginnings of two windows; the window unless given.

        Raises:
            InputError: the text is too short, or window and stride do not fit.
        """
        tokens = min(self.context_length, 2048) if window is None else window
        ids = self._tokenizer.encode(text).ids
        windows = stream_windows(ids, tokens, tokens if stride is None else stride)
        return stream_perplexity(windows, self.log_probs)

    def log_probs(self, prompt: Prompt) -> NDArray[np.float64]:
        """Natural-log probability of each of the prompt's T tokens after the first, given those before; [T - 1]."""
        request = GenerationRequest(self._ids(prompt), SamplingParameters(max_tokens=0), return_prompt_log_probs=True)
        (chunk,) = self._run(request)
        return np.array(chunk.prompt_log_probs, np.float64)

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        return encode(self._tokenizer, prompt, self.context_length) if isinstance(prompt, str) else tuple(prompt)

    def _run(self, request: GenerationRequest) -> Generator[Chunk, None, None]:
        events: SimpleQueue[Event] = SimpleQueue()
        ticket = self._scheduler.submit(request, events.put)
        try:
            while True:
                event = events.get()
                if isinstance(event, Failure):
                    raise event.error
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            ticket.cancel()


def load(artifact: str | Path, **options: Any) -> LanguageModel:
    """Open an artifact in this process: see `LanguageModel` for the options and for what it does."""
    return LanguageModel(artifact, **options)
