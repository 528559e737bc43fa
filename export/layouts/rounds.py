"""Rounds of folding: how a body tells ONNX Runtime to free what it has computed before it computes more.

ONNX Runtime folds constants in rounds. In one round it computes, for all layers of a model, every node whose inputs are
constant, and frees none of their tensors before the end. Without more, all of the decoding falls into the first round.

`round2`, `round3` and so on are all the int64 tensor [1] of value 1; what distinguishes them is when ONNX Runtime comes
to know it. It is made of the shape of what an If chooses by a constant condition, whose other choice has another shape.
So it is unknown until the If has been replaced and shapes are inferred again, which is between two rounds. What is
chosen is the length of an empty sequence: ONNX Runtime folds no sequences, and sees that those of all layers are one,
so that nodes of one weight can still become one node. Once the shape is known nothing reads it, and it goes. The
condition of the next If depends on this round's tensor.

A runtime that knows nothing of this computes the same, in whichever order.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def rounds(last: int) -> list[onnx.NodeProto]:
    """Nodes that give `round2` to `round<last>`: int64 [1], whose value is 1, each known one round after the other.

    They read `second`, the int64 [1] constant 1.
    """
    node = helper.make_node
    nodes = [node("Cast", ["second"], ["round2_begins"], to=TensorProto.BOOL)]
    for number in range(2, last + 1):
        name = f"round{number}"
        nodes += [
            _awaited(name),
            node("Shape", [f"{name}_awaited"], [f"{name}_no_sizes"]),
            node("Concat", [f"{name}_no_sizes", "second"], [name], axis=0),
            node("Cast", [name], [f"round{number + 1}_begins"], to=TensorProto.BOOL),
        ]
    return nodes[:-1]


def _awaited(name: str) -> onnx.NodeProto:
    """An If that gives an int64 scalar; by its branches it could be of shape [1] too."""
    sequence, taken, other = f"{name}_sequence", f"{name}_taken", f"{name}_other"
    nodes = [
        helper.make_node("SequenceEmpty", [], [sequence]),
        helper.make_node("SequenceLength", [sequence], [taken]),
    ]
    never = helper.make_node("Constant", [], [other], value=numpy_helper.from_array(np.zeros(1, np.int64)))
    return helper.make_node(
        "If",
        [f"{name}_begins"],
        [f"{name}_awaited"],
        then_branch=helper.make_graph(nodes, taken, [], [_int64_value(taken, [])]),
        else_branch=helper.make_graph([never], other, [], [_int64_value(other, [1])]),
    )


def _int64_value(name: str, shape: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)
