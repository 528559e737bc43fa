"""Packed ops in files of every opset: bodies written for the newest opset say the same in older ones."""

import functools

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from pack_models import check_packed, dense, make_model, node, op_types, sparse, value

from hebbline.export.foreign.layer_check import ERROR_BOUNDS, layer_model, open_session
from hebbline.export.foreign.opsets import OpsetError, function_for_opset
from hebbline.export.foreign.packed_weight import Target, pack_weight
from hebbline.export.layouts import LAYOUTS, OPSET

OPSETS = range(13, 25)
K, N = 80, 48


def block_mask(density):
    blocks = np.random.default_rng(3).random((N // 16, K // 16)) < density
    return np.kron(blocks, np.ones((16, 16), bool))


def layer(structure, density):
    mask = block_mask(density) if structure == "block" else np.random.default_rng(1).random((N, K)) < density
    mask[32:] = False  # empty rows at the end
    return np.where(mask, dense(N, K), 0).astype(np.float32), mask


def packed_model(layout, density, opset):
    weight, mask = layer(layout.name.partition("-")[0], density)
    packed = pack_weight("", "", layout, weight, mask, Target(opset))
    return layer_model(packed, packed.encode(), N, opset), weight


@functools.cache
def newest(name, density):
    """What a layout computes at the opset that it is written for, held to the dense product."""
    model, weight = packed_model(LAYOUTS[name], density, OPSET)
    y = open_session(model).run(None, {"X": dense(3, K)})[0]
    scale = np.abs(dense(3, K) @ weight.T).max() or 1.0
    assert np.abs(y - dense(3, K) @ weight.T).max() <= ERROR_BOUNDS[LAYOUTS[name].values.name] * scale
    return y, scale


@pytest.mark.parametrize("opset", OPSETS)
def test_every_layout_in_every_opset(opset):
    """Valid for the checker; the same numbers in ONNX Runtime and in the reference evaluator as at the newest opset."""
    for name, layout in LAYOUTS.items():
        for density in (0, 0.3) if opset == OPSETS[0] else (0.3,):
            model, _ = packed_model(layout, density, opset)
            onnx.checker.check_model(model, full_check=True)
            expected, scale = newest(name, density)
            close = {"rtol": 0, "atol": 1e-5 * scale, "err_msg": f"{name} at density {density}"}
            np.testing.assert_allclose(open_session(model).run(None, {"X": dense(3, K)})[0], expected, **close)
            if opset in (13, 15, 17, 20):  # the evaluator is slow, and between these no rule changes
                actual = ReferenceEvaluator(model).run(None, {"X": dense(3, K)})[0]
                np.testing.assert_allclose(actual, expected, **close)


@pytest.mark.parametrize("opset", OPSETS)
def test_a_file_of_every_opset(opset, tmp_path):
    nodes = [
        node("MatMul", ["X", "A"], ["a"]),
        node("Add", ["a", "C"], ["c"]),
        node("Gemm", ["c", "B"], ["Y"], transB=1),
    ]
    # A link for each of the first layer's channels: one without any would leave the graph.
    few = np.zeros((K, N), np.float32)
    few[np.arange(N) % K, np.arange(N)] = 1
    constants = {"A": sparse(K, N), "B": few, "C": dense(N)}
    model = make_model(nodes, [value("X", "n", K)], [value("Y", "n", K)], constants, opset)
    _, packed = check_packed(model, tmp_path, {"X": dense(3, K)})
    assert op_types(packed) == ["BitmaskLinear", "CsrLinear"]
    assert {entry.domain: entry.version for entry in packed.opset_import} == {"": opset, "ai.hebbline": 1}
    for function in packed.functions:
        assert [(entry.domain, entry.version) for entry in function.opset_import] == [("", opset)]


RULES = {
    "BitwiseAnd": ([node("BitwiseAnd", ["x", "seven"], ["y"])], np.uint8),
    "BitwiseAnd, swapped": ([node("BitwiseAnd", ["seven", "x"], ["y"])], np.uint8),
    "BitwiseXor": ([node("BitwiseXor", ["x", "eight"], ["y"])], np.uint8),
    "Shape": ([node("Shape", ["x"], ["y"], start=0, end=1)], np.uint8),
    "Shape from the end": ([node("Shape", ["x"], ["y"], start=-1)], np.uint8),
    "ReduceMax": ([node("ReduceMax", ["x", "last"], ["y"], keepdims=1)], np.float32),
    "ScatterElements": ([node("ScatterElements", ["marks", "places", "ones"], ["y"], reduction="add")], np.uint8),
}


def constant(name, array):
    return node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))


@pytest.mark.parametrize(("nodes", "kind"), RULES.values(), ids=list(RULES))
def test_a_rule_is_an_identity(nodes, kind):
    constants = [
        constant("seven", np.array([7], np.uint8)),
        constant("eight", np.array(8, np.uint8)),
        constant("last", np.array([-1])),
        constant("marks", np.arange(6)),
        constant("places", np.array([0, 2, 2, 2, 5])),
        constant("ones", np.ones(5, np.int64)),
    ]
    opsets = [helper.make_opsetid("", OPSET)]
    function = helper.make_function("f", "F", ["x"], ["y"], [*constants, *nodes], opsets)
    x = np.arange(256).astype(kind).reshape(8, 32)
    results = []
    for opset in (13, OPSET):
        lowered = function_for_opset(function, opset, {})
        assert (nodes[0] in lowered.node) == (opset == OPSET)
        input_type = helper.np_dtype_to_tensor_dtype(x.dtype)
        graph = helper.make_graph(
            [node("F", ["X"], ["Y"], domain="f"), node("Cast", ["Y"], ["Z"], to=TensorProto.INT64)],
            "g",
            [helper.make_tensor_value_info("X", input_type, [8, 32])],
            [helper.make_tensor_value_info("Z", TensorProto.INT64, None)],
        )
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("f", 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=9, functions=[lowered])
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        results.append(session.run(None, {"X": x})[0])
    np.testing.assert_array_equal(*results)


def test_what_no_rule_covers_is_said():
    opsets = [helper.make_opsetid("", OPSET)]
    function = helper.make_function("f", "F", ["x"], ["y"], [node("Gelu", ["x"], ["y"])], opsets)
    with pytest.raises(OpsetError, match="F needs Gelu, which opset 19 does not have"):
        function_for_opset(function, 19, {})
    nodes = [node("BitwiseAnd", ["x", "x"], ["y"])]
    with pytest.raises(OpsetError, match="F needs BitwiseAnd"):
        function_for_opset(helper.make_function("f", "F", ["x"], ["y"], nodes, opsets), 17, {})
    shifted = helper.make_function("f", "F", ["x"], ["y"], [node("Shape", ["x"], ["y"], start=1)], opsets)
    assert [item.op_type for item in function_for_opset(shifted, 14, {}).node][-1] == "Slice"
