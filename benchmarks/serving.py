"""A served model under load: what its clients see, and the processor time of every process for each token.

The runner alone runs the same prompts and tokens beside it, and so does the dense graph of the same artifact.
"""

import asyncio
import time
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..artifacts import InputError
from ..runtime.onnxruntime import language_model_facts
from ..serve.async_client import AsyncClient, Retries
from ..serve.triton.launch import TritonServer
from ..serve.triton.process import free_ports
from ..serve.triton.repository import fill_repository
from ..serve.triton.settings import Settings
from ..serve.triton.watch import ModelProcess, model_processes
from .budget import Budget
from .serving_gateway import MODEL_NAME, GatewayProcess
from .serving_load import Seen, grpc_tokens, make_prompts, openai_tokens, percentile, run_load
from .serving_runner import RunnerAnswer, RunnerQuestion, measure_runner

FRONTS = ("grpc", "openai")
WORKLOADS = ("mixed", "shared")


@dataclass(frozen=True)
class ServingCase:
    """What is measured; wrong values raise InputError with the option's name.

    Attributes:
        artifact: that is served.
        streams: how many requests are open at a time, one row for each number.
        lengths: of prompts in tokens, in turn.
        shared: tokens that all prompts of the workload "shared" begin with.
        new_tokens: of each completion.
        requests: of each stream, one after another.
        threads: of the runtime.
        fronts: "grpc" is Triton's own service, "openai" the gateway before it.
        workloads: "mixed", or "shared" with a common beginning.
    """

    artifact: Path
    streams: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    lengths: tuple[int, ...] = (16, 64, 256)
    shared: int = 256
    new_tokens: int = 64
    requests: int = 2
    threads: int = 1
    fronts: tuple[str, ...] = ("grpc",)
    workloads: tuple[str, ...] = WORKLOADS

    def __post_init__(self) -> None:
        for name in ("streams", "lengths"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise InputError(f"{name} takes numbers of at least 1")
        if min(self.new_tokens, self.requests) < 1 or min(self.shared, self.threads) < 0:
            raise InputError("new_tokens and requests must be at least 1, shared and threads at least 0")
        for name, known in (("fronts", FRONTS), ("workloads", WORKLOADS)):
            if not set(getattr(self, name)) <= set(known):
                raise InputError(f"{name} are some of {', '.join(known)}, not {', '.join(getattr(self, name))}")

    @property
    def rows(self) -> int:
        """How many there will be."""
        return len(self.fronts) * len(self.workloads) * len(self.streams)

    def check_fits(self, context_length: int) -> None:
        """Raise InputError where a prompt and its completion are longer than the context."""
        longest = max(self.lengths) + self.shared + self.new_tokens
        if longest > context_length:
            raise InputError(
                f"lengths, shared and new_tokens make up to {longest} tokens, more than the context of {context_length}"
            )


@dataclass(frozen=True)
class ServingRow:
    """One load. Times in milliseconds; `processor_ms` is that of a processor for each generated token, by process.

    `runner` and `dense` are the runner alone, sparse and dense, with the same number of sequences; their processor time
    is for each token as well.
    """

    front: str
    workload: str
    streams: int
    tokens: int
    tokens_per_second: float
    first_p50: float
    first_p99: float
    gap_p50: float
    gap_p99: float
    processor_ms: dict[str, float]
    runner_tokens_per_second: float
    runner_ms: float
    dense_tokens_per_second: float
    dense_ms: float

    @property
    def stack_share(self) -> float:
        """Processor time of all that serves and is not the runner, over that of the runner alone."""
        served = sum(seconds for name, seconds in self.processor_ms.items() if name != "client")
        return served / self.runner_ms - 1


class _Runners:
    """The runner alone, measured once for each number of sequences and workload."""

    def __init__(self, case: ServingCase) -> None:
        self._case = case
        self._known: dict[tuple[str, int, str], RunnerAnswer] = {}

    def measured(self, workload: str, prompts: list[list[int]], graph: Literal["auto", "portable"]) -> RunnerAnswer:
        """With these prompts; "auto" is the sparse graph, "portable" the dense one."""
        key = (workload, len(prompts), graph)
        if key not in self._known:
            question = (self._case.artifact, graph, self._case.threads, prompts, self._case.new_tokens)
            self._known[key] = measure_runner(RunnerQuestion(*question))
        return self._known[key]


class _Clock:
    """Processor time of the processes that serve, from one moment on."""

    def __init__(self, server: TritonServer, gateway: GatewayProcess | None) -> None:
        assert server.pid is not None, "the server runs"
        self._processes = {"triton": [ModelProcess(server.pid, "")], "model": model_processes(server.pid)}
        if gateway is not None:
            self._processes["gateway"] = [ModelProcess(gateway.pid, "")]
        self._began = self._now()

    def per_token(self, tokens: int) -> dict[str, float]:
        """Milliseconds for each of so many tokens, by process; "client" is this one, the load."""
        return {name: (seconds - self._began[name]) * 1e3 / tokens for name, seconds in self._now().items()}

    def _now(self) -> dict[str, float]:
        seconds = {
            name: sum(process.cpu_seconds() for process in processes) for name, processes in self._processes.items()
        }
        return {**seconds, "client": time.process_time()}


def run_serving(case: ServingCase, directory: Path, budget: Budget) -> Generator[ServingRow, None, None]:
    """Serve the artifact and measure each load, while there is time.

    Args:
        case: what to measure.
        directory: an empty one, for the repository and logs.
        budget: begin no row when it is used up.
    """
    facts = language_model_facts(case.artifact)
    case.check_fits(facts.context_length)
    settings = Settings(slots=max(case.streams), threads=case.threads, max_waiting=2 * max(case.streams))
    fill_repository(case.artifact, directory / "repository", settings)
    runners = _Runners(case)
    with ExitStack() as stack:
        server = stack.enter_context(TritonServer(directory / "repository", directory, free_ports(), drain_seconds=1))
        server.wait_ready()
        for front in case.fronts:
            gateway = None
            if front == "openai":
                gateway = stack.enter_context(GatewayProcess(case.artifact, server.grpc_url, directory / "gateway.log"))
            for workload in case.workloads:
                for streams in case.streams:
                    if budget.left():
                        yield _row(case, server, gateway, workload, streams, facts.vocab_size, runners)


def _row(
    case: ServingCase,
    server: TritonServer,
    gateway: GatewayProcess | None,
    workload: str,
    streams: int,
    vocab_size: int,
    runners: _Runners,
) -> ServingRow:
    shared = case.shared if workload == "shared" else 0
    generator = np.random.default_rng((streams, shared))
    prompts = make_prompts(streams * case.requests, case.lengths, shared, vocab_size, generator)
    asyncio.run(_load(server, gateway, prompts[:1], 1, 2))  # connections, and code that has never run
    clock = _Clock(server, gateway)
    seen = asyncio.run(_load(server, gateway, prompts, streams, case.new_tokens))
    processor = clock.per_token(seen.tokens)
    sparse = runners.measured(workload, prompts[:streams], "auto")
    dense = runners.measured(workload, prompts[:streams], "portable")
    return ServingRow(
        front="grpc" if gateway is None else "openai",
        workload=workload,
        streams=streams,
        tokens=seen.tokens,
        tokens_per_second=seen.tokens_per_second,
        first_p50=percentile(seen.first, 0.5) * 1e3,
        first_p99=percentile(seen.first, 0.99) * 1e3,
        gap_p50=percentile(seen.gaps, 0.5) * 1e3,
        gap_p99=percentile(seen.gaps, 0.99) * 1e3,
        processor_ms=processor,
        runner_tokens_per_second=sparse.tokens_per_second,
        runner_ms=sparse.processor_seconds * 1e3,
        dense_tokens_per_second=dense.tokens_per_second,
        dense_ms=dense.processor_seconds * 1e3,
    )


async def _load(
    server: TritonServer, gateway: GatewayProcess | None, prompts: list[list[int]], streams: int, new_tokens: int
) -> Seen:
    async with AsyncClient(server.grpc_url, retries=Retries(20, 0.05)) as client:
        if gateway is None:
            return await run_load(grpc_tokens(client, new_tokens), prompts, streams)
        return await run_load(openai_tokens(gateway.url, MODEL_NAME, new_tokens), prompts, streams)
