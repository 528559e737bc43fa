"""Whether the packed nodes of a file hold a model's weights bit for bit.

Legend: N out_features, K in_features of a linear layer.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ...artifacts import CheckError
from ...kernels.gpu.plugins import plugin_name
from ...kernels.gpu.unpacking import unpack_words
from .packed import DOMAIN, linked_weight
from .typed_graph import Precision


def check_packed(
    graph: Path,
    weights: Mapping[str, NDArray],
    masks: Mapping[str, NDArray[np.bool_]],
    forms: Mapping[str, str],
    precision: Precision,
) -> None:
    """Decode every packed node of a file and compare it with the layer it stands for.

    Args:
        graph: a file with a packed node for each layer of `forms`. weights: float32 [N, K] by layer, or a mapping that
        makes them. masks: bool [N, K] by layer. forms: the form of each packed layer. precision: of the file.

    Raises:
        CheckError: a node is missing, or its weight differs in any bit from the layer's, rounded to the precision.
    """
    model = onnx.load(graph)
    nodes = {node.name: node for node in model.graph.node if node.domain == DOMAIN}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, form in forms.items():
        node = nodes.get(name)
        if node is None or node.op_type != plugin_name(form):
            raise CheckError(f"{graph}: layer '{name}' is not a {plugin_name(form)} node; nothing was published")
        expected_NK = linked_weight(weights[name], masks[name], precision)
        if _decoded(node, form, tensors).tobytes() != expected_NK.tobytes():
            raise CheckError(f"{graph}: node '{name}' does not decode to the layer's weight; nothing was published")


def _decoded(node: onnx.NodeProto, form: str, initializers: Mapping[str, onnx.TensorProto]) -> NDArray:
    """The weight [N, K] of a packed node; its tensors are named <layer>.<part>."""
    parts = {name[len(node.name) + 1 :]: numpy_helper.to_array(initializers[name]) for name in node.input[1:]}
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    return unpack_words(form, sizes["out_features"], sizes["in_features"], parts)
