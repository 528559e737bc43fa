"""Outputs that a Sigmoid squeezes to 0: what may differ there is its own rounding, and what counts is its input.

A Sigmoid is accurate to the last bits of 1, not of its result. Of a model whose outputs are all near 0, as those of a
detector that sees nothing, rounding is then a large part of the largest output. Such outputs are compared with that
rounding allowed, and the inputs of the Sigmoids are compared as well, where nothing is squeezed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto

from .operators import operator

SIGMOID_ROUNDING = 2.0**-20
"""Absolute: 16 times the rounding of a float32 just below 1."""
_SQUEEZING = {"Sigmoid", "HardSigmoid"}
_MOVING = {
    *("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Slice", "Split", "Gather"),
    *("Cast", "Expand", "Pad"),
}
"""Operators whose numbers are those of their inputs."""
_PROBED = "probed.onnx"


def squeezed_values(graph: GraphProto) -> list[list[str]]:
    """Of each output of a graph, the inputs of the Sigmoids that it is made of by moving numbers alone."""
    writers = {name: node for node in graph.node for name in node.output if name}
    return [_sources(output.name, writers) for output in graph.output]


def _sources(name: str, writers: dict[str, NodeProto]) -> list[str]:
    found, pending, seen = [], [name], set()
    while pending:
        node = writers.get(pending.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        domain, kind = operator(node)
        if domain == "" and kind in _SQUEEZING:
            found.append(node.input[0])
        elif domain == "" and kind in _MOVING:
            pending += node.input if kind == "Concat" else node.input[:1]
    return found


def added_names(graph: GraphProto, squeezed: list[list[str]]) -> list[str]:
    """Those values, each once, that are no outputs already."""
    present = {output.name for output in graph.output}
    return [name for name in dict.fromkeys(name for found in squeezed for name in found) if name not in present]


@contextmanager
def probed(path: Path, names: list[str]) -> Iterator[Path]:
    """A copy beside a model that has those values as its last outputs; it is removed at the end."""
    model = onnx.load(path, load_external_data=False)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    copy = path.with_name(_PROBED)
    try:
        onnx.save(model, copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)
