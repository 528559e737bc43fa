"""How soon a served model is free, or there, again: `python -m hebbline.benchmarks.serving_operation ARTIFACT`.

A request that is cancelled gives its slot to one that waits; a model's process that is killed is started again.
"""

import argparse
import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np

from ..artifacts import CheckError, LanguageModelFacts
from ..kernels.isa import kernels_isa
from ..runtime.onnxruntime import language_model_facts
from ..serve.async_client import NO_RETRIES, AsyncClient, Retries
from ..serve.parameters import SamplingParameters
from ..serve.triton.launch import TritonServer
from ..serve.triton.process import free_ports
from ..serve.triton.repository import fill_repository
from ..serve.triton.settings import Settings
from ..serve.triton.watch import model_processes
from .endings import scratch_directory
from .serving_load import make_prompts, percentile

PROMPT_TOKENS = 16
QUEUED_SECONDS = 0.05
"""After so long a request that was sent waits in the queue."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures, in milliseconds and seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--slots", type=int, default=4, help="all of them are taken when a request is cancelled")
    parser.add_argument("--cancels", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=3)
    options = parser.parse_args(arguments)
    settings = Settings(slots=options.slots, threads=1, max_waiting=options.slots)
    facts = language_model_facts(options.artifact)
    print(f"{options.artifact}, kernels with {kernels_isa()}", flush=True)
    with scratch_directory() as directory:
        fill_repository(options.artifact, directory / "repository", settings)
        with TritonServer(directory / "repository", directory, free_ports(), drain_seconds=1) as server:
            server.wait_ready()
            freed, answered = asyncio.run(_cancel_and_wait(server.grpc_url, options.slots, options.cancels, facts))
        for until, seconds in (("its slot is free", freed), ("the request that waited has a token", answered)):
            found = _summary([1e3 * value for value in seconds])
            print(f"from a cancellation until {until}, ms, {options.cancels} times: {found}", flush=True)
        back = [_restart(directory) for _ in range(options.restarts)]
    print(f"from the death of the model's process to an answered request, s: {_summary(back)}")


def _summary(values: list[float]) -> str:
    return f"median {percentile(values, 0.5):.1f}, 99% below {percentile(values, 0.99):.1f}, most {max(values):.1f}"


class _Request:
    """A request that takes a slot until it is cancelled; `begun` is set with its first token."""

    def __init__(self, client: AsyncClient, prompt: list[int], sampling: SamplingParameters) -> None:
        self.begun = asyncio.Event()
        self.task = asyncio.create_task(self._read(client, prompt, sampling))

    async def _read(self, client: AsyncClient, prompt: list[int], sampling: SamplingParameters) -> None:
        async with aclosing(client.stream(prompt, sampling)) as chunks:
            async for _ in chunks:
                self.begun.set()


async def _cancel_and_wait(
    url: str, slots: int, cancels: int, facts: LanguageModelFacts
) -> tuple[list[float], list[float]]:
    """Seconds from each cancellation, while all slots are taken, until the slot is free, and until the request that
    waited has its first token."""
    generator = np.random.default_rng(0)
    prompts = make_prompts(slots + 2 * cancels, (PROMPT_TOKENS,), 0, facts.vocab_size, generator)
    # Drawn, so that no text repeats itself, which is guessed ahead and comes to its end early.
    long = SamplingParameters(max_tokens=facts.context_length - PROMPT_TOKENS, ignore_eos=True, temperature=1.0, seed=0)
    freed: list[float] = []
    answered: list[float] = []
    async with AsyncClient(url, timeout=3600, retries=NO_RETRIES) as client:
        running: deque[_Request] = deque()
        for prompt in prompts[:slots]:
            running.append(await _begun(client, prompt, long))
        for waiting, next_one in zip(prompts[slots::2], prompts[slots + 1 :: 2], strict=True):
            request = asyncio.create_task(client.complete(waiting, SamplingParameters(max_tokens=1)))
            await asyncio.sleep(QUEUED_SECONDS)
            if request.done():
                await request  # which raises where it was refused
                raise CheckError(
                    f"a request came to its end by itself: a context of {facts.context_length} is too short"
                )
            started = time.perf_counter()
            running.popleft().task.cancel()
            chunk = await request
            answered.append(time.perf_counter() - started)
            freed.append(answered[-1] - chunk.prompt_seconds)
            running.append(await _begun(client, next_one, long))
        for left in running:
            left.task.cancel()
        await asyncio.gather(*(left.task for left in running), return_exceptions=True)
    return freed, answered


async def _begun(client: AsyncClient, prompt: list[int], sampling: SamplingParameters) -> _Request:
    """A request that has its first token."""
    request = _Request(client, prompt, sampling)
    await request.begun.wait()
    return request


def _restart(directory: Path) -> float:
    """Seconds from when the model's process is killed to a whole answer from the one that replaces it."""
    with TritonServer(directory / "repository", directory, free_ports(), drain_seconds=1) as server:
        server.wait_ready()
        assert server.pid is not None, "the server runs"
        os.kill(model_processes(server.pid)[0].pid, signal.SIGKILL)
        started = time.perf_counter()
        asyncio.run(_ask_until_answered(server.grpc_url))
        return time.perf_counter() - started


async def _ask_until_answered(url: str) -> None:
    async with AsyncClient(url, retries=Retries(2000, 0.02, 0.05)) as client:
        await client.complete(list(range(PROMPT_TOKENS)), SamplingParameters(max_tokens=1))


if __name__ == "__main__":
    main()
