"""Files of records, a line of JSON each, that grow as records are made: a run that was ended goes on where it was."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from .errors import InputError

T = TypeVar("T")


def read_json_lines(path: Path, parse: Callable[[Any], T], what: str) -> list[T]:
    """All records of a file, in their order; none where there is no file.

    Args:
        path: the file.
        parse: makes a record of what a line holds; it may raise ValueError, KeyError, TypeError or InputError.
        what: a record in words, for the message.

    Raises:
        InputError: a line is not a record; the file and the line are named.
    """
    records = []
    for number, line in enumerate(path.read_text().splitlines() if path.is_file() else [], start=1):
        try:
            records.append(parse(json.loads(line)))
        except (ValueError, KeyError, TypeError, InputError) as error:
            raise InputError(f"{path}, line {number}: not {what}; delete the line") from error
    return records


def append_json_line(path: Path, record: Any) -> None:
    """Add a record, whole or not at all beside other processes; it is on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(json.dumps(record) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
