import threading

import pytest

from hebbline.serve.tickets import QueueFullError, UnavailableError
from hebbline.serve.triton.intake import THREADS, Intake


@pytest.fixture
def gate():
    """Jobs that wait until they are let, and are counted."""
    opened, done = threading.Event(), []

    def job():
        assert opened.wait(20)
        done.append(threading.current_thread().name)

    job.opened, job.done = opened, done
    yield job
    opened.set()


def test_so_many_jobs_wait_and_one_more_is_refused(gate):
    intake = Intake(THREADS + 3)
    for _ in range(THREADS + 3):
        intake.put(gate)
    with pytest.raises(QueueFullError, match=f"{THREADS + 3} requests wait to be read"):
        intake.put(gate)
    gate.opened.set()
    intake.close()
    assert len(gate.done) == THREADS + 3


def test_places_are_free_again_after_a_job_even_one_that_raises(gate):
    gate.opened.set()
    intake = Intake(1)
    for job in (gate, lambda: 1 / 0, gate):
        finished = threading.Event()
        intake.put(job)
        intake._pool.submit(finished.set)
        assert finished.wait(20)
        assert intake._places.acquire(timeout=20)
        intake._places.release()
    intake.close()
    assert len(gate.done) == 2


def test_jobs_run_beside_the_thread_that_puts_them(gate):
    intake = Intake(4)
    intake.put(gate)
    gate.opened.set()
    intake.close()
    assert gate.done[0].startswith("hebbline-intake")


def test_a_closed_intake_takes_nothing(gate):
    intake = Intake(4)
    intake.close()
    with pytest.raises(UnavailableError, match="shutting down"):
        intake.put(gate)
