"""The served model as the gateway knows it: its name, tokenizer, context and chat template, and the way to it."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from ...runtime.onnxruntime import language_model_facts
from ...runtime.tokenizer import bytes_per_token, load_tokenizer
from ..async_client import AsyncClient
from ..chat_template import ChatTemplate, read_chat_template
from ..client_errors import ServerUnavailableError
from ..generation import Chunk
from ..parameters import SamplingParameters
from ..triton.protocol import MAX_TEXT_BYTES
from ..triton.settings import MODEL_NAME
from .connection import Connection
from .errors import invalid
from .metrics import Metrics
from .records import Phases, Record
from .tokens import TokenBytes

THREADS = 2
"""Tokenizing takes its time there, while the event loop serves the other requests."""
SHORT_BYTES = 2048
"""A text up to this is tokenized at once: a millisecond, not more than handing it over costs under load."""


@dataclass(frozen=True)
class Job:
    """One completion that is to be made.

    Attributes:
        index: of the choice that it is.
        prompt_ids: at least one token.
        log_probs, prompt_log_probs: whether to score what is generated, and the prompt.
    """

    index: int
    prompt_ids: tuple[int, ...]
    sampling: SamplingParameters
    log_probs: bool = False
    prompt_log_probs: bool = False


def with_seed(sampling: SamplingParameters, choice: int) -> SamplingParameters:
    """The parameters for a further choice of the same prompt, which is drawn with a seed of its own."""
    if sampling.seed is None or not choice:
        return sampling
    return replace(sampling, seed=(sampling.seed + choice) % 2**64)


class ServedModel:
    """One model behind one Triton server. `connect` it before anything is run.

    Args:
        artifact: what the server serves; its tokenizer and chat template are read from here.
        name: by which requests call it.
        metrics: where tokens and times are counted.
        server_name: by which the server calls it.

    Raises:
        InputError: the artifact is damaged or no language model.
    """

    def __init__(self, artifact: Path, name: str, metrics: Metrics, server_name: str = MODEL_NAME) -> None:
        facts = language_model_facts(artifact)
        self.name = name
        self.server_name = server_name
        self.context_length = facts.context_length
        self.vocab_size = facts.vocab_size
        self.template: ChatTemplate | None = read_chat_template(artifact)
        self._client: AsyncClient | None = None
        self._tokenizer = load_tokenizer(artifact)
        self.token_bytes = TokenBytes(self._tokenizer)
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="hebbline-tokenize")
        most = bytes_per_token(self._tokenizer)
        self.max_prompt_bytes = MAX_TEXT_BYTES if most is None else math.floor(most * self.context_length)

    def connect(self, connection: Connection) -> None:
        """Use a server, from the running event loop."""
        self._client = connection.client(self.server_name)

    async def is_ready(self) -> bool:
        """Whether the server has it loaded."""
        assert self._client is not None, "the model has been connected"
        return await self._client.is_ready()

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The tokens of a text; raises ApiError where it is longer than the context, without tokenizing all of it."""
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise invalid(f"the prompt is no Unicode text: {error.reason}", "prompt") from error
        if size > self.max_prompt_bytes:
            raise self._too_long(f"the prompt has {size} bytes; one that fits has at most {self.max_prompt_bytes}")
        if size <= SHORT_BYTES:
            ids = self._encode(text, add_special_tokens)
        else:
            ids = await self._encode_aside(text, add_special_tokens)
        if not ids:
            raise invalid("the prompt is empty: it takes at least one token", "prompt")
        return ids

    def checked(self, ids: Sequence[int]) -> tuple[int, ...]:
        """A prompt that came as tokens; raises ApiError where it is empty, too long, or not of this vocabulary."""
        if not ids:
            raise invalid("the prompt is empty: it takes at least one token", "prompt")
        if not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise invalid(f"the prompt has a token outside the vocabulary of {self.vocab_size} tokens", "prompt")
        self.tokens_left(ids, 0)
        return tuple(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def tokens_left(self, prompt_ids: Sequence[int], wanted: int | None) -> int:
        """The most tokens that a completion may have; raises ApiError where prompt and completion do not fit."""
        left = self.context_length - len(prompt_ids)
        if left < (1 if wanted is None else wanted):
            asked = "one more" if wanted is None else f"{wanted} in the completion"
            raise self._too_long(f"the request has {len(prompt_ids)} tokens in the prompt and {asked}")
        return left if wanted is None else wanted

    async def run(self, jobs: Sequence[Job], record: Record) -> AsyncGenerator[tuple[Job, Chunk], None]:
        """The chunks of all jobs as they come; the last of each has its `finish_reason`. Closing it cancels all."""
        if len(jobs) == 1:
            async with aclosing(self._counted(jobs[0], record)) as chunks:
                async for chunk in chunks:
                    yield jobs[0], chunk
            return
        queue: asyncio.Queue[tuple[Job, Chunk | Exception]] = asyncio.Queue()
        tasks = [asyncio.create_task(self._put(job, record, queue)) for job in jobs]
        try:
            left = len(tasks)
            while left:
                job, item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                yield job, item
                left -= item.finish_reason is not None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _put(self, job: Job, record: Record, queue: "asyncio.Queue[tuple[Job, Chunk | Exception]]") -> None:
        try:
            async with aclosing(self._counted(job, record)) as chunks:
                async for chunk in chunks:
                    queue.put_nowait((job, chunk))
        except Exception as error:
            queue.put_nowait((job, error))

    async def _counted(self, job: Job, record: Record) -> AsyncGenerator[Chunk, None]:
        """The chunks of one job, each counted in the metrics and the record."""
        assert self._client is not None, "the model has been connected"
        before: float | None = None
        sent = time.monotonic()
        chunks = self._client.stream(
            job.prompt_ids,
            job.sampling,
            return_log_probs=job.log_probs,
            return_prompt_log_probs=job.prompt_log_probs,
            client=record.key.name if record.key else "",
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                if chunk.token_ids:
                    now = record.seconds
                    if record.first_token is None:
                        record.first_token = now
                        self._metrics.count_first(now, self.name)
                    if before is not None:
                        self._metrics.gaps.observe(now - before)
                    before = now
                    self._metrics.count_tokens(len(chunk.token_ids), self.name)
                    record.completion_tokens += len(chunk.token_ids)
                if chunk.finish_reason is not None:
                    times = (chunk.queue_seconds, chunk.prompt_seconds)
                    record.phases.append(Phases(job.index, sent, time.monotonic(), *times))
                yield chunk

    async def _encode_aside(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        try:
            work = asyncio.get_running_loop().run_in_executor(self._pool, self._encode, text, add_special_tokens)
        except RuntimeError as error:
            raise ServerUnavailableError("the gateway is shutting down") from error
        return await work

    def _encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return tuple(encoding.ids)

    def _too_long(self, message: str) -> Exception:
        return invalid(
            f"this model's maximum context length is {self.context_length} tokens: {message}",
            "prompt",
            "context_length_exceeded",
        )

    async def close(self) -> None:
        """End the connection and the threads that tokenize."""
        self._pool.shutdown(wait=False)
        if self._client is not None:
            await self._client.close()
