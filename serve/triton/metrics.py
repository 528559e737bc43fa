"""The scheduler's numbers at Triton's metrics port, as `hebbline_…`. Importable in Triton's stub only."""

import threading
from collections.abc import Callable
from typing import Any

import triton_python_backend_utils as pb_utils

from ..counts import TOTALS, Snapshot

SECONDS = 0.5
GAUGES: dict[str, tuple[str, Callable[[Snapshot], int]]] = {
    "waiting": ("Requests that wait for a place in the batch", lambda snapshot: snapshot.waiting),
    "running": ("Requests in the batch", lambda snapshot: snapshot.running),
    "cache_blocks": ("Blocks of the cache of keys and values; 0: it has none", lambda snapshot: snapshot.blocks),
    "cache_blocks_used": ("Blocks that running requests hold", lambda snapshot: snapshot.blocks_used),
    "cache_blocks_kept": ("Blocks that a later request may share", lambda snapshot: snapshot.blocks_kept),
}


class Metrics:
    """Publishes a snapshot twice a second, from a thread of its own.

    Args:
        take: gives a snapshot; called from that thread.
        model: whose they are, which is their label.
    """

    def __init__(self, take: Callable[[], Snapshot], model: str) -> None:
        def metric(name: str, text: str, kind: Any) -> tuple[Any, Any]:
            family = pb_utils.MetricFamily(name=f"hebbline_{name}", description=text, kind=kind)
            return family, family.Metric(labels={"model": model})  # the family has to be kept as long as its metric

        self._take = take
        self._gauges = {name: metric(name, text, pb_utils.MetricFamily.GAUGE) for name, (text, _) in GAUGES.items()}
        self._totals = {
            name: metric(f"{name}_total", text, pb_utils.MetricFamily.COUNTER) for name, text in TOTALS.items()
        }
        self._published = dict.fromkeys(TOTALS, 0.0)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hebbline-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(SECONDS):
            self._publish(self._take())

    def _publish(self, snapshot: Snapshot) -> None:
        for name, (_, read) in GAUGES.items():
            self._gauges[name][1].set(read(snapshot))
        for name, (_, metric) in self._totals.items():
            total = snapshot.totals.get(name, 0)
            if total > self._published[name]:
                metric.increment(total - self._published[name])
                self._published[name] = total
