"""`pack`: the zeros of any ONNX file, packed, verified and published."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from ..artifacts import Manifest, publish
from ..artifacts.page import write_report
from ..artifacts.publishing import check_target
from .foreign import Packing, PackOptions, PackReport, open_document, pack_page
from .foreign.packing import WHOLE, Plan, next_plan
from .layouts import Objective

Progress = Callable[[str], None]


def _is_slower(report: PackReport) -> bool:
    return report.speed.speedup is not None and report.speed.speedup < 1


def _pack(
    source: Path, out: Path, options: PackOptions, directory: Path, progress: Progress, plan: Plan
) -> tuple[Packing, PackReport]:
    """Write the packed model to a directory; what a run before this one wrote there is written over."""
    with (
        open_document(source) as document,
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as scratch,
    ):
        packing = Packing(document, options, directory, Path(scratch), progress, plan)
        return packing, packing.run()


def pack(
    onnx_path: str | Path,
    out_dir: str | Path,
    *,
    values: str = "float32",
    min_speedup: float = 0.0,
    autotune: bool = False,
    objective: Objective = "latency",
    calibration: str | Path | None = None,
    for_isa: str | None = None,
    measure: bool = True,
    progress: Progress = lambda stage: None,
) -> PackReport:
    """Pack the zeros in the linear layers of an ONNX file, verify the result against the original, and publish it.

    The file itself is never changed. `out_dir` gets `model.onnx` with external data, `report.json`, `report.html` and
    the manifest. The model keeps its inputs, outputs, metadata and every node but the packed ones, and runs in any
    ONNX runtime. While at work, temporary files beside `out_dir` take about the size of the original.

    Args:
        onnx_path: opset 7 or newer; before 13 it is converted.
        out_dir: a new directory, or one that hebbline published before.
        values, min_speedup, autotune, objective, calibration, for_isa, measure: see `PackOptions`.
        progress: told each stage as it begins.

    Raises:
        InputError: the file or an option is unsound, `out_dir` is taken, or ONNX Runtime cannot load the file.
        CheckError: the packed model does not agree with the original. Nothing is published then.
    """
    source, out = Path(onnx_path), Path(out_dir)
    given = None if calibration is None else str(calibration)
    options = PackOptions(values, min_speedup, autotune, objective, given, for_isa, measure)
    check_target(out)
    progress("reading the model")
    with publish(out) as publication:
        plan: Plan | None = WHOLE
        while plan is not None:
            packing, report = _pack(source, out, options, publication.directory, progress, plan)
            plan = next_plan(plan, report) if _is_slower(report) else None
            progress("packing again, since the packed model is slower than the original")
        write_report(publication.directory, report.to_dict(), pack_page(report, packing.pictures))
        publication.finish(Manifest(kind="onnx", layers=report.layer_facts()))
    return report
