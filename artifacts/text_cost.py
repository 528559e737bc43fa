"""How good a sparse model is on text, as `prune` and `train` measure it and write it, for later stages to show."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .json_lines import read_json_lines
from .manifest import MANIFEST_FILE
from .page import REPORT_FILES

LOG_FILE = "training.jsonl"
"""The log of a training in a model directory; its last record has the figures of the trained model."""


@dataclass(frozen=True)
class TextCost:
    """Perplexity of a text before and after, on `tokens` predicted tokens of documents that were not calibrated on."""

    source: str
    before: float
    after: float
    tokens: int

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before

    def __str__(self) -> str:
        return f"{self.source}: {self.before:.2f} dense, {self.after:.2f} pruned ({self.ratio:.3f} times)"


@dataclass(frozen=True)
class TrainedPerplexity:
    """Perplexity of `tokens` tokens of documents that were not trained on; `before`: of the dense model that training
    began with, None where it began with none."""

    perplexity: float
    before: float | None
    tokens: int

    def __str__(self) -> str:
        beside = "" if self.before is None else f", and {self.before:.2f} of the dense model before"
        return f"{self.perplexity:.2f}{beside}"


def read_text_costs(directory: Path) -> tuple[TextCost, ...]:
    """What the report of a published model directory says; nothing where it was not pruned by `prune`."""
    path = directory / REPORT_FILES[0]
    if not path.is_file() or not (directory / MANIFEST_FILE).is_file():
        return ()
    entries: list[dict[str, Any]] = json.loads(path.read_text()).get("perplexity", [])
    names = [part.name for part in fields(TextCost)]
    return tuple(TextCost(**{name: entry[name] for name in names}) for entry in entries)


def read_trained_perplexity(directory: Path) -> TrainedPerplexity | None:
    """What the log of a published model directory says; None where it was not trained by `train` with a report.

    Raises:
        InputError: a line of the log is no record.
    """
    if not (directory / MANIFEST_FILE).is_file():
        return None
    records = read_json_lines(directory / LOG_FILE, dict, "a record of training")
    last: dict[str, Any] = records[-1] if records else {}
    if "held_out_perplexity" not in last:
        return None
    return TrainedPerplexity(last["held_out_perplexity"], last.get("dense_perplexity"), last["held_out_tokens"])
