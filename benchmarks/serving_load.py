"""Streams of requests for a served model, and what their clients see: first tokens, gaps, tokens per second."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
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
        seconds: of the whole load.
    """

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of all streams together."""
        return self.tokens / self.seconds


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


async def run_load(tokens: Tokens, prompts: Sequence[Sequence[int]], streams: int) -> Seen:
    """Send all prompts, each stream one after another; CheckError where a request fails."""
    seen = Seen()
    waiting = iter(prompts)

    async def stream() -> None:
        for prompt in waiting:
            await _one(tokens, prompt, seen)

    started = time.perf_counter()
    await asyncio.gather(*(stream() for _ in range(streams)))
    seen.seconds = time.perf_counter() - started
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
    """Through a gateway, by the smallest client there can be: the load's own processor time is not what is measured."""
    address = urlsplit(url)

    async def tokens(prompt: Sequence[int]) -> AsyncIterator[int]:
        fields = {"model": model, "prompt": list(prompt), "max_tokens": max_tokens, "temperature": 0, "stream": True}
        body = json.dumps({**fields, "ignore_eos": True, "logprobs": 0}).encode()
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1 << 20)
        try:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            status = await reader.readline()
            if b" 200 " not in status:
                raise CheckError(f"the gateway refused a request: {(await reader.read(2000)).decode(errors='replace')}")
            async for line in reader:
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:]).get("choices", [])
                    count = sum(len(choice["logprobs"]["tokens"]) for choice in choices)
                    if count:
                        yield count
        finally:
            writer.close()

    return tokens
