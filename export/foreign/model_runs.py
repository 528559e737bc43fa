"""Runs models of strangers in a process of its own: `python model_runs.py REQUEST.json`.

A file can make ONNX Runtime crash, exhaust the memory or never return. Here it takes only this process with it. The
file imports nothing of its package, so that the process starts fast.

Request: {"threads": int, "memory": bytes of address space, "inputs": [name, ...], "attempts": [[feeds.npz, ...], ...],
"models": [{"path", "optimize": bool, "library": path or null}, ...], "out": directory}. The first attempt whose feeds
the first model accepts is given to all models.
Answer, in `answer.json` of that directory: {"attempt": index or null, "errors": [first model's error an attempt],
"models": [{"error": text or null, "load_error": bool, "outputs": [one .npz a feed]}, ...]}.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def main(request_path: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_path).read_text())
    resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = Path(request["out"])
    answer: dict[str, Any] = {"attempt": None, "errors": [], "models": []}
    for index, model in enumerate(request["models"]):
        print(index, flush=True)  # where we were, should the process die
        answer["models"].append(_try_model(model, index, request, answer, out))
        (out / "answer.json").write_text(json.dumps(answer))
        if answer["attempt"] is None:
            return


def _try_model(
    model: dict[str, Any], index: int, request: dict[str, Any], answer: dict[str, Any], out: Path
) -> dict[str, Any]:
    try:
        session = _load(model, request["threads"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        return {"error": str(error), "load_error": True, "outputs": []}
    attempts = request["attempts"] if index == 0 else [request["attempts"][answer["attempt"]]]
    fault = "there are no inputs to try"
    for number, feeds in enumerate(attempts):
        try:
            outputs = [
                _run(session, request["inputs"], Path(path), out / f"outputs_{index}_{place}.npz")
                for place, path in enumerate(feeds)
            ]
        except Exception as failure:  # as above; also MemoryError, which the limit on memory turns exhaustion into
            fault = str(failure)
            if index == 0:
                answer["errors"].append(fault)
            continue
        if index == 0:
            answer["attempt"] = number
        return {"error": None, "load_error": False, "outputs": outputs}
    return {"error": fault, "load_error": False, "outputs": []}


def _load(model: dict[str, Any], threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if model["optimize"] else levels.ORT_ENABLE_BASIC
    if model["library"]:
        options.register_custom_ops_library(model["library"])
    return onnxruntime.InferenceSession(model["path"], options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, names: list[str], feeds: Path, out: Path) -> str:
    with np.load(feeds, allow_pickle=False) as archive:
        values = session.run(None, {name: archive[f"arr_{place}"] for place, name in enumerate(names)})
    arrays: dict[str, np.ndarray] = {}
    for node, value in zip(session.get_outputs(), values, strict=True):
        _flatten(node.name, value, arrays)
    np.savez(out, **{f"{place}": array for place, array in enumerate(arrays.values())})
    return str(out)


def _flatten(name: str, value: Any, arrays: dict[str, np.ndarray]) -> None:
    """Sequences and maps give one array an entry; None is an absent optional."""
    if isinstance(value, dict):
        for key in sorted(value):
            _flatten(f"{name}[{key!r}]", value[key], arrays)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _flatten(f"{name}[{place}]", item, arrays)
    elif value is not None:
        array = np.asarray(value)
        arrays[name] = array.astype(np.str_) if array.dtype == object else array


if __name__ == "__main__":
    main(sys.argv[1])
