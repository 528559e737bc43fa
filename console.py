"""What every command shares: the terminal, one-line errors, and argument parsing that reports them."""

import json
import re
import sys
from argparse import Action
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .artifacts.errors import InputError

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""People's output goes to stderr, so that stdout has a command's result and nothing else."""


class _HelpFormatter(DefaultHelpFormatter):
    """Help in words of the command line: no names of Python's classes, and no default where nothing is set."""

    def _get_type_str(self, action: Action) -> str | None:
        found: str | None = super()._get_type_str(action)
        return "path" if found == "<class 'Path'>" else found

    def _get_help_string(self, action: Action) -> str:
        text: str = super()._get_help_string(action)
        if action.default in (None, False, []):
            text = re.sub(r"(, )?default: %\(default\)s", "", text).replace(" ()", "")
        return text


class Parser(ArgumentParser):
    """A jsonargparse parser whose complaints are one line and exit code 2."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **({"formatter_class": _HelpFormatter} | options))

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


@contextmanager
def stages(words: str) -> Iterator[Callable[[str], None]]:
    """A line that shows the stage of a long command, and a bar where the stage says how far it is (`export.progress`).

    Nothing is shown where the output is no terminal.

    Args:
        words: shown until the first stage is told.
    """
    if not console.is_terminal:
        yield lambda stage: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[share]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as shown:
        task = shown.add_task(words, total=None, share="")

        def tell(stage: str) -> None:
            done, total = getattr(stage, "done", 0), getattr(stage, "total", 0)
            share = f"{done}/{total}" if total else ""
            shown.update(task, description=str(stage), completed=done, total=total or None, share=share)

        yield tell
