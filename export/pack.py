"""`pack`: the zeros of any ONNX file, packed, verified and published."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from ..artifacts import Manifest, publish
from ..artifacts.publish import check_target
from .foreign import Packing, PackOptions, PackReport, open_document, write_reports
from .layouts import Objective

Progress = Callable[[str], None]


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
    with open_document(source) as document, publish(out) as publication:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as directory:
            packing = Packing(document, options, publication.directory, Path(directory), progress)
            report = packing.run()
        write_reports(publication.directory, report, packing.pictures)
        publication.finish(Manifest(kind="onnx", layers=report.layer_facts()))
    return report
