"""Opening an ONNX file that nobody vouches for, and refusing what is unsound before anything is built on it.

Refused, with one line that names the file and the tensor, node or function: what protobuf cannot parse; text that is
none; tensors whose dimensions, type and data disagree; external data outside the model's directory or behind links;
nodes that read what no earlier node wrote (cycles); values written twice; functions that call themselves, nest too
deep, or would expand without bound; opsets that are too old.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message
from onnx import GraphProto, ModelProto, NodeProto

from ...artifacts import InputError
from .bodies import Body, FunctionKey, all_bodies, function_key, node_title, subgraphs
from .files import DataDirectory, quoted, read_model_bytes
from .sparse_tensors import check_sparse, sparse_tensors_of_nodes
from .tensors import check_tensor, tensors_of_nodes

OLDEST_CONVERTED_OPSET = 7
"""What ONNX Runtime still runs; `conversion` brings it to the oldest opset that packed ops can be written for."""
OLDEST_IR = 3
MAX_CALL_DEPTH = 64
MAX_EXPANDED_NODES = 500_000
"""Nodes that the calls of functions may add up to: each level can double them."""


@dataclass(frozen=True)
class Document:
    """A sound model: the file's path, its content, and its directory for external data."""

    path: Path
    proto: ModelProto
    files: DataDirectory

    @property
    def opset(self) -> int:
        """Version of the standard operators that the model imports."""
        return standard_opset(self.proto)


@contextmanager
def open_document(path: Path) -> Iterator[Document]:
    """Read and check a model; its data files stay open within the block.

    Raises:
        InputError: the file cannot be read, is not ONNX, or is unsound; see the module's docstring.
    """
    content = read_model_bytes(path)
    try:
        proto = ModelProto.FromString(content)
    except DecodeError as error:
        raise InputError(f"{path} is not an ONNX model: protobuf cannot parse it") from error
    del content
    _check_text(path, proto)
    _check_header(path, proto)
    with DataDirectory(path) as files:
        bodies = all_bodies(proto)
        for body in bodies:
            _check_tensors(path, body, files)
        _check_calls(path, proto, bodies)
        _check_order(path, proto)
        yield Document(path, proto, files)


def _check_text(path: Path, message: Message) -> None:
    """Every string must be text: protobuf hands out strings that are not UTF-8 as bytes, in place of a str."""
    pending: list[Message] = [message]
    while pending:
        for descriptor, content in pending.pop().ListFields():
            if descriptor.type not in (descriptor.TYPE_MESSAGE, descriptor.TYPE_STRING):
                continue
            items: Any = [content] if isinstance(content, str | bytes | Message) else content
            if descriptor.type == descriptor.TYPE_MESSAGE:
                pending.extend(items)
            elif not all(isinstance(item, str) for item in items):
                raise InputError(f"{path} is damaged: its field '{descriptor.full_name}' is not UTF-8 text")


def standard_opset(proto: ModelProto) -> int:
    """The version of the standard domain that a model imports; 0 where it imports none."""
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _check_header(path: Path, proto: ModelProto) -> None:
    if not proto.HasField("graph") or not proto.graph.node:
        raise InputError(f"{path} is not an ONNX model: it has no graph, or one without nodes")
    if proto.ir_version < OLDEST_IR:
        raise InputError(f"{path}: IR version {proto.ir_version} is older than {OLDEST_IR}; export the model again")
    if standard_opset(proto) < OLDEST_CONVERTED_OPSET:
        raise InputError(
            f"{path}: opset {standard_opset(proto)} is older than {OLDEST_CONVERTED_OPSET}, which ONNX Runtime cannot "
            "run; export the model again"
        )
    if proto.training_info:
        raise InputError(f"{path} holds a training graph; export the model for inference")


def _check_tensors(path: Path, body: Body, files: DataDirectory) -> None:
    for tensor in tensors_of_nodes(body.nodes):
        check_tensor(tensor, path, files)
    for title, sparse in sparse_tensors_of_nodes(body.nodes):
        check_sparse(sparse, title, path, files)
    if not isinstance(body.proto, GraphProto):
        return
    names = [tensor.name for tensor in body.proto.initializer]
    names += [sparse.values.name for sparse in body.proto.sparse_initializer]
    if "" in names or len(set(names)) != len(names):
        raise InputError(f"{path}: two initializers of {quoted(body.proto.name)} have the same name, or one has none")
    for tensor in body.proto.initializer:
        check_tensor(tensor, path, files)
    for sparse in body.proto.sparse_initializer:
        check_sparse(sparse, sparse.values.name, path, files)


def _check_calls(path: Path, proto: ModelProto, bodies: Iterable[Body]) -> None:
    """Functions must form no cycle and must not expand without bound."""
    calls: dict[FunctionKey, list[FunctionKey]] = {function_key(function): [] for function in proto.functions}
    if len(calls) != len(proto.functions):
        raise InputError(f"{path}: two model-local functions have the same name")
    sizes: dict[FunctionKey | None, int] = {}
    main: list[FunctionKey] = []
    for body in bodies:
        root = body.root.proto
        key = None if isinstance(root, GraphProto) else function_key(root)
        sizes[key] = sizes.get(key, 0) + len(body.nodes)
        called = [function_key(node) for node in body.nodes if function_key(node) in calls]
        (main if key is None else calls[key]).extend(called)
    expanded: dict[FunctionKey, tuple[int, int]] = {}
    for key in calls:
        _expand(path, key, calls, sizes, expanded, ())
    total = sizes[None] + sum(expanded[key][0] for key in main)
    if total > MAX_EXPANDED_NODES:
        raise InputError(f"{path}: its functions expand to {total} nodes, more than {MAX_EXPANDED_NODES}")


def _expand(
    path: Path,
    key: FunctionKey,
    calls: dict[FunctionKey, list[FunctionKey]],
    sizes: dict[FunctionKey | None, int],
    expanded: dict[FunctionKey, tuple[int, int]],
    trail: tuple[FunctionKey, ...],
) -> tuple[int, int]:
    """Nodes that one call of a function adds up to, and the levels of calls in it."""
    if key in expanded:
        return expanded[key]
    if key in trail:
        raise InputError(f"{path}: function {quoted(key[1])} of domain {quoted(key[0])} calls itself")
    inner = []
    if len(trail) < MAX_CALL_DEPTH:
        inner = [_expand(path, called, calls, sizes, expanded, (*trail, key)) for called in calls[key]]
    depth = 1 + max((levels for _, levels in inner), default=0)
    if depth > MAX_CALL_DEPTH or len(trail) >= MAX_CALL_DEPTH:
        raise InputError(f"{path}: calls of functions nest deeper than {MAX_CALL_DEPTH}")
    expanded[key] = (sizes.get(key, 0) + sum(nodes for nodes, _ in inner), depth)
    return expanded[key]


def _check_order(path: Path, proto: ModelProto) -> None:
    _check_graph_order(path, proto.graph, [])
    for function in proto.functions:
        _check_nodes(path, function.node, [set(function.input)], function.output)


def _check_graph_order(path: Path, graph: GraphProto, outer: list[set[str]]) -> None:
    defined = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    defined |= {tensor.values.name for tensor in graph.sparse_initializer}
    _check_nodes(path, graph.node, [*outer, defined], [value.name for value in graph.output])


def _check_nodes(path: Path, nodes: Iterable[NodeProto], scopes: list[set[str]], outputs: Iterable[str]) -> None:
    """Each node reads what was written before it, and writes what nobody wrote."""
    for node in nodes:
        where = f"{path}: node {quoted(node_title(node))}"
        for name in node.input:
            if name and not any(name in scope for scope in scopes):
                raise InputError(
                    f"{where} reads {quoted(name)}, which nothing before it writes: the graph has a cycle, a missing "
                    "value, or nodes out of order"
                )
        for _, graph in subgraphs(node):
            _check_graph_order(path, graph, scopes)
        for name in filter(None, node.output):
            if name in scopes[-1]:
                raise InputError(f"{where} writes {quoted(name)}, which is written already")
            scopes[-1].add(name)
    for name in outputs:
        if not any(name in scope for scope in scopes):
            raise InputError(f"{path}: nothing writes the output {quoted(name)}")
