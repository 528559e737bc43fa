"""The gateway's figures in Prometheus' form, with those of Triton and the model beside them."""

import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .records import Record

PREFIX = "hebbline_gateway_"
"""Of the gateway's own figures; the model's begin with "hebbline_" alone."""
FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
GAP_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0)
SPEED_SECONDS = 5.0
"""The time over which tokens per second are counted for the page."""
RECENT = 256
"""First tokens whose median the page shows."""


@dataclass
class Recent:
    """What one model has generated of late, for the page."""

    arrivals: deque[tuple[float, int]] = field(default_factory=deque)
    firsts: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def tokens_per_second(self, now: float) -> float:
        """Tokens a second over the last seconds; what is older is forgotten."""
        while self.arrivals and now - self.arrivals[0][0] > SPEED_SECONDS:
            self.arrivals.popleft()
        return sum(count for _, count in self.arrivals) / SPEED_SECONDS


@dataclass
class Metrics:
    """What is counted; each gateway has a registry of its own."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}{name}", text, labels, registry=self.registry)

        self.requests = counter("requests", "Requests that have ended, by path and status of HTTP", "path", "status")
        self.refusals = counter("refusals", "Requests that were refused or failed, by reason", "reason")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts that were read")
        self.completion_tokens = counter("completion_tokens", "Tokens that were generated")
        self.restarts = counter("server_restarts", "Restarts of the Triton server behind this gateway")
        self.open = Gauge(f"{PREFIX}open_requests", "Requests that are being served", registry=self.registry)
        self.first_token = Histogram(
            f"{PREFIX}time_to_first_token_seconds",
            "From the request to its first token",
            buckets=FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.gaps = Histogram(
            f"{PREFIX}token_gap_seconds",
            "Between one token of a completion and the next",
            buckets=GAP_BUCKETS,
            registry=self.registry,
        )
        self._recent: defaultdict[str, Recent] = defaultdict(Recent)
        self.last_token = -float("inf")

    def count_tokens(self, count: int, model: str) -> None:
        """Tokens of a model have come, now."""
        now = time.monotonic()
        self.completion_tokens.inc(count)
        recent = self._recent[model]
        recent.arrivals.append((now, count))
        recent.tokens_per_second(now)
        self.last_token = now

    def count_first(self, seconds: float, model: str) -> None:
        """A first token of a model has come, after so many seconds."""
        self.first_token.observe(seconds)
        self._recent[model].firsts.append(seconds)

    def count_end(self, record: Record, path: str) -> None:
        """A request has ended."""
        self.requests.labels(path, str(record.status)).inc()
        self.prompt_tokens.inc(record.prompt_tokens)
        if record.status >= 400:
            self.refusals.labels(record.end).inc()

    def exposition(self) -> str:
        """All of it in the text form."""
        return generate_latest(self.registry).decode()

    def figures(self, model: str | None) -> dict[str, Any]:
        """What the page shows of a model, or of all: tokens a second of late, the median time to a first token.

        The open requests are those of the gateway, whichever model they are for.
        """
        now = time.monotonic()
        shown = [recent for name, recent in self._recent.items() if model in (None, name)]
        firsts = sorted(seconds for recent in shown for seconds in recent.firsts)
        return {
            "open_requests": self.registry.get_sample_value(f"{PREFIX}open_requests"),
            "tokens_per_second": sum(recent.tokens_per_second(now) for recent in shown),
            "first_token_ms": firsts[len(firsts) // 2] * 1e3 if firsts else None,
        }


def parse_samples(exposition: str, prefix: str, model: str | None = None) -> dict[str, float]:
    """The sums of all samples whose name begins with `prefix`, over their labels, from Prometheus' text form.

    With `model` only those are taken whose label `model` it is.
    """
    values: dict[str, float] = {}
    for line in exposition.splitlines():
        if line.startswith(prefix):
            series, _, rest = line.rpartition("} ") if "{" in line else line.partition(" ")
            name, _, labels = series.partition("{")
            if model is None or f'model="{model}"' in labels:
                values[name] = values.get(name, 0.0) + float(rest.split()[0])
    return values
