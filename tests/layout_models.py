"""Models of one packed op, and how its value type rounds X."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hebbline.export.layouts import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET, VALUE_TYPES


def make_model(layout, tensors, in_features, bias=None, function=True):
    """A model of one op over X [..., K], with the function that decodes it or without."""
    initializers = [numpy_helper.from_array(tensors[name], name) for name in layout.tensor_names]
    if bias is not None:
        initializers.append(numpy_helper.from_array(bias, "bias"))
    inputs = ["X", *layout.tensor_names, "bias" if bias is not None else ""]
    node = helper.make_node(layout.op_type, inputs, ["Y"], name="linear", domain=DOMAIN, in_features=in_features)
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["B", "S", in_features])
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["B", "S", "N"])
    graph = helper.make_graph([node], "linear", [x], [y], initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    functions = [layout.function()] if function else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, functions=functions)


def checked_model(layout, tensors, in_features, bias):
    """The model with its function, after the ONNX checker has seen it."""
    model = make_model(layout, tensors, in_features, bias)
    onnx.checker.check_model(model)
    return model


def rounded(x, values):
    """X as the value type rounds it."""
    if values == "float32":
        return x
    if values == "bfloat16":
        return VALUE_TYPES["bfloat16"].encode(x, None)["values"].astype(np.float64)
    largest = np.abs(x).max(axis=-1, keepdims=True)
    return np.rint(x * (np.float32(127) / largest)).astype(np.float64) * (largest / np.float32(127))
