"""The rows of a frontier, in a file that grows by a line when one is measured, so that a run goes on where it was."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..artifacts import InputError
from ..artifacts.json_lines import append_json_line, read_json_lines
from ..artifacts.publishing import write_atomically
from .variants import VARIANTS

CASE_FILE = "case.json"
ROWS_FILE = "rows.jsonl"


@dataclass(frozen=True)
class FrontierRow:
    """One model in one form.

    Attributes:
        model: what its links are, such as "2:4, 50%", or the name of a directory; "dense" for the model itself.
        source: which weights, so that a directory that was written anew is measured anew.
        trained: whether the weights came from a directory that the user named, and not from one-shot pruning.
        density: links over possible links of its sparse layers; 1 for the dense model.
        variant: its form, a name in `VARIANTS`.
        perplexity: of held-out text, by the name of the text, through the graph that was timed.
        accuracy: the share of questions that it answers rightly, by the name of the set; see `choice_accuracy`.
        rates: tokens a second, by measure: "prefill 128", "decode 1" and the like.
        ratios: times as many as dense float32 ONNX Runtime in the same rounds.
        resident_bytes: of the process that runs it.
        file_bytes: of its graph and weights.
        commit: of the code that measured it.
    """

    model: str
    source: str
    trained: bool
    density: float
    variant: str
    perplexity: dict[str, float]
    accuracy: dict[str, float]
    rates: dict[str, float]
    ratios: dict[str, float]
    resident_bytes: int
    file_bytes: int
    commit: str

    @property
    def sparse(self) -> bool:
        """Whether its kernels are those of sparse weights."""
        return VARIANTS[self.variant].sparse

    @property
    def key(self) -> tuple[str, str]:
        """What is measured once."""
        return self.source, self.variant


class FrontierRows:
    """The rows in a folder, all of one case."""

    def __init__(self, folder: Path, case: dict[str, Any]) -> None:
        """Open the folder, or begin it.

        Args:
            folder: where the case and the rows are.
            case: what rows must have in common to be compared: the model, the text, the machine.

        Raises:
            InputError: the folder holds rows of another case.
        """
        self._path = folder / ROWS_FILE
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(case, indent=2) + "\n"
        stored, case = _read_case(folder / CASE_FILE), json.loads(text)
        if stored is None:
            write_atomically(folder / CASE_FILE, text)
        elif stored != case:
            differing = sorted(name for name in {*stored, *case} if stored.get(name) != case.get(name))
            raise InputError(
                f"{folder} holds rows of another {', '.join(differing)}, which cannot be set beside these: give "
                "another --out"
            )

    def rows(self) -> list[FrontierRow]:
        """All of them, in the order in which they were measured; of a model that was made anew, the last.

        Raises:
            InputError: a line is not a row.
        """
        rows = read_json_lines(self._path, lambda record: FrontierRow(**record), "a row of a frontier")
        return list({(row.model, row.variant): row for row in rows}.values())

    def add(self, row: FrontierRow) -> None:
        """Append a row; it is on disk when this returns."""
        append_json_line(self._path, asdict(row))


def _read_case(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): give another --out") from error
