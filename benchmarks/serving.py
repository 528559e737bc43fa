"""A served model under load: what its clients see, and the processor time of every process for each token.

The runner alone runs the same prompts and tokens beside it, and so do the dense graph of the same artifact and, where
they are asked for, servers of others.
"""

import asyncio
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..artifacts import CheckError, InputError
from ..runtime.onnxruntime import language_model_facts
from ..runtime.tokenizer import load_tokenizer
from ..serve.async_client import AsyncClient, Retries
from ..serve.openai.metrics import parse_samples
from ..serve.openai.triton_metrics import read_metrics
from ..serve.triton.launch import TritonServer
from ..serve.triton.process import HOST, free_ports
from ..serve.triton.repository import fill_repository
from ..serve.triton.settings import MODEL_NAME as SERVED_NAME
from ..serve.triton.settings import Settings
from ..serve.triton.watch import ModelProcess, model_processes
from .budget import Budget
from .serving_gateway import MODEL_NAME, GatewayProcess
from .serving_load import Seen, Tokens, counted_tokens, grpc_tokens, make_prompts, openai_tokens, percentile, run_load
from .serving_peers import MODEL_NAME as PEER_MODEL
from .serving_peers import Peer, PeerLoad, PeerProcess, find_peer
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
        peer_models: files for servers of others, which are loaded in the same way.
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
    peer_models: tuple[Path, ...] = ()

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
        return (len(self.fronts) + len(self.peer_models)) * len(self.workloads) * len(self.streams)

    @property
    def longest(self) -> int:
        """Tokens of a prompt and its completion, at most."""
        return max(self.lengths) + self.shared + self.new_tokens

    def check_fits(self, context_length: int) -> None:
        """Raise InputError where a prompt and its completion are longer than the context."""
        if self.longest > context_length:
            raise InputError(
                f"lengths, shared and new_tokens make up to {self.longest} tokens, more than the context of "
                f"{context_length}"
            )

    def prompts(self, workload: str, streams: int, vocab_size: int) -> list[list[int]]:
        """The prompts of one row: the same for every server."""
        shared = self.shared if workload == "shared" else 0
        generator = np.random.default_rng((streams, shared))
        return make_prompts(streams * self.requests, self.lengths, shared, vocab_size, generator)


@dataclass(frozen=True)
class ServingRow:
    """One load. Times in milliseconds; `processor_ms` is that of a processor for each generated token, by process.

    Rates and processor times are of the time in which all streams were open. `runner` and `dense` are the runner alone,
    sparse and dense, with the same number of sequences; their processor time is for each token as well. `steps_ms` is
    what the model's steps took in the server, on one thread; nan of a peer, of a load of less than a second, and with
    several threads, whose processor time a server does not tell. `front` is the name of the peer where the server is
    another's.
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
    steps_ms: float
    runner_tokens_per_second: float
    runner_ms: float
    dense_tokens_per_second: float
    dense_ms: float

    @property
    def stack_share(self) -> float:
        """Processor time of what serves beside the model's steps, over that of the steps; nan of a peer.

        Where nothing else takes the processor, a step's seconds are a processor's.
        """
        return self._served_ms / self.steps_ms - 1

    @property
    def share_over_runner(self) -> float:
        """Processor time of all that serves, over that of the runner alone, less 1; nan of a peer.

        The runner alone reads prompts whole, and always generates for all sequences; in a server they come and go.
        """
        return self._served_ms / self.runner_ms - 1 if "model" in self.processor_ms else math.nan

    @property
    def _served_ms(self) -> float:
        return sum(seconds for name, seconds in self.processor_ms.items() if name != "client")


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
    """Processor time of the processes that serve, by a name, from one moment to another."""

    def __init__(self, processes: Mapping[str, Sequence[ModelProcess]]) -> None:
        self._processes = processes
        self._began = self._ended = self._now()

    def stop(self) -> None:
        """The time that is measured ends now."""
        self._ended = self._now()

    def per_token(self, tokens: int) -> dict[str, float]:
        """Milliseconds for each of so many tokens, by process; "client" is this one, the load."""
        return {name: (seconds - self._began[name]) * 1e3 / tokens for name, seconds in self._ended.items()}

    def _now(self) -> dict[str, float]:
        seconds = {
            name: sum(process.cpu_seconds() for process in processes) for name, processes in self._processes.items()
        }
        return {**seconds, "client": time.process_time()}


class _Steps:
    """What the model's steps take, by the server's own metrics: half a second old at most, and all of one moment."""

    def __init__(self, server: TritonServer) -> None:
        self._url = f"http://{HOST}:{server.ports.metrics}/metrics"
        self._began = self._ended = self._now()

    def stop(self) -> None:
        """What is measured ends now."""
        self._ended = self._now()

    def per_token(self) -> float:
        """Milliseconds for each generated token; nan where none was."""
        seconds, tokens = (end - begin for begin, end in zip(self._began, self._ended, strict=True))
        return seconds * 1e3 / tokens if tokens else math.nan

    def _now(self) -> tuple[float, float]:
        samples = parse_samples(read_metrics(self._url), "hebbline_", SERVED_NAME)
        return samples.get("hebbline_step_seconds_total", 0.0), samples.get("hebbline_generated_tokens_total", 0.0)


def run_serving(case: ServingCase, directory: Path, budget: Budget) -> Generator[ServingRow, None, None]:
    """Serve the artifact and measure each load, while there is time.

    Args:
        case: what to measure.
        directory: an empty one, for the repository and logs.
        budget: begin no row when it is used up.
    """
    facts = language_model_facts(case.artifact)
    case.check_fits(facts.context_length)
    peers = [find_peer(model, PeerLoad(case.threads, max(case.streams), case.longest)) for model in case.peer_models]
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
    for peer in peers:
        if budget.left():
            yield from _peer_rows(case, peer, directory / "peer.log", facts.vocab_size, runners, budget)


def _row(
    case: ServingCase,
    server: TritonServer,
    gateway: GatewayProcess | None,
    workload: str,
    streams: int,
    vocab_size: int,
    runners: _Runners,
) -> ServingRow:
    prompts = case.prompts(workload, streams, vocab_size)
    asyncio.run(_load(server, gateway, prompts[:1], 1, 2))  # connections, and code that has never run
    clock, steps = _Clock(_our_processes(server, gateway)), _Steps(server)

    def stop() -> None:
        clock.stop()
        steps.stop()

    seen = asyncio.run(_load(server, gateway, prompts, streams, case.new_tokens, stop))
    front = "grpc" if gateway is None else "openai"
    times = clock.per_token(seen.full_tokens), steps.per_token() if case.threads == 1 else math.nan
    return _row_of(front, workload, seen, *times, prompts[:streams], runners)


def _our_processes(server: TritonServer, gateway: GatewayProcess | None) -> dict[str, list[ModelProcess]]:
    assert server.pid is not None, "the server runs"
    found = {"triton": [ModelProcess(server.pid, "")], "model": model_processes(server.pid)}
    return found if gateway is None else {**found, "gateway": [ModelProcess(gateway.pid, "")]}


def _peer_rows(
    case: ServingCase, peer: Peer, log: Path, vocab_size: int, runners: _Runners, budget: Budget
) -> Generator[ServingRow, None, None]:
    """Start a server of others, and load it as ours was, while there is time."""
    tokenizer = load_tokenizer(case.artifact)

    def prompt_of(ids: Sequence[int]) -> list[int] | str:
        return list(ids) if peer.takes_tokens else tokenizer.decode(list(ids), skip_special_tokens=False)

    with PeerProcess(peer, log) as process:
        for workload in case.workloads:
            for streams in case.streams:
                if not budget.left():
                    return
                prompts = case.prompts(workload, streams, vocab_size)
                warm, whole = (
                    counted_tokens(process.completions_url, PEER_MODEL, tokens, prompt_of)
                    for tokens in (2, case.new_tokens)
                )
                _peer_load(process, warm, prompts[:1], 1)
                clock = _Clock({"peer": process.processes()})
                seen = _peer_load(process, whole, prompts, streams, clock.stop)
                times = clock.per_token(seen.full_tokens), math.nan
                yield _row_of(peer.name, workload, seen, *times, prompts[:streams], runners)


def _peer_load(
    process: PeerProcess,
    tokens: Tokens,
    prompts: list[list[int]],
    streams: int,
    on_first_end: Callable[[], None] = lambda: None,
) -> Seen:
    """What the clients of a peer see; CheckError where it ends, or answers without a token."""
    try:
        seen = asyncio.run(run_load(tokens, prompts, streams, on_first_end))
    except OSError as error:
        raise CheckError(f"{process.name} is not to be reached: {process.last_words()}") from error
    process.check_running()
    if not seen.tokens:
        raise CheckError(f"{process.name} has answered without a token: {process.last_words()}")
    return seen


def _row_of(
    front: str,
    workload: str,
    seen: Seen,
    processor: dict[str, float],
    steps: float,
    prompts: list[list[int]],
    runners: _Runners,
) -> ServingRow:
    """A row of what clients saw, with the runner alone on these prompts, one for each stream."""
    sparse = runners.measured(workload, prompts, "auto")
    dense = runners.measured(workload, prompts, "portable")
    return ServingRow(
        front=front,
        workload=workload,
        streams=len(prompts),
        tokens=seen.tokens,
        tokens_per_second=seen.tokens_per_second,
        first_p50=percentile(seen.first, 0.5) * 1e3,
        first_p99=percentile(seen.first, 0.99) * 1e3,
        gap_p50=percentile(seen.gaps, 0.5) * 1e3,
        gap_p99=percentile(seen.gaps, 0.99) * 1e3,
        processor_ms=processor,
        steps_ms=steps,
        runner_tokens_per_second=sparse.tokens_per_second,
        runner_ms=sparse.processor_seconds * 1e3,
        dense_tokens_per_second=dense.tokens_per_second,
        dense_ms=dense.processor_seconds * 1e3,
    )


async def _load(
    server: TritonServer,
    gateway: GatewayProcess | None,
    prompts: list[list[int]],
    streams: int,
    new_tokens: int,
    on_first_end: Callable[[], None] = lambda: None,
) -> Seen:
    async with AsyncClient(server.grpc_url, retries=Retries(20, 0.05)) as client:
        if gateway is None:
            return await run_load(grpc_tokens(client, new_tokens), prompts, streams, on_first_end)
        tokens = openai_tokens(gateway.url, MODEL_NAME, new_tokens)
        return await run_load(tokens, prompts, streams, on_first_end)
