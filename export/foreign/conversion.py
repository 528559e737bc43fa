"""Files of old versions, brought to the oldest that packed ops can be written for.

Before IR version 4 every weight had to be an input of the graph as well; there that says nothing, and it is taken out
of the inputs. Opsets 7 to 12 go through ONNX's own converter, in a process of its own. It sees large weights as inputs:
it does not need their values, and copies what it sees.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from ...artifacts import InputError
from .bodies import all_bodies
from .document import Document
from .isolation import run_isolated
from .tensors import byte_count

OLDEST_OPSET = 13
_OLDEST_IR = 4
_SMALL_BYTES = 4096
"""Shapes, axes and pads, which the converter moves from inputs to attributes and back, are smaller."""
_RUNNER = Path(__file__).with_name("conversion_run.py")


def modernised(document: Document, scratch: Path) -> tuple[Document, list[str]]:
    """The document with IR version 4 and opset 13 at least, and notes on what was changed.

    Args:
        document: of any version that `open_document` takes; it is not changed.
        scratch: a directory for what the converter reads and writes.

    Raises:
        InputError: the converter cannot convert the model; the message gives its reason.
    """
    notes = []
    if document.proto.ir_version < _OLDEST_IR:
        document, note = _without_weight_inputs(document)
        notes.append(note)
    if document.opset < OLDEST_OPSET:
        notes.append(f"converted from opset {document.opset} to {OLDEST_OPSET} by onnx.version_converter")
        document = _converted(document, scratch)
    return document, notes


def _without_weight_inputs(document: Document) -> tuple[Document, str]:
    proto = ModelProto()
    proto.CopyFrom(document.proto)
    version, before = proto.ir_version, len(proto.graph.input)
    for body in all_bodies(proto):
        kept = [value for value in getattr(body.proto, "input", ()) if _is_real_input(value, body.initializers)]
        if len(kept) != len(body.proto.input):
            del body.proto.input[:]
            body.proto.input.extend(kept)
    proto.ir_version = _OLDEST_IR
    gone = before - len(proto.graph.input)
    note = f"IR version {version} lists every weight as an input: {gone} weights are no inputs any more"
    return replace(document, proto=proto), note


def _is_real_input(value: ValueInfoProto | str, initializers: dict[str, TensorProto]) -> bool:
    return getattr(value, "name", value) not in initializers


def _converted(document: Document, scratch: Path) -> Document:
    reduced, hidden = _without_large_weights(document.proto)
    source, out = scratch / "to_convert.onnx", scratch / "converted.onnx"
    source.write_bytes(reduced.SerializeToString())
    try:
        done = run_isolated(_RUNNER, str(source), str(OLDEST_OPSET), str(out))
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{document.path}: the conversion of its opset does not end") from error
    if done.returncode != 0:
        fault = done.stderr.strip().splitlines()[-1][:300] if done.returncode > 0 and done.stderr.strip() else "it died"
        raise InputError(
            f"{document.path}: opset {document.opset} is older than {OLDEST_OPSET}, and onnx.version_converter cannot "
            f"convert it: {fault}; export the model again with a newer opset"
        )
    proto = _with_graph(document.proto, ModelProto.FromString(out.read_bytes()), hidden)
    return replace(document, proto=proto)


def _without_large_weights(proto: ModelProto) -> tuple[ModelProto, list[TensorProto]]:
    """The model whose large or external initializers are inputs, and these initializers."""
    reduced = ModelProto()
    reduced.CopyFrom(proto)
    hidden = [tensor for tensor in proto.graph.initializer if _is_large(tensor)]
    names, inputs = {tensor.name for tensor in hidden}, {value.name for value in proto.graph.input}
    kept = [tensor for tensor in reduced.graph.initializer if tensor.name not in names]
    del reduced.graph.initializer[:]
    reduced.graph.initializer.extend(kept)
    reduced.graph.input.extend(_as_inputs(hidden, inputs))
    for sparse in reduced.graph.sparse_initializer:
        shape = list(sparse.dims)
        kind = sparse.values.data_type
        reduced.graph.input.append(helper.make_tensor_value_info(sparse.values.name, kind, shape))
    del reduced.graph.sparse_initializer[:]
    return reduced, hidden


def _is_large(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL or byte_count(tensor) > _SMALL_BYTES


def _as_inputs(tensors: list[TensorProto], known: set[str]) -> Iterator[ValueInfoProto]:
    for tensor in tensors:
        if tensor.name not in known:
            yield helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def _with_graph(original: ModelProto, converted: ModelProto, hidden: list[TensorProto]) -> ModelProto:
    """The original with the converted nodes and small initializers; all else stays as it was."""
    proto = ModelProto()
    proto.CopyFrom(original)
    graph = proto.graph
    for parts in (graph.node, graph.initializer, graph.value_info):
        del parts[:]
    described = {value.name for value in original.graph.value_info}
    graph.node.extend(converted.graph.node)
    graph.initializer.extend([*hidden, *converted.graph.initializer])
    # The converter describes every value, which makes the file larger.
    graph.value_info.extend(value for value in converted.graph.value_info if value.name in described)
    proto.ir_version = max(original.ir_version, converted.ir_version)
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OLDEST_OPSET
    return proto
