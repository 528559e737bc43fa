"""The runs of `foreign_models`: one model at one sparsity on one instruction set, kept in a file as each one ends.

A benchmark that was ended goes on where it was. A record holds what the table shows of the command's report.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ..artifacts import InputError
from ..artifacts.json_lines import append_json_line, read_json_lines
from ..kernels.cost import check_isa
from .foreign_catalogue import MODELS, Foreign

SECONDS = 600
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Run:
    """One run of `hebbline pack`.

    `layers` are all with a constant weight, `packed` those that were packed. Bytes are those of the ONNX files. Times
    are None where nothing was timed, and `note` then says why, or what the command ended with (`failed`).
    `inputs` are the shapes that were given when the models were timed.
    `difference` is the largest of the packed model from the original with the op library, over `outputs` numbers.
    """

    model: str
    sparsity: float
    isa: str
    commit: str
    day: str
    packed: int = 0
    layers: int = 0
    original_bytes: int = 0
    packed_bytes: int = 0
    original_ms: float | None = None
    packed_ms: float | None = None
    inputs: str = ""
    difference: float | None = None
    outputs: int = 0
    failed: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        check_isa(self.isa)
        if not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity is {self.sparsity}; it must be from 0 to less than 1")

    @property
    def key(self) -> tuple[str, float, str]:
        """What was run."""
        return self.model, self.sparsity, self.isa

    @property
    def speedup(self) -> float | None:
        """Original over packed."""
        return None if self.original_ms is None or not self.packed_ms else self.original_ms / self.packed_ms


@dataclass(frozen=True)
class Records:
    """The file of the runs, a line of JSON each; a later one takes the place of an earlier one of the same key."""

    path: Path

    def runs(self) -> dict[tuple[str, float, str], Run]:
        """By key, in the order of the models; those of models that are no longer listed are left out.

        Raises:
            InputError: a line is not a record.
        """
        found = read_json_lines(self.path, lambda record: Run(**record), "a record of a run")
        order = {model.key: place for place, model in enumerate(MODELS)}
        known = {run.key: run for run in found if run.model in order}
        return dict(sorted(known.items(), key=lambda item: (order[item[0][0]], item[0][1:])))

    def append(self, run: Run) -> None:
        """Add a run."""
        append_json_line(self.path, asdict(run))


def pack_on(model: Foreign, path: Path, sparsity: float, isa: str, commit: str, out: Path) -> Run:
    """Run the command on a pruned model with the kernels of one instruction set, and measure as it does.

    `out` is a new folder for the packed model.
    """
    command = [sys.executable, "-m", "hebbline", "pack", str(path), "--out", str(out), "--json"]
    environment = os.environ | _ONE_THREAD | {"HEBBLINE_ISA": isa}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=path.parent
        )
    except subprocess.TimeoutExpired:
        return failed(model, sparsity, isa, commit, f"it does not end within {SECONDS} s")
    if done.returncode != 0:
        return failed(model, sparsity, isa, commit, _last_line(done.stderr, path.parent))
    return Run(model.key, sparsity, isa, commit, date.today().isoformat(), **_figures(json.loads(done.stdout)))


def failed(model: Foreign, sparsity: float, isa: str, commit: str, why: str) -> Run:
    """The record of a run that came to nothing."""
    return Run(model.key, sparsity, isa, commit, date.today().isoformat(), failed=True, note=why)


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of a report."""
    compared, speed = report["end_to_end"], report["speed"]
    return {
        "packed": sum(layer["layout"] != "dense" for layer in report["layers"]),
        "layers": len(report["layers"]),
        "original_bytes": report["original_bytes"],
        "packed_bytes": report["file_bytes"],
        "original_ms": speed["original_ms"],
        "packed_ms": speed["packed_ms"],
        "inputs": speed["inputs"],
        "difference": compared["library_difference"],
        "outputs": compared["outputs"],
        "note": speed["note"],
    }


def _last_line(text: str, folder: Path) -> str:
    lines: Sequence[str] = text.strip().splitlines() or ["it died"]
    return lines[-1].replace(f"{folder}/", "")
