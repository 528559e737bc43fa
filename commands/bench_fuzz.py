"""`hebbline bench serve ARTIFACT --fuzz COUNT`: is every request that makes no sense answered?"""

from pathlib import Path

from ..artifacts import CheckError
from ..console import console, progress

_SHOWN = 10


def fuzz(artifact: Path, count: int, seed: int) -> int:
    """Send the requests, say what came of them, and raise CheckError where anything went wrong."""
    from ..benchmarks.endings import scratch_directory, signals_raise
    from ..benchmarks.serving_fuzz import run_fuzz

    with signals_raise(), scratch_directory() as directory, progress() as bar:
        task = bar.add_task("requests that make no sense", total=count)
        outcome = run_fuzz(artifact, count, seed, directory, lambda done: bar.advance(task, done))
    for (front, kind), number in sorted(outcome.answered.items()):
        console.print(f"{front}: {number:,} answered by {'an error' if kind == 'error' else 'a completion'}")
    for message, _ in outcome.wrong.most_common(_SHOWN):
        console.print(message, style="red", markup=False)
    if outcome.wrong or outcome.restarts:
        restarts = f"; the server: {'; '.join(outcome.restarts)}" if outcome.restarts else ""
        raise CheckError(f"{outcome.wrong.total():,} of {count:,} requests had no proper answer{restarts}")
    console.print(f"all {count:,} were answered, and the server was never restarted")
    return 0
