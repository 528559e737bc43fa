"""The gate: the packed model against the original, in ONNX Runtime, on random inputs or those of a calibration.

Both run in a process of their own (`model_runs`). The packed model may differ from the original by rounding. How much
rounding matters depends on the model, so the original is run in two ways, with and without ONNX Runtime's fusions, and
the difference between the two is the measure, where it is more than a small fixed tolerance.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto

from ...artifacts import CheckError, InputError
from .differences import TOLERANCE, Arrays, difference, share_off
from .inputs import NoInputsError, input_attempts
from .isolation import run_isolated
from .saturation import SIGMOID_ROUNDING, added_names, probed, squeezed_values
from .speed import SECONDS, ModelSpeed, not_measured, save_timing_feeds, speed_of

NOISE_FACTOR = 4.0
LARGEST_NOISE = 1e-3
"""More than this is no rounding of float32, but a fusion that multiplies in integers: it excuses no packed layer."""
ROUNDING_OPS = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "Round", "Floor", "Ceil", "Sign", "ArgMax", "ArgMin", "TopK", "Where"}
    | {"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "NonMaxSuppression"}
)
"""Operators that can turn a difference in the last bit into a whole step."""
ROUNDING_SHARE = 0.05
_FEWEST_FEEDS, _MOST_FEEDS = 2, 8
_FEEDS_ELEMENTS = 1 << 20
"""More than the fewest inputs are made up while they have no more elements: a small output says little alone."""
_RUNNER = Path(__file__).with_name("model_runs.py")
_UNKNOWN_OP = ("not a registered function/op", "NOT_IMPLEMENTED", "No opset import for domain")


@dataclass(frozen=True)
class EndToEnd:
    """What the comparison of whole models found. Differences are the largest over the largest magnitude of an output.

    `difference`: without ONNX Runtime's fusions, which can change results; None where nothing was compared, with the
    reason in `note`. `allowed`: the most that this may be (None: values are inexact, and it is only reported).
    `default_difference` and `library_difference`: as ONNX Runtime runs the packed model by default, and with the op
    library, against the nearer of the original's two ways. `noise`: between these two. `outputs`: finite
    numbers compared.
    """

    difference: float | None
    allowed: float | None
    default_difference: float | None
    library_difference: float | None
    noise: float | None
    outputs: int
    note: str

    def to_json(self) -> dict[str, Any]:
        """The figures by name."""
        return asdict(self)


def compare_models(
    source: Path,
    original: Path,
    packed: Path,
    proto: ModelProto,
    scratch: Path,
    *,
    exact: bool,
    operators: frozenset[str],
    library: str | None,
    feeds: dict[str, NDArray] | None = None,
    timing: list[dict[str, NDArray]] | None = None,
) -> tuple[EndToEnd, ModelSpeed]:
    """Run both models and compare, and time them.

    Args:
        source: the user's file, for messages.
        original, packed: the files to run; `original` is a checked copy.
        proto: a model with the original's inputs.
        scratch: a directory for inputs and outputs.
        exact: whether the packed weights are the original ones; other results are reported, not judged.
        operators: those of the original, to tell whether it rounds.
        library: path of the op library to run the packed model with as well.
        feeds: inputs to compare on; None makes them up.
        timing: inputs to time the models on, the first that they take; None does not time them.

    Raises:
        InputError: ONNX Runtime cannot load the original, or it brings the process down.
        CheckError: the packed model cannot run, or differs by more than is allowed.
    """
    try:
        attempts = input_attempts(proto, _feed_count(proto)) if feeds is None else [[feeds]]
    except NoInputsError as error:
        why = f"no inputs could be made up: {error}"
        return not_compared(why), not_measured(why)
    models: list[tuple[Path, bool, str | None]] = [
        (original, False, None),
        (original, True, None),
        (packed, False, None),
        (packed, True, None),
    ]
    if library is not None:
        models.append((packed, True, library))
    published = len(models)
    timed = (1, published - 1) if library is not None and timing is not None else None
    squeezed = squeezed_values(proto.graph)
    with _inside(proto.graph, squeezed, original, packed) as inner:
        answer = run_models(source, [*models, *inner], attempts, scratch, timing or [], timed)
    _forget_paths(answer, {original: source, packed: source})
    first = answer["models"][0]
    if first["load_error"] and not any(text in first["error"] for text in _UNKNOWN_OP):
        raise InputError(f"{source}: ONNX Runtime {onnxruntime.__version__} cannot load it: {_line(first['error'])}")
    if answer["attempt"] is None:
        fault = answer["errors"][0] if answer["errors"] else first["error"]
        made_up = "made-up" if feeds is None else "the calibration"
        why = f"the original does not run on {made_up} inputs: {_line(fault)}"
        return not_compared(why), not_measured(why)
    results = answer["models"]
    for (path, _, used), result in zip(models[1:], results[1:published], strict=True):
        if result["error"] is not None and path == packed:
            kind = "with the op library" if used else "in ONNX Runtime"
            raise CheckError(
                f"{source}: the packed model fails {kind}: {_line(result['error'])}; nothing was published"
            )
    rounding = [SIGMOID_ROUNDING if names else 0.0 for names in squeezed]
    judged = _judge(source, [_outputs(result) for result in results[:published]], operators, exact, rounding)
    if exact and all(result["error"] is None for result in results[published:]):
        outputs = [arrays_of(result) for result in results[published:]]
        _judge_inside(source, outputs, operators, [*rounding, *[0.0] * len(added_names(proto.graph, squeezed))])
    return judged, not_measured(_why_not(library, timing)) if timed is None else speed_of(answer)


def _feed_count(proto: ModelProto) -> int:
    elements = sum(array.size for array in input_attempts(proto, 1)[0][0].values())
    return max(_FEWEST_FEEDS, min(_MOST_FEEDS, _FEEDS_ELEMENTS // max(1, elements)))


def _why_not(library: str | None, timing: list[dict[str, NDArray]] | None) -> str:
    return "it was not asked for" if timing is None else "there is no op library" if library is None else ""


@contextmanager
def _inside(
    graph: GraphProto, squeezed: list[list[str]], original: Path, packed: Path
) -> Iterator[list[tuple[Path, bool, str | None]]]:
    """The models to run for what goes into the Sigmoids at their outputs; none where there are none."""
    names = added_names(graph, squeezed)
    if not names:
        yield []
        return
    with probed(original, names) as before, probed(packed, names) as after:
        yield [(before, False, None), (before, True, None), (after, False, None)]


def _judge(
    source: Path, outputs: list[Arrays | None], operators: frozenset[str], exact: bool, rounding: Sequence[float]
) -> EndToEnd:
    plain, fused, *packed = outputs
    assert plain is not None, "the original ran"
    references = [plain] if fused is None else [plain, fused]
    noise = 0.0 if fused is None else difference(fused, plain, rounding)
    allowed = max(TOLERANCE, NOISE_FACTOR * min(noise, LARGEST_NOISE))
    checks = [(packed[0], [plain], allowed)]
    checks += [(result, references, max(TOLERANCE, NOISE_FACTOR * noise)) for result in packed[1:]]
    differences = []
    note = "outputs agree" if exact else "values are rounded: the difference is reported, not judged"
    for result, against, limit in checks:
        assert result is not None, "the packed model ran"
        differences.append(min(difference(result, reference, rounding) for reference in against))
        if exact and not differences[-1] <= limit:
            note = _excuse(source, result, against, operators, (differences[-1], limit), rounding)
    compared = sum(_comparable(array) for array in plain)
    if plain and not compared:
        note = "the original gives no finite number on random inputs, so that its outputs say nothing; every layer was "
        note += "verified alone"
    return EndToEnd(
        difference=differences[0],
        allowed=allowed if exact else None,
        default_difference=differences[1],
        library_difference=differences[2] if len(differences) > 2 else None,
        noise=noise,
        outputs=compared,
        note=note,
    )


def _judge_inside(source: Path, outputs: list[Arrays], operators: frozenset[str], rounding: Sequence[float]) -> None:
    """The same of what goes into the Sigmoids, which stands behind the outputs; raises CheckError."""
    if not outputs:
        return
    plain, fused, packed = outputs
    allowed = max(TOLERANCE, NOISE_FACTOR * min(difference(fused, plain, rounding), LARGEST_NOISE))
    found = difference(packed, plain, rounding)
    if not found <= allowed:
        _excuse(source, packed, [plain], operators, (found, allowed), rounding)


def _excuse(
    source: Path,
    result: Arrays,
    references: list[Arrays],
    operators: frozenset[str],
    measured: tuple[float, float],
    output_rounding: Sequence[float],
) -> str:
    """In a model that rounds, a few numbers may differ by a step; raises CheckError where it is more than that.

    `measured`: the difference and the largest that is allowed.
    """
    rounding = sorted(ROUNDING_OPS & operators)
    off, allowed = measured
    share = min(share_off(result, reference, allowed, output_rounding) for reference in references)
    if not rounding or not share <= ROUNDING_SHARE:
        raise CheckError(
            f"{source}: outputs of the packed model differ by {off:.1e} of their largest magnitude, over "
            f"{allowed:.1e}; nothing was published"
        )
    return f"{share:.1%} of the outputs differ by a step of {', '.join(rounding)}; every layer alone agrees"


def run_models(
    source: Path,
    models: Sequence[tuple[Path, bool, str | None]],
    attempts: list[list[dict[str, NDArray]]],
    scratch: Path,
    timing: Sequence[dict[str, NDArray]] = (),
    timed: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Run models in a process of their own; see `model_runs` for the answer.

    Args:
        source: the user's file, for messages.
        models: files, whether ONNX Runtime fuses nodes, and the op library to load.
        attempts: inputs by name; see `model_runs`.
        scratch: a directory for inputs and outputs.
        timing: inputs to time two of the models on; the places of these are `timed`.

    Raises:
        InputError: the first model brings the process down, or does not finish.
        CheckError: another one does.
    """
    request = {
        "threads": 1,  # inputs are small, and sums then have one order
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "inputs": list(attempts[0][0]),
        "attempts": _save_feeds(attempts, scratch),
        "models": [{"path": str(path), "optimize": fused, "library": library} for path, fused, library in models],
        "out": str(scratch),
    }
    if timed is not None:
        paths = save_timing_feeds(list(timing), scratch)
        request["timing"] = {"feeds": paths, "models": timed, "seconds": SECONDS}
    (scratch / "request.json").write_text(json.dumps(request))
    try:
        done = run_isolated(_RUNNER, str(scratch / "request.json"))
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{source}: the model did not finish within {error.timeout:.0f} s on small inputs") from error
    if done.returncode != 0 and done.stdout.split()[-1:] != ["timing"]:  # that is no check, and nothing fails by it
        raise _died(source, models, done)
    answer: dict[str, Any] = json.loads((scratch / "answer.json").read_text())
    return answer


def _died(
    source: Path, models: Sequence[tuple[Path, bool, str | None]], done: subprocess.CompletedProcess[str]
) -> InputError | CheckError:
    stages = done.stdout.split()
    index = int(stages[-1]) if stages else 0
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}: {_line(done.stderr)}"
    if models[index][0] == models[0][0]:
        return InputError(f"{source}: ONNX Runtime {onnxruntime.__version__} died running it ({how})")
    return CheckError(f"{source}: ONNX Runtime died running the packed model ({how}); nothing was published")


def _save_feeds(attempts: list[list[dict[str, NDArray]]], scratch: Path) -> list[list[str]]:
    paths = []
    for number, feeds in enumerate(attempts):
        paths.append([str(scratch / f"feeds_{number}_{place}.npz") for place in range(len(feeds))])
        for path, feed in zip(paths[-1], feeds, strict=True):
            np.savez(path, *feed.values())
    return paths


def _outputs(result: dict[str, Any]) -> Arrays | None:
    """None where the model did not run."""
    return None if result["error"] is not None else arrays_of(result)


def arrays_of(result: dict[str, Any]) -> Arrays:
    """All outputs of all feeds, in order, of a model that ran."""
    arrays: Arrays = []
    for path in result["outputs"]:
        with np.load(path, allow_pickle=False) as archive:
            arrays += [archive[str(place)] for place in range(len(archive.files))]
    return arrays


def _comparable(array: NDArray) -> int:
    """How many of an output's numbers are finite: NaN and infinity agree with themselves, and show nothing."""
    return int(np.isfinite(array).sum()) if array.dtype.kind == "f" else array.size


def not_compared(reason: str) -> EndToEnd:
    """What is reported where the models were not compared, and why."""
    return EndToEnd(None, None, None, None, None, 0, f"{reason}; every layer was verified alone")


def _forget_paths(answer: dict[str, Any], shown: dict[Path, Path]) -> None:
    """Put the user's file where messages name a temporary one."""
    for path, instead in shown.items():
        answer["errors"] = [error.replace(str(path), str(instead)) for error in answer["errors"]]
        for result in answer["models"]:
            result["error"] = result["error"] and result["error"].replace(str(path), str(instead))


def _line(text: str | None) -> str:
    return " ".join((text or "").split())[:300]
