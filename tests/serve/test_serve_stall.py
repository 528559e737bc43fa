"""A step of the model that never returns: seen from within the process, and told from one that takes long."""

import threading
from dataclasses import dataclass, field

from hebbline.serve.scheduler import Scheduler
from hebbline.serve.triton.stall import BUSY_SECONDS, LONGEST_STEP, STALLED_SECONDS, StallWatch


@dataclass
class Clocks:
    """Time that passes when a test says so."""

    now: float = 100.0
    cpu: float = 5.0

    def look(self, watch, seconds, cpu_share=0.0):
        """Look every second; after how many of them it was given up, None where it never was."""
        for second in range(1, int(seconds) + 1):
            self.now += 1
            self.cpu += cpu_share
            if watch.is_stalled():
                return second
        return None


@dataclass
class Counts:
    open: int = 1
    events: int = 0
    clocks: Clocks = field(default_factory=Clocks)

    def watch(self):
        clocks = self.clocks
        return StallWatch(lambda: self.open, lambda: self.events, lambda: clocks.now, lambda: clocks.cpu)


def test_open_requests_that_get_nothing_are_seen_and_a_process_that_computes_gets_more_time():
    counts = Counts()
    assert counts.clocks.look(counts.watch(), 60) == STALLED_SECONDS + 1, "the first look only begins to count"
    assert counts.clocks.look(counts.watch(), 400, cpu_share=0.5) == BUSY_SECONDS + 1


def test_nothing_is_given_up_while_tokens_come_or_nobody_waits():
    counts = Counts()
    watch = counts.watch()
    for _ in range(50):
        assert counts.clocks.look(watch, 5) is None
        counts.events += 1
    counts.open = 0
    assert counts.clocks.look(watch, 100) is None


def test_time_in_which_the_whole_process_was_stopped_does_not_count():
    counts = Counts()
    watch = counts.watch()
    watch.is_stalled()
    counts.clocks.now += 3600
    assert not watch.is_stalled() and watch.seconds == LONGEST_STEP


def test_a_step_that_never_returns_is_seen(make_runner, byte_tokenizer, submit):
    """With the real scheduler: its thread waits within the runner, and the request has neither token nor end."""
    entered, leave = threading.Event(), threading.Event()

    class Hanging(make_runner):
        def prefill(self, *arguments):
            entered.set()
            leave.wait(60)
            return super().prefill(*arguments)

    scheduler = Scheduler(Hanging(), byte_tokenizer, [])
    receiver = submit(scheduler, [1, 2, 3], max_tokens=2)
    assert entered.wait(30)
    clocks = Clocks()
    tokens = []
    watch = StallWatch(lambda: 1, lambda: len(tokens), lambda: clocks.now, lambda: clocks.cpu)
    assert clocks.look(watch, 60) is not None
    leave.set()
    tokens += receiver.tokens()
    assert len(tokens) == 2
    assert clocks.look(watch, 1) is None, "it goes on, and is not given up"
    scheduler.close()
