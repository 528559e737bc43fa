"""What a scheduler has done and does, as numbers for whoever watches it."""

import threading
from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Counts:
    """Totals since the start. `add` may be called from several threads."""

    totals: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, amount: float = 1) -> None:
        """Add to a total."""
        with self._lock:
            self.totals[name] += amount


@dataclass(frozen=True)
class Snapshot:
    """The state at one moment.

    Attributes:
        waiting: requests in the queue. running: in the batch.
        blocks: of the cache's pool; 0 where there is none. blocks_used: that running requests hold.
        blocks_kept: that hold what a later request may share.
        totals: by name: see `TOTALS`.
    """

    waiting: int
    running: int
    blocks: int
    blocks_used: int
    blocks_kept: int
    totals: dict[str, float]


TOTALS = {
    "prompt_tokens": "Tokens of prompts that were computed",
    "generated_tokens": "Tokens that were generated",
    "step_seconds": "Seconds that the model took for its steps",
    "prefix_tokens_looked_up": "Tokens of prompts that were looked up in the cache",
    "prefix_tokens_found": "Tokens of prompts that were found in the cache and not computed again",
    "blocks_evicted": "Blocks of the cache whose content was given up for others",
    "preemptions": "Requests that gave their blocks to older ones and were computed again",
    "draft_tokens": "Tokens that were guessed and checked in one step with those before them",
    "draft_tokens_accepted": "Guessed tokens that were right",
    "draft_model_tokens": "Those of the guessed tokens that a draft model guessed",
    "draft_model_tokens_accepted": "Those of the draft model's that were right",
    "requests_finished": "Requests that were answered to their end",
    "requests_cancelled": "Requests that their clients left",
    "requests_failed": "Requests that ended with an error of the server's",
    "requests_refused_queue_full": "Requests that were refused because too many wait",
    "requests_refused_invalid": "Requests that were refused because of what they ask",
    "requests_refused_shutdown": "Requests that were refused because the server shuts down",
}
"""What is counted, in words."""
