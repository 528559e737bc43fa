"""Which graph the model's process runs, told to the launcher and kept for its restarts by a file.

The launcher names the file in the environment. The first process that loads the model measures and writes it; one that
takes the place of a dead one reads it, and is ready sooner. In a Triton that `hebbline serve` did not start there is no
file: the choice is in the log alone.
"""

import json
import os
from pathlib import Path

from ...artifacts import KvFormat
from ..engine.fastest import GraphChoice, open_fastest
from ..engine.onnxruntime import OnnxRunner

CHOICE_VARIABLE = "HEBBLINE_GRAPH_CHOICE"


def open_chosen(artifact: Path, slots: int, threads: int | None = None, *, kv: KvFormat | None = None) -> OnnxRunner:
    """In the model's process: the runner of the faster graph, see `open_fastest`; its choice is logged."""
    path = _path()
    if path is not None and (choice := read_choice(path)) is not None:
        return OnnxRunner.open(artifact, slots, threads, graph=choice.graph, kv=kv)
    runner, choice = open_fastest(artifact, slots, threads, kv=kv)
    print(f"hebbline: {choice}", flush=True)
    if path is not None:
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps({"graph": choice.graph, "reason": choice.reason}))
        temporary.rename(path)
    return runner


def read_choice(path: Path) -> GraphChoice | None:
    """What was chosen; None where no process has chosen yet."""
    if not path.is_file():
        return None
    return GraphChoice(**json.loads(path.read_text()))


def _path() -> Path | None:
    named = os.environ.get(CHOICE_VARIABLE)
    return Path(named) if named else None
