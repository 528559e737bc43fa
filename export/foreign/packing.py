"""The work of `pack` on one open document: find, rewrite, write, verify, report."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto

from ...artifacts import CheckError, InputError
from ...kernels import library_path, register
from ..layouts import DOMAIN, DOMAIN_VERSION, Aim
from .autotune import Autotuner
from .bodies import Readers, ValueTypes, all_bodies
from .calibration import activation_scales, load_feeds
from .comparison import EndToEnd, compare_models, not_compared, run_models
from .conversion import OLDEST_OPSET, modernised
from .deciding import Decider
from .document import Document
from .expansions import Context
from .folding import RANDOM, fold_weights
from .inlining import inline_weight_functions
from .inputs import NoInputsError, input_attempts
from .linears import Linear, find_linears
from .options import PackOptions
from .packed_weight import Target
from .removal import Removed, remove_channels
from .report import PackedLayer, PackReport
from .rewriting import Rewriter
from .speed import ModelSpeed, not_measured, timing_feeds
from .tensors import byte_count
from .writing import DATA_SUFFIX, ModelWriter

MODEL_FILE = "model.onnx"
_SLOWER = 0.97
"""A measured speed-up below this is no scatter."""
_SHORT_MS = 0.2
"""In so short a time what a runtime does for each call counts, and the figure says little of the layers."""
_SMALL_FILE = 1 << 16
"""In files up to this size the definitions of the operators, about 2 kB each, may take more than packing saves."""


@dataclass(frozen=True)
class Plan:
    """What a run may do, where an earlier one has made a model that is slower than the original.

    `convolutions`: whether those of one point may be packed. `by_time`: layouts are chosen by times measured here.
    `fault`: the model stays as it is, for this reason.
    """

    convolutions: bool = True
    by_time: bool = False
    fault: str | None = None


WHOLE = Plan()


def next_plan(plan: Plan, report: PackReport) -> Plan | None:
    """What to try after a run whose model is slower than the original; None where it stays so."""
    speed, options = report.speed, report.options
    if plan.convolutions and any(layer.op_type == "Conv" for layer in report.packed_layers):
        return replace(plan, convolutions=False)
    if speed.speedup is None or speed.original_ms is None or speed.speedup >= _SLOWER:
        return None
    if speed.original_ms < _SHORT_MS or options.objective == "size" or options.for_isa:
        return None
    if report.packed_layers and not plan.by_time and not options.autotune:
        return replace(plan, by_time=True)
    return replace(plan, fault=f"packed, it takes {speed.packed_ms:.3g} ms here, the original {speed.original_ms:.3g}")


class Packing:
    """Packs one document into a directory.

    Args:
        document: the model; its content is changed.
        options: what is asked for.
        out: where the model goes.
        scratch: a directory for a checked copy of the original, and for inputs and outputs.
        progress: told each stage as it begins.
        plan: what may be packed, and by what it is chosen.

    Raises:
        InputError: autotune is asked for and there is no op library.

    `pictures` holds the local densities of the weights that were read, by name, after `run`.
    """

    def __init__(
        self,
        document: Document,
        options: PackOptions,
        out: Path,
        scratch: Path,
        progress: Callable[[str], None],
        plan: Plan = WHOLE,
    ) -> None:
        self._document, self._options = document, options
        self._out, self._scratch, self._progress = out, scratch, progress
        self._plan = plan
        self._changes: list[str] = []
        self._notes: list[str] = []
        self._original_opset = document.opset
        self._target = Target(document.opset)
        self._measure = self._autotuner().fastest if options.autotune or plan.by_time else None
        self._aim = Aim(options.for_isa, self._weight_bytes())
        self._feeds: dict[str, NDArray] | None = None
        self._has_library = _library_fault() is None
        self.pictures: dict[str, NDArray[np.float64]] = {}

    def run(self) -> PackReport:
        """Pack and verify; see `hebbline.export.packer` for what is raised."""
        if self._options.calibration is not None:
            self._feeds = load_feeds(Path(self._options.calibration), self._document.proto)
        original = self._copy_original()
        operators = frozenset(node.op_type for body in all_bodies(self._document.proto) for node in body.nodes)
        self._target = Target(self._document.opset, quantised="DequantizeLinear" in operators)
        self._check_domain()
        self._modernise()
        self._inline()
        removed = Removed() if self._plan.fault else remove_channels(self._document, self._scratch)
        self._changes += removed.notes
        packed = self._out / MODEL_FILE
        opset = self._document.opset
        rows = self._rewrite(packed, original)
        changed = bool(removed.layers) or any(row.packed for row in rows)
        if fault := self._plan.fault or _no_gain(changed, original, packed):
            rows, opset, changed = self._undo(rows, fault, original, packed), self._original_opset, False
        self._check_valid(original, packed)
        self._progress("comparing with the original")
        result, speed = self._compare(original, packed, operators, changed)
        if speed.speedup is not None and speed.speedup < _SLOWER and not self._options.autotune:
            self._notes.append(
                "the packed model is slower here than the original: --autotune chooses by times measured here, "
                "and --objective throughput for many tokens at a time"
            )
        return PackReport(
            source=self._document.path.name,
            opset=opset,
            options=self._options,
            layers=rows,
            end_to_end=result,
            speed=speed,
            file_bytes=_model_bytes(packed),
            original_bytes=_model_bytes(original),
            notes=[*self._changes, *self._notes],
        )

    def _undo(self, rows: list[PackedLayer], fault: str, original: Path, packed: Path) -> list[PackedLayer]:
        """Put the original in the place of the packed model, which is no gain; the rows that are true then."""
        for path in (packed, packed.with_name(packed.name + DATA_SUFFIX)):
            path.write_bytes((original.parent / path.name).read_bytes())
        self._changes = [f"the model is as it was: {fault}"]
        return [row.as_left(fault) for row in rows]

    def _autotuner(self) -> Autotuner:
        opset = max(self._document.opset, OLDEST_OPSET)
        return Autotuner(self._options.objective, opset, self._weight_bytes())

    def _weight_bytes(self) -> int:
        tensors = (tensor for body in all_bodies(self._document.proto) for tensor in body.initializers.values())
        return sum(map(byte_count, tensors))

    def _copy_original(self) -> Path:
        """The original with all it refers to, as it was read and checked: what is compared with is what was packed."""
        path = self._scratch / MODEL_FILE
        proto = ModelProto()
        proto.CopyFrom(self._document.proto)
        with ModelWriter(path, self._document.files) as writer:
            writer.save(proto)
        return path

    def _check_domain(self) -> None:
        for entry in self._document.proto.opset_import:
            if entry.domain == DOMAIN and entry.version != DOMAIN_VERSION:
                raise InputError(f"{self._document.path} imports version {entry.version} of {DOMAIN}, which is unknown")

    def _modernise(self) -> None:
        self._document, notes = modernised(self._document, self._scratch)
        self._changes += notes
        self._target = replace(self._target, opset=self._document.opset)

    def _inline(self) -> None:
        before = {(function.domain, function.name) for function in self._document.proto.functions}
        self._document = inline_weight_functions(self._document)
        gone = before - {(function.domain, function.name) for function in self._document.proto.functions}
        if gone:
            names = ", ".join(sorted(f"{domain}.{name}" for domain, name in gone))
            self._changes.append(f"inlined, because they take weights as arguments: {names}")

    def _runs(self, original: Path) -> bool:
        """Whether the original runs here: in a process of its own, before any of its operators runs in this one.

        Raises:
            InputError: it brings the process down.
        """
        try:
            attempts = input_attempts(self._document.proto, 1) if self._feeds is None else [[self._feeds]]
        except NoInputsError:
            return False
        answer = run_models(self._document.path, [(original, False, None)], attempts, self._scratch)
        return answer["attempt"] is not None

    def _rewrite(self, path: Path, original: Path) -> list[PackedLayer]:
        bodies = all_bodies(self._document.proto)
        readers, types = Readers(bodies), ValueTypes(self._document.proto, bodies)
        self._notes += fold_weights(self._document, bodies, self._scratch)
        layers, scales = find_linears(self._document, bodies, readers, types), {}
        if self._feeds is not None:
            self._progress("calibrating")
            linears = [layer for layer in layers if isinstance(layer, Linear)]
            scales = activation_scales(self._document, linears, self._feeds, self._scratch)
        with ModelWriter(path, self._document.files) as writer:
            rewriter = Rewriter(self._document, bodies, writer)
            decider = Decider(
                self._document,
                self._options,
                self._target,
                self._measure,
                self._aim,
                scales,
                has_library=self._has_library,
                convolutions=self._plan.convolutions,
                progress=self._progress,
                runs=cache(lambda: self._runs(original)),
            )
            rows = decider.rows(layers, Context(self._document, readers, types), rewriter)
            self.pictures = decider.pictures
            rewriter.apply()
            self._progress("writing the model")
            writer.save(self._document.proto)
        return rows

    def _check_valid(self, original: Path, packed: Path) -> None:
        """What passed the ONNX checker must pass it still."""
        fault = _onnx_fault(packed)
        if fault is not None:
            if _onnx_fault(original) is None:
                raise CheckError(f"{self._document.path}: the packed model is not valid ONNX: {fault}")
            self._notes.append(f"the ONNX checker refuses the original, and so the packed model: {fault}")

    def _compare(
        self, original: Path, packed: Path, operators: frozenset[str], changed: bool
    ) -> tuple[EndToEnd, ModelSpeed]:
        """The two models' outputs, and their times where the packed one is `changed`."""
        if operators & RANDOM:
            why = "the model draws random numbers, so that no two runs agree"
            return not_compared(why), not_measured(why)
        wanted = self._options.measure and changed
        timing = timing_feeds(self._document.proto, self._options.objective) if wanted else None
        result, speed = compare_models(
            self._document.path,
            original,
            packed,
            self._document.proto,
            self._scratch,
            exact=self._options.values == "float32",
            operators=operators,
            library=self._library(),
            feeds=self._feeds,
            timing=timing,
        )
        return result, speed if changed else not_measured("no layer is packed")

    def _library(self) -> str | None:
        """The op library, where it is installed and loads: the packed model is run with it as well."""
        fault = _library_fault()
        if fault is None:
            return str(library_path())
        self._notes.append(f"only the portable form was verified, since the op library is not there: {fault}")
        return None


def _library_fault() -> InputError | None:
    """Why the op library is not installed or does not load."""
    try:
        register(onnxruntime.SessionOptions())
    except InputError as error:
        return error
    return None


def _no_gain(changed: bool, original: Path, packed: Path) -> str | None:
    """Why the packed model is worth nothing, in words; None where it is worth something."""
    if not changed:
        return "no layer is packed"
    before, after = _model_bytes(original), _model_bytes(packed)
    if after > before and before > _SMALL_FILE:
        return f"packed, the file would take {after:,} bytes, the original takes {before:,}"
    return None


def _model_bytes(path: Path) -> int:
    data = path.with_name(path.name + DATA_SUFFIX)
    return path.stat().st_size + data.stat().st_size


def _onnx_fault(path: Path) -> str | None:
    """What the ONNX checker finds wrong with a file, in one line."""
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        return " ".join(str(error).replace(f"{path.parent}/", "").split())[:300]
    return None
