"""The runs that were made, a line of JSON each, written as they end; workers share it.

A run that is under way is claimed by a lock that ends with its process, so a killed worker leaves nothing behind.
"""

import fcntl
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ..artifacts.json_lines import append_json_line, read_json_lines
from .study import Outcome, Run, Study


@dataclass(frozen=True)
class Ledger:
    """The file of one study. Its records are those of the study's budget; others stay in the file, and do not count."""

    path: Path
    study: Study

    def outcomes(self) -> dict[str, Outcome]:
        """By key of the run.

        Raises:
            InputError: a line is not a record.
        """
        records = read_json_lines(self.path, _parse, "a record of a run")
        return {
            record["run"]: Outcome(**record["outcome"]) for record in records if record["budget"] == self.study.budget
        }

    def append(self, run: Run, outcome: Outcome, commit: str) -> None:
        """Add a run, whole or not at all."""
        record = {
            "run": run.key,
            "budget": self.study.budget,
            "date": date.today().isoformat(),
            "commit": commit,
            "outcome": asdict(outcome),
        }
        append_json_line(self.path, record)

    @contextmanager
    def claim(self, run: Run) -> Iterator[bool]:
        """Hold a run while the block lasts; False where another worker holds it or has made it."""
        name = hashlib.sha256(f"{self.study.budget}{run.key}".encode()).hexdigest()[:16]
        folder = self.path.with_suffix(".claims")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield run.key not in self.outcomes()


def _parse(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: record[name] for name in ("run", "budget", "outcome")}
