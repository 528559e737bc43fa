"""What every command shares: the terminal, one-line errors, and argument parsing that reports them."""

import json
import sys
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .artifacts.errors import InputError

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""People's output goes to stderr, so that stdout carries a command's result and nothing else."""


class Parser(ArgumentParser):
    """A jsonargparse parser whose complaints are one line and exit code 2."""

    def error(self, message: str, exception: BaseException | None = None) -> NoReturn:
        """Raise `InputError` with the complaint folded into one line."""
        del exception
        raise InputError(" ".join(message.split()))


def fail(message: str, exit_code: int) -> int:
    """Print one error line to stderr and return the exit code."""
    print(f"hebbline: error: {message}", file=sys.stderr)
    return exit_code


def print_json(value: Any) -> None:
    """Print one JSON document to stdout."""
    print(json.dumps(value, indent=2))


def progress(*extra_columns: str) -> Progress:
    """A progress bar with count, elapsed and remaining time; extra columns are rich format strings."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *(TextColumn(column) for column in extra_columns),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
