"""Which graph the model's process runs, told to the launcher and kept for its restarts by a file.

The launcher names a directory in the environment, which gets a file for each model. The first process that loads the
model measures and writes it; one that takes the place of a dead one reads it, and is ready sooner. In a Triton that
`hebbline serve` did not start there is no file: the choice is in the log alone.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

from ...artifacts import KvFormat
from ...runtime.fastest import GraphChoice, open_fastest
from ...runtime.onnxruntime import OnnxRunner
from ...runtime.opening import open_onnx
from .settings import MODEL_NAME

CHOICE_VARIABLE = "HEBBLINE_GRAPH_CHOICE"


def open_chosen(
    artifact: Path,
    slots: int,
    threads: int | None = None,
    *,
    kv: KvFormat | None = None,
    cache_bytes: int | None = None,
    model: str = MODEL_NAME,
) -> OnnxRunner:
    """In the process of `model`: the runner of the faster graph, see `open_fastest`; its choice is logged."""
    path = _path(model)
    if path is not None and (choice := read_choice(path)) is not None:
        return open_onnx(artifact, slots, threads, graph=choice.graph, kv=kv, cache_bytes=cache_bytes)
    runner, choice = open_fastest(artifact, slots, threads, kv=kv, cache_bytes=cache_bytes)
    print(f"hebbline: {choice}", flush=True)
    if path is not None:
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(choice)))
        temporary.rename(path)
    return runner


def choice_file(directory: Path, model: str = MODEL_NAME) -> Path:
    """Where a model's choice is kept."""
    return directory / f"{model}.json"


def read_choice(path: Path) -> GraphChoice | None:
    """What was chosen; None where no process has chosen yet."""
    if not path.is_file():
        return None
    return GraphChoice(**json.loads(path.read_text()))


def _path(model: str) -> Path | None:
    named = os.environ.get(CHOICE_VARIABLE)
    return choice_file(Path(named), model) if named else None
