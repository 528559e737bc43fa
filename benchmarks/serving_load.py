"""Streams of requests for a served model, and what their clients see: first tokens, gaps, tokens per second."""

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ..artifacts import CheckError
from ..serve.async_client import AsyncClient
from ..serve.parameters import SamplingParameters

Tokens = Callable[[Sequence[int]], AsyncIterator[int]]
"""Sends a prompt; yields how many tokens have come, each time that some do."""


@dataclass
class Seen:
    """What the clients of one load saw, in seconds.

    Attributes:
        first: from each request to its first token.
        gaps: from one token of a request to the next.
        tokens: that were generated in all.
        full_tokens, full_seconds: while all streams were open, until the first of them had nothing more to send. After
            that the batch is smaller, and a token of fewer streams takes more.
    """

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    full_tokens: int = 0
    full_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of all streams together, while all were open."""
        return self.full_tokens / self.full_seconds


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all are not above; nan of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def make_prompts(
    count: int, lengths: Sequence[int], shared: int, vocab_size: int, generator: np.random.Generator
) -> list[list[int]]:
    """Prompts of random tokens: their lengths in turn, all with the same `shared` tokens first."""
    prefix = generator.integers(0, vocab_size, shared).tolist()
    sizes = [lengths[index % len(lengths)] for index in range(count)]
    return [[*prefix, *generator.integers(0, vocab_size, size).tolist()] for size in sizes]


async def run_load(
    tokens: Tokens,
    prompts: Sequence[Sequence[int]],
    streams: int,
    on_first_end: Callable[[], None] = lambda: None,
) -> Seen:
    """Send all prompts, each stream one after another.

    Args:
        tokens: sends one of them.
        prompts: at least one for each stream.
        streams: that are open at a time.
        on_first_end: is called when the first stream has nothing more to send.

    Raises:
        CheckError: a request fails.
    """
    seen = Seen()
    waiting = iter(prompts)
    started = time.perf_counter()

    async def stream() -> None:
        for prompt in waiting:
            await _one(tokens, prompt, seen)
        if not seen.full_seconds:
            seen.full_tokens, seen.full_seconds = seen.tokens, time.perf_counter() - started
            on_first_end()

    await asyncio.gather(*(stream() for _ in range(streams)))
    return seen


async def _one(tokens: Tokens, prompt: Sequence[int], seen: Seen) -> None:
    before = started = time.perf_counter()
    async for count in tokens(prompt):
        now = time.perf_counter()
        (seen.first if before == started else seen.gaps).append(now - before)
        seen.tokens += count
        before = now


def grpc_tokens(client: AsyncClient, max_tokens: int) -> Tokens:
    """Through Triton's gRPC service."""
    sampling = SamplingParameters(max_tokens=max_tokens, ignore_eos=True)

    async def tokens(prompt: Sequence[int]) -> AsyncIterator[int]:
        async with aclosing(client.stream(prompt, sampling)) as chunks:
            async for chunk in chunks:
                if chunk.token_ids:
                    yield len(chunk.token_ids)

    return tokens


def openai_tokens(url: str, model: str, max_tokens: int) -> Tokens:
    """Through a gateway, which says with each event how many tokens are in it."""
    fields = _completion(model, max_tokens) | {"logprobs": 0}

    async def tokens(prompt: Sequence[int]) -> AsyncIterator[int]:
        async with aclosing(_events(f"{url}/v1/completions", fields | {"prompt": list(prompt)})) as events:
            async for event in events:
                if count := sum(len(choice["logprobs"]["tokens"]) for choice in event.get("choices", [])):
                    yield count

    return tokens


def counted_tokens(
    url: str, model: str, max_tokens: int, prompt_of: Callable[[Sequence[int]], list[int] | str] = list
) -> Tokens:
    """Through a server of others, which says only at the end how many tokens there were.

    An event with text counts as one token, and the last one as those that are left: their text was empty or came with
    another's. Log-probabilities, by which a gateway says it, would cost such a server more than they cost ours.

    Args:
        url: of the completions.
        model: by the name that the server has for it.
        max_tokens: of each completion. A server that does not know `ignore_eos` may end one earlier.
        prompt_of: makes of a prompt's tokens what the server takes.
    """
    fields = _completion(model, max_tokens) | {"stream_options": {"include_usage": True}}

    async def tokens(prompt: Sequence[int]) -> AsyncIterator[int]:
        seen = 0
        async with aclosing(_events(url, fields | {"prompt": prompt_of(prompt)})) as events:
            async for event in events:
                count = int(any(choice.get("text") for choice in event.get("choices", [])))
                if usage := event.get("usage"):
                    count = max(count, usage["completion_tokens"] - seen)
                if count:
                    seen += count
                    yield count

    return tokens


def _completion(model: str, max_tokens: int) -> dict[str, Any]:
    return {"model": model, "max_tokens": max_tokens, "temperature": 0, "stream": True, "ignore_eos": True}


async def _events(url: str, fields: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a streamed answer, by the smallest client there can be: its own processor time is not what is
    measured.

    Raises:
        CheckError: the server refuses the request, in its own words, or ends an answer with an error.
    """
    address = urlsplit(url)
    body = json.dumps(fields).encode()
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1 << 20)
    try:
        head = f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        if b" 200 " not in (status := await reader.readline()):
            while (await reader.readline()).strip():
                pass  # the other lines of the head
            said = status + await reader.read(2000)
            raise CheckError(f"{url} refused a request: {' '.join(said.decode(errors='replace').split())}")
        async for line in reader:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise CheckError(f"{url} ended an answer with an error: {event['error']}")
                yield event
    finally:
        writer.close()
