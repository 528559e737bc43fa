"""The work of `pack` on one open document: find, choose, rewrite, write, verify, report.

Legend: N out_features, K in_features.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import FunctionProto, ModelProto, TensorProto, helper

from ...artifacts import CheckError, InputError
from ...kernels import library_path, register
from ..layouts import DOMAIN, DOMAIN_VERSION, Aim, Layout
from ..layouts.values import INT8_LARGEST
from ..page import local_density
from .autotune import Autotuner, UntimedError
from .bodies import Body, Readers, ValueTypes, all_bodies, node_title
from .calibration import activation_scales, in_main_graph, load_feeds
from .choosing import HALF, Decision, candidates, check_gain, decide, split_zeros
from .compact_layout import CompactLayout, compact_layout
from .comparison import EndToEnd, compare_models
from .conv_choice import conv_times, gains
from .conversion import OLDEST_OPSET, modernised
from .document import Document
from .files import quoted
from .folding import fold_weights
from .inlining import inline_weight_functions
from .layer_check import LayerError, check_layer
from .left_weights import Facts, left_facts
from .linears import Left, Linear, find_linears, layer_title, weight_title
from .opsets import OLDEST_CAST_LIKE, OpsetError
from .options import PackOptions
from .quantised import centred, dequantisation, kept_values, quantised_input
from .quantised_choice import decide_quantised
from .report import PackedLayer, PackReport
from .restoring import restorable
from .rewriting import PackedWeight, Rewriter, Target, pack_weight
from .rows import Weight, left_row, shared_row, weight_row
from .speed import ModelSpeed, not_measured, timing_feeds
from .tensors import byte_count, float32_values
from .weights import parts_of, source_of, stored_bytes
from .writing import DATA_SUFFIX, ModelWriter

MODEL_FILE = "model.onnx"
_SLOWER = 0.97
"""A measured speed-up below this is no scatter."""


class Packing:
    """Packs one document into a directory.

    Args:
        document: the model; its content is changed.
        options: what is asked for.
        out: where the model goes.
        scratch: a directory for a checked copy of the original, and for inputs and outputs.
        progress: told each stage as it begins.
        convolutions: whether those of one point may be packed.

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
        convolutions: bool = True,
    ) -> None:
        self._document, self._options = document, options
        self._out, self._scratch, self._progress = out, scratch, progress
        self._convolutions = convolutions
        self._notes: list[str] = []
        self._target = Target(document.opset)
        self._measure = self._autotuner().fastest if options.autotune else None
        self._aim = Aim(options.for_isa, self._weight_bytes())
        self._feeds: dict[str, NDArray] | None = None
        self._scales: dict[str, float] = {}
        self._decided: dict[str, tuple[Decision, PackedLayer]] = {}
        self._has_library = _library_fault() is None
        self.pictures: dict[str, NDArray[np.float64]] = {}

    def run(self) -> PackReport:
        """Pack and verify; see `hebbline.export.pack` for what is raised."""
        if self._options.calibration is not None:
            self._feeds = load_feeds(Path(self._options.calibration), self._document.proto)
        original = self._copy_original()
        operators = frozenset(node.op_type for body in all_bodies(self._document.proto) for node in body.nodes)
        self._target = Target(self._document.opset, quantised="DequantizeLinear" in operators)
        self._check_domain()
        self._modernise()
        self._inline()
        packed = self._out / MODEL_FILE
        rows = self._rewrite(packed)
        self._check_valid(original, packed)
        self._progress("comparing with the original")
        result, speed = self._compare(original, packed, operators, any(row.packed for row in rows))
        if speed.speedup is not None and speed.speedup < _SLOWER and not self._options.autotune:
            self._notes.append(
                "the packed model is slower here than the original: --autotune chooses by times measured here, "
                "and --objective throughput for many tokens at a time"
            )
        return PackReport(
            source=self._document.path.name,
            opset=self._document.opset,
            options=self._options,
            layers=rows,
            end_to_end=result,
            speed=speed,
            file_bytes=_model_bytes(packed),
            original_bytes=_model_bytes(original),
            notes=self._notes,
        )

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
        self._notes += notes
        self._target = replace(self._target, opset=self._document.opset)

    def _inline(self) -> None:
        before = {(function.domain, function.name) for function in self._document.proto.functions}
        self._document = inline_weight_functions(self._document)
        gone = before - {(function.domain, function.name) for function in self._document.proto.functions}
        if gone:
            names = ", ".join(sorted(f"{domain}.{name}" for domain, name in gone))
            self._notes.append(f"inlined, because they take weights as arguments: {names}")

    def _rewrite(self, path: Path) -> list[PackedLayer]:
        bodies = all_bodies(self._document.proto)
        readers, types = Readers(bodies), ValueTypes(self._document.proto, bodies)
        self._notes += fold_weights(self._document, bodies, self._scratch)
        layers = find_linears(self._document, bodies, readers, types)
        if self._feeds is not None:
            self._progress("calibrating")
            linears = [layer for layer in layers if isinstance(layer, Linear)]
            self._scales = activation_scales(self._document, linears, self._feeds, self._scratch)
        with ModelWriter(path, self._document.files) as writer:
            rewriter = Rewriter(self._document, bodies, writer)
            rows = self._layers(layers, readers, rewriter)
            rewriter.apply()
            self._progress("writing the model")
            writer.save(self._document.proto)
        return rows

    def _layers(self, layers: Sequence[Linear | Left], readers: Readers, rewriter: Rewriter) -> list[PackedLayer]:
        """The report's lines, in order. Layers of one weight are handled together, so that it is read once."""
        rows: dict[int, PackedLayer] = {}
        groups: dict[tuple[int, str, bool], list[int]] = {}
        for index, layer in enumerate(layers):
            if isinstance(layer, Left):
                rows[index] = left_row(layer, f"left: {layer.reason}", left_facts(layer, self._document))
            else:
                key = (id(layer.weight.owner), layer.weight.name, layer.transposed)
                groups.setdefault(key, []).append(index)
        linears = [layer for layer in layers if isinstance(layer, Linear)]
        for indices in groups.values():
            group = [layer for index in indices if isinstance(layer := layers[index], Linear)]
            self._progress(f"packing {weight_title(group[0])}")
            stays = _other_reader(group[0], linears, readers)
            rows |= dict(zip(indices, self._group(group, stays, rewriter), strict=True))
        return [rows[index] for index in range(len(layers))]

    def _group(self, group: list[Linear], stays: str | None, rewriter: Rewriter) -> list[PackedLayer]:
        """The layers of one weight."""
        try:
            matrix_NK = group[0].weight_matrix(self._document)
        except ValueError as error:
            return [left_row(layer, f"left: {error}") for layer in group]
        if matrix_NK.dtype not in (np.float32, np.float16):
            return [left_row(layer, _other_type(matrix_NK)) for layer in group]
        kind = helper.np_dtype_to_tensor_dtype(matrix_NK.dtype)
        weight = Weight(group[0], *split_zeros(float32_values(matrix_NK)), stays, kind)
        if matrix_NK.size:
            self.pictures[weight_title(group[0])] = local_density(weight.mask_NK)
        if weight.layer.is_convolution and (why := self._no_convolution(weight)):
            return [left_row(layer, f"left: {why}", _facts(weight)) for layer in group]
        if kind == TensorProto.FLOAT and dequantisation(group[0]) is not None and matrix_NK.size and self._has_library:
            return self._quantised(group, weight, rewriter)
        scale = self._activation_scale(group)
        key = _packed_key(weight, scale)
        if key not in self._decided:
            self._decided[key] = self._decide(weight, scale)
        decision, row = self._decided[key]
        if decision.layout is not None:
            packed = self._packed_weight(weight, row.weight, decision.layout, scale)
            for layer in group:
                rewriter.replace(layer, packed)
            row = replace(row, largest_activation=INT8_LARGEST * scale or None)
        return [shared_row(row, layer) for layer in group]

    def _no_convolution(self, weight: Weight) -> str | None:
        """Why a convolution of one point is left, before it is timed."""
        if not self._convolutions:
            return "with its convolutions packed, the whole model was no faster than the original"
        if dequantisation(weight.layer) is not None:
            return "a quantised convolution has no packed form"
        if not self._has_library:
            return "convolutions are packed where they are measured to be faster, and there is no op library"
        return None

    def _quantised(self, group: list[Linear], weight: Weight, rewriter: Rewriter) -> list[PackedLayer]:
        """The layers of one weight that is stored in integers."""
        inputs = [quantised_input(layer, self._document) for layer in group]
        given, values = inputs[0], self._options.values
        layouts, scale = candidates(weight.mask_NK, values), 0.0
        if given is not None:
            kept = kept_values(group[0], weight.values_NK, self._document)
            if len({(item.scale, item.kind) if item else None for item in inputs}) > 1:
                kept = "its layers have inputs of several scales"
            elif any(layer.alpha != 1 for layer in group):
                kept = "the product is multiplied by a number"
            if isinstance(kept, str):
                reason = f"left: ONNX Runtime multiplies it in integers, and {kept}"
                return [left_row(layer, reason, _facts(weight)) for layer in group]
            layouts = [type(layout)(kept) for layout in candidates(weight.mask_NK, "int8")]  # type: ignore[call-arg]
            scale = given.scale
        elif any(item is not None for item in inputs):
            reason = "left: some of its layers have quantised inputs, and others have not"
            return [left_row(layer, reason, _facts(weight)) for layer in group]

        def packed_of(layout: Layout) -> PackedWeight:
            return self._packed_weight(weight, weight_title(group[0]), layout, scale)

        stored = stored_bytes(group[0].weight)
        try:
            decision = decide_quantised(weight, given, layouts, packed_of, self._document, stored, self._options)
        except OpsetError as fault:
            decision = Decision(None, stored, f"left: {fault}")
        except UntimedError as fault:
            decision = Decision(None, stored, f"left: ONNX Runtime cannot run it alone, to time it: {fault}")
        if (layout := decision.layout) is None:
            return [shared_row(weight_row(weight, decision, None), layer) for layer in group]
        packed = packed_of(layout)
        row = weight_row(weight, decision, self._check_layer(weight, packed, layout))
        for layer, item in zip(group, inputs, strict=True):
            rewriter.replace(layer if item is None else centred(layer, item, weight.values_NK), packed)
        return [shared_row(row, layer) for layer in group]

    def _activation_scale(self, group: Sequence[Linear]) -> float:
        """That of all layers of one weight, which share it; 0 where one of them was not calibrated."""
        scales = [self._scales.get(layer.x, 0.0) if in_main_graph(layer) else 0.0 for layer in group]
        return max(scales) if all(scales) else 0.0

    def _decide(self, weight: Weight, scale: float) -> tuple[Decision, PackedLayer]:
        """Choose for a weight that is new, and verify its packed form alone."""
        stored = stored_bytes(weight.layer.weight)
        values = HALF if self._keeps_half(weight) else self._options.values
        stays = None if restorable(weight.layer, values) else weight.stays
        if weight.layer.is_convolution and weight.mask_NK.size and not weight.mask_NK.all():
            decision = self._decide_convolution(weight, stored, stays, values)
        elif (compact := self._compact(weight, stored, values)) is not None:
            decision = compact
        else:
            asked = (weight.values_NK, weight.mask_NK, stored, stays, self._options, self._measure)
            decision = decide(*asked, values, self._aim)
        error = None
        if (layout := decision.layout) is not None:
            try:
                packed = self._packed_weight(weight, weight_title(weight.layer), layout, scale)
            except OpsetError as fault:
                decision = replace(decision, layout=None, packed_bytes=stored, reason=f"left: {fault}")
            else:
                error = self._check_layer(weight, packed, layout)
        return decision, weight_row(weight, decision, error)

    def _compact(self, weight: Weight, stored: int, values: str) -> Decision | None:
        """The weight without its empty rows and columns, where that is measured to be faster; else None."""
        layout = compact_layout(weight.mask_NK) if values == "float32" and self._has_library else None
        if layout is None or weight.element_type != TensorProto.FLOAT:
            return None

        def packed_of(layout: Layout) -> PackedWeight:
            return self._packed_weight(weight, weight_title(weight.layer), layout, 0.0)

        try:
            decision = decide_quantised(weight, None, [layout], packed_of, self._document, stored, self._options)
        except UntimedError:
            return None
        why = f"{layout.description}, and what is left is multiplied densely; {decision.reason}"
        return None if decision.layout is None else replace(decision, reason=why)

    def _decide_convolution(self, weight: Weight, stored: int, stays: str | None, values: str) -> Decision:
        rows, columns = weight.mask_NK.shape
        links = int(np.count_nonzero(weight.mask_NK))
        layout = min(candidates(weight.mask_NK, values), key=lambda layout: layout.packed_bytes(rows, columns, links))
        packed = self._packed_weight(weight, weight_title(weight.layer), layout, 0.0)
        try:
            times, shape = conv_times(
                weight.layer, packed, weight.values_NK, weight.layer.x_shape, self._document.opset
            )
        except UntimedError as fault:
            return Decision(None, stored, f"left: ONNX Runtime cannot run it alone, to time it: {fault}")
        figures = f"{times.dense:.1f} us as Conv, {times.packed:.1f} us packed, measured on an input of {shape}"
        if self._options.objective != "size" and not gains(times):
            return Decision(None, stored, f"left: {figures}", times)
        decision = Decision(layout, layout.packed_bytes(rows, columns, links), f"{layout.name}: {figures}", times)
        return check_gain(decision, stored, stays, self._options)

    def _keeps_half(self, weight: Weight) -> bool:
        """Whether a weight is stored in float16. Older opsets write the type into the function that layers share."""
        exact = self._options.values == "float32" and weight.element_type == TensorProto.FLOAT16
        return exact and self._document.opset >= OLDEST_CAST_LIKE

    def _check_layer(self, weight: Weight, packed: PackedWeight, layout: Layout) -> LayerError:
        tensors = packed.encode()
        decoded_NK, _ = layout.decode(tensors, packed.in_features)
        title, values = layer_title(weight.layer), layout.values.name
        return check_layer(title, packed, tensors, decoded_NK, weight.values_NK, values, self._document.opset)

    def _packed_weight(self, weight: Weight, name: str, layout: Layout, scale: float) -> PackedWeight:
        key = f"{_packed_key(weight, scale)} {layout.name}"
        packed = pack_weight(key, name, layout, weight.values_NK, weight.mask_NK, self._target, scale)
        self._check_conflict(packed.function)
        compact = isinstance(layout, CompactLayout)
        target = None if compact else restorable(weight.layer, layout.values.name)
        return replace(packed, element_type=weight.element_type, restorable=target)

    def _check_conflict(self, function: FunctionProto) -> None:
        for existing in self._document.proto.functions:
            if (existing.domain, existing.name) == (DOMAIN, function.name) and existing != function:
                raise InputError(
                    f"{self._document.path} has a function {DOMAIN}.{function.name} of its own; pack the file that it "
                    "was made from"
                )

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


def _facts(weight: Weight) -> Facts:
    return weight.mask_NK.shape, int(np.count_nonzero(weight.mask_NK))


def _other_type(matrix_NK: NDArray) -> str:
    return (
        f"left: it multiplies in {matrix_NK.dtype}, the packed ops in float32; convert the model to float32 where that "
        f"is precise enough (density {np.count_nonzero(matrix_NK) / max(1, matrix_NK.size):.4f})"
    )


def _packed_key(weight: Weight, scale: float) -> str:
    """What tells packed weights apart."""
    return f"{weight.key} {scale}"


def _other_reader(layer: Linear, linears: Sequence[Linear], readers: Readers) -> str | None:
    """What else than packable layers reads the stored weight, in words."""
    places = {(id(other.body), place) for other in linears for place in other.places}
    source = source_of(layer.weight)
    chain = {(id(part.owner), part.name) for other in linears for part in parts_of(other.weight)}
    pending: list[tuple[Body, str]] = [(part.owner, part.name) for part in parts_of(source)]
    seen = set()
    while pending:
        owner, name = pending.pop()
        if (id(owner), name) in seen:
            continue
        seen.add((id(owner), name))
        for body, place in readers.of(owner, name):
            if place is None:
                return f"the dense weight is an output of the graph ({quoted(name)})"
            if (id(body), place) in places:
                continue
            node = body.nodes[place]
            if not any((id(body), output) in chain for output in node.output):
                return f"{quoted(node_title(node))} ({node.op_type}) also reads the dense weight"
            pending += [(body, output) for output in node.output if output]
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
