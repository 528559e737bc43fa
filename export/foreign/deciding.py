"""What becomes of each weight of a document: read, chosen for, verified alone, and handed to the rewriter.

Legend: N out_features, K in_features.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, TensorProto, helper

from ...artifacts import InputError
from ...artifacts.page import local_density
from ..layouts import DOMAIN, Aim, Layout
from ..layouts.values import INT8_LARGEST
from .autotune import UntimedError
from .bodies import Body, Readers, node_title
from .calibration import in_main_graph
from .choosing import HALF, Decision, Measure, candidates, check_gain, decide, digest, split_zeros
from .compact_layout import CompactLayout, compact_layout
from .conv_choice import conv_times, gains
from .document import Document
from .expansions import Context, Expansion, Trial, expansion_of
from .expansions.expansion import Matrix
from .files import quoted
from .layer_check import LayerError, check_layer
from .left_weights import Facts, left_facts
from .linears import Left, Linear, layer_title, weight_title
from .opsets import OLDEST_CAST_LIKE, OpsetError
from .options import PackOptions
from .packed_weight import PackedWeight, Target, pack_weight
from .quantised import centred, dequantisation, kept_values, quantised_input
from .quantised_choice import decide_quantised
from .report import PackedLayer
from .restoring import restorable
from .rewriting import Rewriter
from .rows import Weight, expansion_row, left_row, shared_row, weight_row, weight_rows
from .tensors import float32_values
from .weights import parts_of, source_of, stored_bytes

_SLOWER_BY_CONVOLUTIONS = "with its convolutions packed, the whole model was no faster than the original"


class Decider:
    """Decides for the layers of one document.

    Args:
        document, options: of the run.
        target: what the functions must fit.
        measure: times candidates; None asks the cost model, for `aim`.
        scales: of calibrated activations, by name.
        has_library: whether the op library is there, to time layers with.
        convolutions: whether those of one point may be packed.
        progress: told each weight as it comes.
        runs: whether the model runs here, which is asked before operators that are written out run alone.

    `pictures` holds the local densities of the weights that were read, by name.
    """

    def __init__(
        self,
        document: Document,
        options: PackOptions,
        target: Target,
        measure: Measure | None,
        aim: Aim,
        scales: dict[str, float],
        *,
        has_library: bool,
        convolutions: bool,
        progress: Callable[[str], None],
        runs: Callable[[], bool],
    ) -> None:
        self._document, self._options, self._target = document, options, target
        self._measure, self._aim, self._scales = measure, aim, scales
        self._has_library, self._convolutions, self._progress = has_library, convolutions, progress
        self._runs = runs
        self._trial = Trial(document, options, aim.model_bytes or 0, self._packed_matrix)
        self._decided: dict[str, tuple[Decision, PackedLayer]] = {}
        self.pictures: dict[str, NDArray[np.float64]] = {}

    def rows(self, layers: Sequence[Linear | Left], context: Context, rewriter: Rewriter) -> list[PackedLayer]:
        """The report's lines, in order. Layers of one weight are handled together, so that it is read once."""
        rows: dict[int, PackedLayer] = {}
        groups: dict[tuple[int, str, bool], list[int]] = {}
        lefts = [(index, layer) for index, layer in enumerate(layers) if isinstance(layer, Left)]
        rows |= self._lefts(lefts, context, rewriter)
        for index, layer in enumerate(layers):
            if isinstance(layer, Linear):
                key = (id(layer.weight.owner), layer.weight.name, layer.transposed)
                groups.setdefault(key, []).append(index)
        linears = [layer for layer in layers if isinstance(layer, Linear)]
        for indices in groups.values():
            group = [layer for index in indices if isinstance(layer := layers[index], Linear)]
            self._progress(f"packing {weight_title(group[0])}")
            stays = _other_reader(group[0], linears, context.readers)
            rows |= dict(zip(indices, self._group(group, stays, rewriter), strict=True))
        return [rows[index] for index in range(len(layers))]

    def _lefts(self, layers: list[tuple[int, Left]], context: Context, rewriter: Rewriter) -> dict[int, PackedLayer]:
        """The lines of weights that are no linear layer's: some are packed within their operator, written out."""
        rows: dict[int, PackedLayer] = {}
        operators: dict[tuple[int, int], list[tuple[int, Left]]] = {}
        for index, layer in layers:
            operators.setdefault((id(layer.body), layer.place), []).append((index, layer))
        found = {key: expansion_of(group[0][1].body, key[1], context) for key, group in operators.items()}
        expansions = [item for item in found.values() if isinstance(item, Expansion)]
        for key, group in operators.items():
            expansion = found[key]
            reason = expansion if isinstance(expansion, str) else ""
            if isinstance(expansion, Expansion) and expansion.node.op_type == "Conv" and not self._convolutions:
                reason = _SLOWER_BY_CONVOLUTIONS
            elif isinstance(expansion, Expansion) and self._has_library:
                self._progress(f"packing {weight_title(group[0][1])}")
                reason, first = self._expand(expansion, _other_reader(expansion, expansions, context.readers), rewriter)
                if first is not None:
                    lines = weight_rows(first, [(layer, left_facts(layer, self._document)) for _, layer in group])
                    rows |= {index: line for (index, _), line in zip(group, lines, strict=True)}
            for index, layer in group:
                if index not in rows:
                    facts = left_facts(layer, self._document)
                    rows[index] = left_row(layer, f"left: {reason or layer.reason}", facts)
        return rows

    def _expand(self, expansion: Expansion, stays: str | None, rewriter: Rewriter) -> tuple[str, PackedLayer | None]:
        """Decide for an operator that can be written out: why it is left, or the line of one that was tried."""
        if not self._runs():
            return "the model does not run here on made-up inputs, so that none of its operators is timed", None
        try:
            outcome = self._trial.decide(expansion, stays)
        except (ValueError, TypeError, IndexError, OverflowError, OpsetError) as fault:
            return str(fault), None
        except UntimedError as fault:
            return f"ONNX Runtime cannot run it alone, to time it: {fault}", None
        if (written := outcome.written) is not None:
            needless = [part for constant in expansion.others for part in parts_of(constant)]
            rewriter.expand(expansion.body, expansion.places, needless, written.packed, written.form.write)
        return "", expansion_row(expansion, outcome)

    def _packed_matrix(
        self, expansion: Expansion, matrix: Matrix, mask_NK: NDArray[np.bool_], layout: Layout
    ) -> PackedWeight:
        """A weight of an operator that is written out."""
        scale, root = matrix.activation_scale, expansion.body.root.title
        key = f"{digest(matrix.values_NK)} {root} {scale} {layout.name} {matrix.values is None}"
        name = weight_title(Left(expansion.body, expansion.places[0], expansion.weight, ""))
        packed = pack_weight(key, name, layout, matrix.values_NK, mask_NK, self._target, scale)
        self._check_conflict(packed.function)
        return packed

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
            return _SLOWER_BY_CONVOLUTIONS
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


def _other_reader(layer: Linear | Expansion, linears: Sequence[Linear | Expansion], readers: Readers) -> str | None:
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
