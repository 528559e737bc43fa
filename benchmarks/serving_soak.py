"""Does a served model's memory grow? `python -m hebbline.benchmarks.serving_soak ARTIFACT`.

Streams of requests for minutes, half of them by Triton's gRPC and half through the gateway, with prompts of several
lengths of which a quarter begin alike; and the resident memory of each process from the first minute to the last.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..kernels.isa import kernels_isa
from ..runtime.onnxruntime import language_model_facts
from ..serve.async_client import AsyncClient, Retries
from ..serve.triton.launch import TritonServer
from ..serve.triton.process import free_ports
from ..serve.triton.repository import fill_repository
from ..serve.triton.settings import Settings
from ..serve.triton.watch import model_processes
from .endings import scratch_directory
from .serving_gateway import MODEL_NAME, GatewayProcess
from .serving_load import Tokens, grpc_tokens, make_prompts, openai_tokens

LENGTHS = (16, 64, 256)
SHARED_TOKENS = 128
NEW_TOKENS = 64
LOOK_SECONDS = 60.0


@dataclass
class Counted:
    """What has been done so far."""

    requests: int = 0
    tokens: int = 0


def main() -> None:
    """Print a line a minute, with the resident memory of each process in MiB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=15.0)
    options = parser.parse_args()
    settings = Settings(slots=options.streams, threads=1, max_waiting=options.streams)
    vocab_size = language_model_facts(options.artifact).vocab_size
    with scratch_directory() as directory, ExitStack() as stack:
        fill_repository(options.artifact, directory / "repository", settings)
        server = stack.enter_context(TritonServer(directory / "repository", directory, free_ports(), drain_seconds=1))
        server.wait_ready()
        gateway = stack.enter_context(GatewayProcess(options.artifact, server.grpc_url, directory / "gateway.log"))
        print(f"{options.artifact}, kernels with {kernels_isa()}, {options.streams} streams", flush=True)
        asyncio.run(_soak(server, gateway, options.streams, 60 * options.minutes, vocab_size))


async def _soak(server: TritonServer, gateway: GatewayProcess, streams: int, seconds: float, vocab_size: int) -> None:
    assert server.pid is not None, "the server runs"
    processes = {"triton": server.pid, "model": model_processes(server.pid)[0].pid, "gateway": gateway.pid}
    counted = Counted()
    deadline = time.monotonic() + seconds
    async with AsyncClient(server.grpc_url, retries=Retries(20, 0.05)) as client:
        fronts = (grpc_tokens(client, NEW_TOKENS), openai_tokens(gateway.url, MODEL_NAME, NEW_TOKENS))
        work = [
            _stream(fronts[number % 2], _prompts(number, vocab_size), deadline, counted) for number in range(streams)
        ]
        await asyncio.gather(_look(processes, deadline, counted), *work)


async def _stream(tokens: Tokens, prompts: Iterator[list[int]], deadline: float, counted: Counted) -> None:
    while time.monotonic() < deadline:
        async for count in tokens(next(prompts)):
            counted.tokens += count
        counted.requests += 1


async def _look(processes: dict[str, int], deadline: float, counted: Counted) -> None:
    started = time.monotonic()
    while time.monotonic() < deadline:
        await asyncio.sleep(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
        memory = ", ".join(f"{name} {_resident_mib(pid):.0f}" for name, pid in processes.items())
        minutes = (time.monotonic() - started) / 60
        print(f"{minutes:.0f} min, {counted.requests} requests, {counted.tokens} tokens; MiB: {memory}", flush=True)


def _prompts(seed: int, vocab_size: int) -> Iterator[list[int]]:
    """Prompts without end, each of other tokens; every fourth begins as those of the other streams do."""
    generator = np.random.default_rng(seed)
    common = np.random.default_rng(0).integers(0, vocab_size, SHARED_TOKENS).tolist()
    while True:
        for number, prompt in enumerate(make_prompts(4 * len(LENGTHS), LENGTHS, 0, vocab_size, generator)):
            yield [*common, *prompt] if number % 4 == 0 else prompt


def _resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    main()
