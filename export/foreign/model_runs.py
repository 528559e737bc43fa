"""Runs models of strangers in a process of its own: `python model_runs.py REQUEST.json`.

A file can make ONNX Runtime crash, exhaust the memory or never return. Here it takes only this process with it. The
file imports nothing of its package, so that the process starts fast.

Request: {"threads": int, "memory": bytes of address space, "inputs": [name, ...], "attempts": [[feeds.npz, ...], ...],
"models": [{"path", "optimize": bool, "library": path or null}, ...], "out": directory}. The first attempt on which the
first model gives enough different numbers is given to all models.
Answer, in `answer.json` of that directory: {"attempt": index or null, "errors": [first model's error an attempt],
"models": [{"error": text or null, "load_error": bool, "outputs": [one .npz a feed]}, ...]}.

With {"timing": {"feeds": [feeds.npz, ...], "models": [index, index], "seconds": float}} in the request, two of the
models are timed in turn on the first feeds that both take, those that were compared on at last, where that is done in
about so many seconds. The answer has {"timing": {"shapes": {input: [size, ...]}, "seconds": [[a model's], [the
other's]]}} or {"timing": {"error": text}}.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 31
_TELLING = 16
"""Different numbers among a model's results from which on a comparison with another is worth something."""
_SEARCH_SECONDS, _SEARCH_BYTES = 5.0, 1 << 22
"""For so long, and on inputs of at most so many bytes, better ones are looked for once some have run."""


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
    if request.get("timing"):
        print("timing", flush=True)
        compared = request["attempts"][answer["attempt"]][0]
        answer["timing"] = _try_timing(request, [*request["timing"]["feeds"], compared])
        (out / "answer.json").write_text(json.dumps(answer))


def _try_timing(request: dict[str, Any], feeds: list[str]) -> dict[str, Any]:
    fault = "it has no inputs that could be made up"
    for path in feeds:
        try:
            return _time(request, path)
        except Exception as failure:  # ONNX Runtime's exceptions share no base class but Exception
            fault = " ".join(str(failure).split())[:200]
    return {"error": fault}


def _time(request: dict[str, Any], feeds_path: str) -> dict[str, Any]:
    """Seconds of each run of the two models."""
    timing = request["timing"]
    sessions = [_load(request["models"][index], 1) for index in timing["models"]]
    with np.load(feeds_path, allow_pickle=False) as archive:
        feeds = {name: archive[f"arr_{place}"] for place, name in enumerate(request["inputs"])}
    for session in sessions:
        session.run(None, feeds)  # the first run of a session allocates
    start = time.perf_counter()
    _round(sessions, feeds)
    once = time.perf_counter() - start
    if once > timing["seconds"]:
        return {"error": f"one run of both takes {once:.0f} s"}
    rounds = [
        _round(sessions, feeds) for _ in range(max(_FEWEST_ROUNDS, min(_MOST_ROUNDS, int(timing["seconds"] / once))))
    ]
    shapes = {name: list(array.shape) for name, array in feeds.items()}
    return {"shapes": shapes, "seconds": [list(column) for column in zip(*rounds, strict=True)]}


def _round(sessions: list[onnxruntime.InferenceSession], feeds: dict[str, np.ndarray]) -> list[float]:
    seconds = []
    for session in sessions:
        start = time.perf_counter()
        session.run(None, feeds)
        seconds.append(time.perf_counter() - start)
    return seconds


def _try_model(
    model: dict[str, Any], index: int, request: dict[str, Any], answer: dict[str, Any], out: Path
) -> dict[str, Any]:
    try:
        session = _load(model, request["threads"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        return {"error": str(error), "load_error": True, "outputs": []}
    if index:
        outputs, fault = _try_feeds(session, request, answer["attempt"], index, out)
        return {"error": fault, "load_error": False, "outputs": outputs}
    answer["attempt"], fault = _choose_attempt(session, request, answer["errors"], out)
    if answer["attempt"] is None:
        return {"error": fault, "load_error": False, "outputs": []}
    outputs, fault = _try_feeds(session, request, answer["attempt"], index, out)
    return {"error": fault, "load_error": False, "outputs": outputs}


def _choose_attempt(
    session: onnxruntime.InferenceSession, request: dict[str, Any], errors: list[str], out: Path
) -> tuple[int | None, str]:
    """The first attempt with results that tell enough, else that which tells most; None and the last error."""
    best, most, fault = None, -1, "there are no inputs to try"
    end = time.perf_counter() + _SEARCH_SECONDS
    for number, feeds in enumerate(request["attempts"]):
        large = sum(Path(path).stat().st_size for path in feeds) > _SEARCH_BYTES
        if best is not None and (large or time.perf_counter() > end):
            continue
        outputs, error = _try_feeds(session, request, number, 0, out)
        if error is not None:
            fault = error
            errors.append(error)
        elif (count := _distinct(outputs)) > most:
            best, most = number, count
        if most >= _TELLING:
            break
    return best, fault


def _try_feeds(
    session: onnxruntime.InferenceSession, request: dict[str, Any], attempt: int, index: int, out: Path
) -> tuple[list[str], str | None]:
    """Files of a model's outputs on all feeds of an attempt, or what it fails with."""
    feeds = request["attempts"][attempt]
    try:
        return [
            _run(session, request["inputs"], Path(path), out / f"outputs_{index}_{place}.npz")
            for place, path in enumerate(feeds)
        ], None
    except Exception as failure:  # as above; also MemoryError, which the limit on memory turns exhaustion into
        return [], str(failure)


def _distinct(outputs: list[str]) -> int:
    """How many different finite numbers there are among results: a NaN agrees with itself, and shows no difference."""
    seen: set[Any] = set()
    for path in outputs:
        with np.load(path, allow_pickle=False) as archive:
            for array in archive.values():
                finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
                seen.update(np.unique(finite)[:_TELLING].tolist())
    return len(seen)


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
