"""What the scheduler makes of requests: `python -m hebbline.benchmarks.scheduling ARTIFACT`.

In this process, without a server: the time to the first token of a prompt whose beginning is in the cache, beside one
whose is not; what a long prompt does to the gaps between its neighbours' tokens; the first tokens of short prompts that
come at once; what guessing saves on a text that repeats itself, and what a draft model saves on others. Everything is a
ratio within the run.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..kernels.isa import kernels_isa
from ..runtime.opening import open_onnx
from ..runtime.tokenizer import load_tokenizer
from ..serve.draft_model import open_draft
from ..serve.generation import GenerationRequest
from ..serve.parameters import SamplingParameters
from ..serve.scheduler import Scheduler
from ..serve.tickets import Event, Failure, Ticket

SHARED_TOKENS = 256
OWN_TOKENS = 8
LONG_TOKENS = 3500
NEIGHBOURS = 4
SHORT_PROMPTS = 8
SHORT_TOKENS = 48
REPEATS = 5


@dataclass
class Stream:
    """A request's tokens and when they came, in seconds since it was submitted."""

    started: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    ticket: Ticket | None = None

    def __call__(self, event: Event) -> None:
        """Take an event, on the scheduler's thread."""
        if isinstance(event, Failure):
            self.error = event.error
            self.ended.set()
            return
        self.times += [time.perf_counter() - self.started] * len(event.token_ids)
        self.tokens += event.token_ids
        if event.finish_reason is not None:
            self.ended.set()

    def wait(self) -> "Stream":
        """Wait for the end; raises what went wrong."""
        self.ended.wait()
        if self.error is not None:
            raise self.error
        return self

    def cancel(self) -> None:
        """End the request."""
        if self.ticket is not None:
            self.ticket.cancel()

    def gaps(self, since: float, until: float) -> list[float]:
        """The seconds between tokens, of those that came between two moments of `time.perf_counter`."""
        moments = [self.started + moment for moment in self.times]
        return [b - a for a, b in pairwise(moments) if since < b <= until]


class Bench:
    """An artifact's scheduler.

    Args:
        artifact: the directory. threads: of ONNX Runtime; None: one for each physical core. draft_tokens: guessed.
        draft: the artifact of a model that guesses them; None: none does.
    """

    def __init__(self, artifact: Path, threads: int | None, draft_tokens: int = 0, draft: Path | None = None) -> None:
        runner = open_onnx(artifact, 16, threads, graph="kernels", cache_bytes=0)
        self.context, self.vocab_size = runner.context_length, runner.vocab_size
        tokenizer = load_tokenizer(artifact)
        guessing = None if draft is None else open_draft(draft, runner, tokenizer, threads)
        self.scheduler = Scheduler(runner, tokenizer, (), draft_tokens=draft_tokens, draft=guessing)
        self._generator = np.random.default_rng(0)

    def prompt(self, tokens: int) -> list[int]:
        """Random tokens, other ones each time."""
        return [int(token) for token in self._generator.integers(0, self.vocab_size, tokens)]

    def start(self, prompt: Sequence[int], max_tokens: int, temperature: float = 0.0) -> Stream:
        """Submit a request."""
        stream = Stream()
        sampling = SamplingParameters(max_tokens=max_tokens, temperature=temperature, seed=0)
        request = GenerationRequest(tuple(prompt), sampling)
        stream.ticket = self.scheduler.submit(request, stream)
        return stream


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path, help="a directory that `hebbline export` published")
    parser.add_argument("--threads", type=int, default=None, help="of ONNX Runtime; default: one a physical core")
    parser.add_argument("--draft", type=Path, default=None, help="artifact of a smaller model that guesses tokens")
    values = parser.parse_args(arguments)
    bench = Bench(values.artifact, values.threads)
    print(f"{values.artifact}, kernels with {kernels_isa()}, context {bench.context}")
    bench.start(bench.prompt(64), 32).wait()
    print(_first_tokens(bench))
    print(_at_once(bench))
    print(_neighbours(bench))
    bench.scheduler.close()
    print(_guesses(values.artifact, values.threads))
    if values.draft is not None:
        for temperature in (0.0, 1.0):
            for streams in (1, NEIGHBOURS):
                print(_drafted(values.artifact, values.draft, values.threads, temperature, streams))


def _first_tokens(bench: Bench) -> str:
    missed: list[float] = []
    hit: list[float] = []
    for _ in range(REPEATS):
        shared = bench.prompt(SHARED_TOKENS)
        for found in (missed, hit):
            found.append(bench.start([*shared, *bench.prompt(OWN_TOKENS)], 1).wait().times[0])
    slow, fast = statistics.median(missed), statistics.median(hit)
    return (
        f"first token after {SHARED_TOKENS} shared and {OWN_TOKENS} own tokens: {slow * 1e3:.1f} ms where all are new, "
        f"{fast * 1e3:.1f} ms where the shared ones are in the cache: {fast / slow:.1%}"
    )


def _at_once(bench: Bench) -> str:
    streams = [bench.start(bench.prompt(SHORT_TOKENS), 8) for _ in range(SHORT_PROMPTS)]
    firsts = sorted(stream.wait().times[0] for stream in streams)
    alone = bench.start(bench.prompt(SHORT_TOKENS), 1).wait().times[0]
    return (
        f"{SHORT_PROMPTS} prompts of {SHORT_TOKENS} tokens at once: first tokens after {firsts[0] * 1e3:.1f} to "
        f"{firsts[-1] * 1e3:.1f} ms; one alone {alone * 1e3:.1f} ms"
    )


def _neighbours(bench: Bench) -> str:
    long = min(LONG_TOKENS, bench.context - 8)
    generated = bench.context - 16
    streams = [bench.start(bench.prompt(8), generated) for _ in range(NEIGHBOURS)]
    while min(len(stream.times) for stream in streams) < 100:
        time.sleep(0.01)
    sent = time.perf_counter()
    usual = statistics.median(gap for stream in streams for gap in stream.gaps(0.0, sent)[20:])
    first = bench.start(bench.prompt(long), 1).wait().times[0]
    gaps = sorted(gap for stream in streams for gap in stream.gaps(sent, sent + first))
    for stream in streams:
        stream.cancel()
        stream.wait()
    middle, late, worst = gaps[len(gaps) // 2], gaps[int(0.95 * len(gaps))], gaps[-1]
    return (
        f"a prompt of {long} tokens beside {NEIGHBOURS} streams took {first:.2f} s; their gaps meanwhile: median "
        f"{middle / usual:.1f}, 95% below {late / usual:.1f} and longest {worst / usual:.1f} times the usual "
        f"{usual * 1e3:.1f} ms"
    )


def _guesses(artifact: Path, threads: int | None) -> str:
    seconds, tokens = [], []
    for draft_tokens in (0, 4):
        bench = Bench(artifact, threads, draft_tokens)
        pattern = bench.prompt(12)
        bench.start(pattern, 8).wait()
        stream = bench.start(pattern * 8, min(200, bench.context - 100)).wait()
        seconds.append(stream.times[-1] - stream.times[0])
        tokens.append(stream.tokens)
        totals = bench.scheduler.snapshot().totals
        bench.scheduler.close()
    accepted = totals.get("draft_tokens_accepted", 0)
    same = "the same" if tokens[0] == tokens[1] else "another"
    return (
        f"a text that repeats itself: {seconds[0] / seconds[1]:.2f} times as fast with guesses ({accepted} of "
        f"{totals.get('draft_tokens', 0)} right), {same} text"
    )


def _drafted(artifact: Path, draft: Path, threads: int | None, temperature: float, streams: int) -> str:
    seconds, texts = [], []
    for draft_tokens in (0, 4):
        bench = Bench(artifact, threads, draft_tokens, draft)
        tokens = min(200, bench.context - 32)
        bench.start(bench.prompt(16), 32, temperature).wait()
        started = time.perf_counter()
        running = [bench.start(bench.prompt(24), tokens, temperature) for _ in range(streams)]
        texts.append([stream.wait().tokens for stream in running])
        seconds.append(time.perf_counter() - started)
        totals = bench.scheduler.snapshot().totals
        bench.scheduler.close()
    guessed, right = totals.get("draft_model_tokens", 0), totals.get("draft_model_tokens_accepted", 0)
    same = "the same" if texts[0] == texts[1] else "another"
    return (
        f"{streams} streams at temperature {temperature:g}: {seconds[0] / seconds[1]:.2f} times as fast with the draft "
        f"({right} of {guessed} right), {same} text"
    )


if __name__ == "__main__":
    main()
