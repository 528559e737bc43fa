"""What benchmarks of speed share: rows shown when they are measured, JSON that is whole however the run ends."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..artifacts import InputError
from ..console import Parser, console

if TYPE_CHECKING:
    from ..benchmarks.budget import Budget
    from ..benchmarks.machine import Machine

Column = tuple[str, int]
"""Heading and width; columns of negative width are aligned to the left."""


class Lines:
    """A table on stderr that is printed line by line, so its widths are fixed."""

    def __init__(self, *columns: Column) -> None:
        self._columns = columns
        self._begun = False

    def add(self, *cells: str) -> None:
        """Print a row, and the headings before the first."""
        if not self._begun:
            self._print([heading for heading, _ in self._columns])
            self._begun = True
        self._print(cells)

    def _print(self, cells: "list[str] | tuple[str, ...]") -> None:
        widths = [width for _, width in self._columns]
        aligned = [
            cell.ljust(-width) if width < 0 else cell.rjust(width) for cell, width in zip(cells, widths, strict=True)
        ]
        console.print("  ".join(aligned).rstrip(), markup=False)


class JsonDocument:
    """One JSON document on stdout, of which each row is a line, written and flushed when it is measured.

    Args:
        wanted: whether to print anything.
        head: the first members.
        lists: names of the lists of rows. Rows of another list than the first are kept until the end.
    """

    def __init__(self, wanted: bool, head: Mapping[str, Any], *lists: str) -> None:
        self._wanted = wanted
        self._kept: dict[str, list[Any]] = {name: [] for name in lists[1:]}
        self._comma = ""
        self._print("{\n" + "".join(f"{json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items()))
        self._print(f"{json.dumps(lists[0])}: [\n")

    def add(self, name: str, row: Any) -> None:
        """A row of the list `name`."""
        if name in self._kept:
            self._kept[name].append(row)
        else:
            # The comma stands before a row, so that its line is whole without the next one.
            self._print(f"{self._comma}{json.dumps(row)}\n")
            self._comma = ","

    def close(self, tail: Mapping[str, Any]) -> None:
        """Print what was kept, and the last members."""
        self._print("]")
        for name, rows in self._kept.items():
            self._print(f",\n{json.dumps(name)}: [" + ",".join(f"\n{json.dumps(row)}" for row in rows) + "\n]")
        self._print("".join(f",\n{json.dumps(name)}: {json.dumps(value)}" for name, value in tail.items()) + "\n}\n")

    def _print(self, text: str) -> None:
        if self._wanted:
            print(text, end="", flush=True)


class Report:
    """What is shown of a run of `planned` rows, on stderr and as JSON; `measured` counts the rows so far."""

    def __init__(self, lines: Lines, document: JsonDocument, planned: int, budget: "Budget") -> None:
        self._lines, self._document, self._planned, self._budget = lines, document, planned, budget
        self.measured = 0

    def add(self, name: str, row: Any, *cells: str) -> None:
        """Show a row of the list `name`, with these cells in the table."""
        self.measured += 1
        self._lines.add(*cells)
        self._document.add(name, row)

    @property
    def left_out(self) -> int:
        """Rows that were planned and not measured."""
        return self._planned - self.measured

    def close(self) -> None:
        """Say what was left out, and end the document: also where the run is cut short.

        Where it ended before the first row, and not by the budget, the error says why.
        """
        if self.left_out and (self.measured or not self._budget.left()):
            reason = "" if self._budget.left() else f"--budget {self._budget.seconds:g}: the time is over, and "
            console.print(f"{reason}{self.left_out} of {self._planned} rows were left out")
        self._document.close({"left_out": self.left_out})


@contextmanager
def reported(report: Report) -> Iterator[Report]:
    """Close the report however the block ends."""
    try:
        yield report
    finally:
        report.close()


@contextmanager
def steps(*, as_lines: bool) -> Iterator[Callable[[str], None]]:
    """A function that shows what goes on: in a terminal beside a spinner, elsewhere as lines if these are wanted."""
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
    else:
        yield (lambda step: console.print(step, style="dim", markup=False)) if as_lines else (lambda step: None)


def print_caption(machine: "Machine") -> None:
    """What the table below stands beside."""
    console.print(
        f"kernels on {machine.isa}; {machine.processor}, {machine.cores} cores; "
        f"onnxruntime {machine.versions.get('onnxruntime', 'unknown')}; times as fast: over dense float32 ONNX Runtime "
        "in the same rounds",
        markup=False,
    )


def numbers(option: str, text: str, kind: Callable[[str], float]) -> tuple:
    """The numbers of an option, separated by commas; raises InputError."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} takes numbers separated by commas, not '{text}'") from error


def add_common_options(parser: Parser) -> None:
    """`--budget` and `--json`."""
    parser.add_argument(
        "--budget",
        type=float,
        default=None,
        help="begin no measurement after so many seconds; what tells most comes first, and what is left out is said",
    )
    parser.add_argument("--json", action="store_true", help="print machine and rows as JSON, a row when it is measured")
