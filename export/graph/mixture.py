"""A mixture of experts as ONNX nodes: each token goes through the experts that the router chose for it, and no others.

Legend: T tokens, k experts of a token, X experts, E hidden size, n tokens of one expert.

Everything is of standard ops, so that any ONNX Runtime has it; an expert that no token has chosen multiplies no rows.
"""

from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto, helper

from ...architectures import Experts
from .builder import GraphBuilder


def add_mixture(
    builder: GraphBuilder,
    path: str,
    experts: Experts,
    router: str,
    x: str,
    blocks: Mapping[str, Callable[[str], str]],
) -> str:
    """What the experts of a layer make of `x` [T, E], weighted and summed: [T, E].

    Args:
        builder: of the graph. path: of the layer, for names. experts: how many, and how they are chosen. router: the
        initializer [X, E] that scores them. x: the value. blocks: by the path of an expert, what writes its nodes over
        some rows, and names their output.
    """
    weights, indices = _chosen(builder, path, experts, router, x)
    first, column = (
        builder.initializer("mixture.first", np.array(0)),
        builder.initializer("mixture.axis", np.array([1])),
    )
    rows, tokens = [], []
    for index, (block, write) in enumerate(blocks.items()):
        number = builder.initializer(f"mixture.expert_{index}", np.array(index))
        hit = builder.node("Equal", [indices, number], f"{block}.hit")
        places = builder.node("NonZero", [hit], f"{block}.places")
        token = builder.node("Gather", [places, first], f"{block}.tokens", axis=0)
        made = write(builder.node("Gather", [x, token], f"{block}.rows", axis=0))
        pairs = builder.node("Transpose", [places], f"{block}.pairs", perm=[1, 0])
        weight = builder.node("GatherND", [weights, pairs], f"{block}.weight")
        weight_n1 = builder.node("Unsqueeze", [weight, column], f"{block}.column")
        rows.append(builder.node("Mul", [made, weight_n1], f"{block}.weighted"))
        tokens.append(token)
    # One sum over all experts, in their order: adding up expert by expert would copy all tokens for each.
    together = builder.node("Concat", rows, f"{path}.experts.rows", axis=0)
    order = builder.node("Concat", tokens, f"{path}.experts.tokens", axis=0)
    places = builder.node("Unsqueeze", [order, column], f"{path}.experts.places")
    zeros = builder.node(
        "ConstantOfShape",
        [builder.node("Shape", [x], f"{path}.experts.shape")],
        f"{path}.experts.zeros",
        value=helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0]),
    )
    return builder.node("ScatterND", [zeros, places, together], f"{path}.experts.sum", reduction="add")


def _chosen(builder: GraphBuilder, path: str, experts: Experts, router: str, x: str) -> tuple[str, str]:
    """The weights [T, k] and indices [T, k] of each token's experts."""
    scores = builder.node("Gemm", [x, router], f"{path}.router.scores", transB=1)
    probabilities = builder.node("Softmax", [scores], f"{path}.router.probabilities", axis=-1)
    count = builder.initializer("mixture.chosen", np.array([experts.chosen]))
    weights, indices = f"{path}.router.weights", f"{path}.router.indices"
    builder.node("TopK", [probabilities, count], [weights, indices], axis=-1)
    if not experts.normed:
        return weights, indices
    last = builder.initializer("mixture.last", np.array([-1]))
    total = builder.node("ReduceSum", [weights, last], f"{path}.router.total", keepdims=1)
    return builder.node("Div", [weights, total], f"{path}.router.normed"), indices
