"""Files of old versions, and in other types than float32."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from pack_models import (
    FLOAT,
    K,
    N,
    check_packed,
    dense,
    exact_session,
    hostile_directory,
    make_model,
    node,
    op_types,
    refused,
    save,
    sessions,
    sparse,
    value,
)

from hebbline.export import pack

HALF = TensorProto.FLOAT16
WIDE = 64


def packed_of(model, tmp_path):
    report = pack(save(model, tmp_path), tmp_path / "packed")
    path = tmp_path / "packed/model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    return report, onnx.load(path), path


def assert_same(model_path, packed_path, feeds, tolerance):
    expected = exact_session(model_path).run(None, feeds)[0]
    for name, run in sessions(packed_path, False):
        actual = run(None, feeds)[0]
        assert actual.shape == expected.shape and actual.dtype == expected.dtype, name
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=name)


def old_nodes(opset):
    """Operators whose attributes became inputs, and others that changed, around a product."""
    return [
        node("Squeeze", ["X"], ["s"], axes=[1]),
        node("Pad", ["s"], ["q"], pads=[0, 1, 0, 1]) if opset < 11 else node("Identity", ["s"], ["q"]),
        node("Slice", ["q"], ["c"], axes=[1], starts=[0], ends=[K])
        if opset < 10
        else node("Slice", ["q", "from", "to", "axis"], ["c"]),
        node("MatMul", ["c", "W"], ["m"], name="product"),
        node("Add", ["m", "b"], ["a"]),
        node("Softmax", ["a"], ["e"], axis=1),
        node("Unsqueeze", ["e"], ["u"], axes=[1]),
        node("ReduceSum", ["u"], ["Y"], axes=[1], keepdims=0),
    ]


def old_model(opset, ir_version):
    constants = {"W": sparse(K, WIDE), "b": dense(WIDE)}
    if opset >= 10:
        constants |= {"from": np.array([0]), "to": np.array([K]), "axis": np.array([1])}
    model = make_model(old_nodes(opset), [value("X", "n", 1, K)], [value("Y", "n", WIDE)], constants, opset)
    model.ir_version = ir_version
    if ir_version < 4:
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.doc_string = "as it was"
    return model


@pytest.mark.parametrize(("opset", "ir_version"), [(7, 3), (8, 3), (9, 4), (10, 5), (11, 6), (12, 7)])
def test_old_opsets_are_converted_and_that_is_said(opset, ir_version, tmp_path):
    report, packed, path = packed_of(old_model(opset, ir_version), tmp_path)
    assert f"converted from opset {opset} to 13 by onnx.version_converter" in report.notes
    assert any("IR version 3 lists every weight" in note for note in report.notes) == (ir_version == 3)
    assert "BitmaskLinear" in op_types(packed) and packed.doc_string == "as it was"
    assert [layer.name for layer in report.packed_layers] == ["product"]
    assert [item.name for item in packed.graph.input] == ["X"]
    assert_same(tmp_path / "foreign.onnx", path, {"X": dense(3, 1, K)}, 1e-5)


def test_large_external_weights_need_not_be_converted(tmp_path):
    model = old_model(11, 6)
    path = tmp_path / "foreign.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    report = pack(path, tmp_path / "packed")
    assert len(report.packed_layers) == 1
    assert_same(path, tmp_path / "packed/model.onnx", {"X": dense(3, 1, K)}, 1e-5)


def test_ir_3_without_an_old_opset(tmp_path):
    model = make_model([node("MatMul", ["X", "W"], ["Y"])], [], [value("Y", "n", N)], {"W": sparse(K, N)}, 13)
    model.graph.input.extend([value("X", "n", K), value("W", K, N)])
    model.ir_version = 3
    report, packed, _ = packed_of(model, tmp_path)
    assert op_types(packed) == ["BitmaskLinear"] and "1 weights are no inputs" in report.notes[0]


def test_what_the_converter_cannot_do_is_said(tmp_path):
    nodes = [node("Upsample", ["X"], ["Y"], scales=[1.0, 2.0, 1.0], mode="nearest")]
    model = make_model(nodes, [value("X", 1, 2, 3)], [value("Y", 1, 4, 3)], {}, 7)
    directory = hostile_directory(tmp_path)
    try:
        model.graph.node.append(node("NoSuchOperator", ["Y"], ["Z"]))
        model.graph.output[0].name = "Z"
        refused(directory, model, "onnx.version_converter cannot convert it|cannot load it")
    finally:
        assert not (directory / "out").exists()


@pytest.mark.parametrize("opset", [13, 14, 18])
def test_inputs_without_tokens_anywhere(opset, tmp_path):
    model = make_model(
        [node("MatMul", ["X", "W"], ["p"]), node("Add", ["p", "b"], ["Y"])],
        [value("X", "a", "b", K)],
        [value("Y", "a", "b", N)],
        {"W": sparse(K, N), "b": dense(N)},
        opset,
    )
    check_packed(model, tmp_path, {"X": dense(2, 3, K)})
    for shape in ((2, 0, K), (0, 3, K), (0, 0, K)):
        assert_same(tmp_path / "foreign.onnx", tmp_path / "packed/model.onnx", {"X": dense(*shape)}, 0)


def half_model(opset, nodes, **constants):
    return make_model(nodes, [value("X", "n", WIDE, kind=HALF)], [value("Y", "n", WIDE, kind=HALF)], constants, opset)


HALF_FORMS = {
    "matmul": [node("MatMul", ["X", "W"], ["Y"])],
    "bias": [node("MatMul", ["X", "W"], ["p"]), node("Add", ["p", "b"], ["Y"])],
    "gemm": [node("Gemm", ["X", "W", "b"], ["Y"], transB=1)],
    "gemm with factors": [node("Gemm", ["X", "W", "b"], ["Y"], transB=1, alpha=0.5, beta=2.0)],
    "on the left": [node("Gemm", ["W", "X", "b"], ["Y"], transB=1)],
}


@pytest.mark.parametrize("form", HALF_FORMS)
@pytest.mark.parametrize("opset", [13, 18])
def test_float16_is_packed_in_its_type(form, opset, tmp_path):
    weight = sparse(WIDE, WIDE).astype(np.float16)
    bias = dense(WIDE).astype(np.float16)
    report, packed, path = packed_of(half_model(opset, HALF_FORMS[form], W=weight, b=bias), tmp_path)
    (layer,) = report.packed_layers
    assert layer.weight_error == 0 and layer.bytes < layer.stored_bytes
    values = next(tensor for tensor in packed.graph.initializer if tensor.name.endswith(".values"))
    # Before CastLike was known the function says one type for all layers.
    assert values.data_type == (HALF if opset >= 15 else FLOAT)
    x = dense(WIDE, WIDE).astype(np.float16)
    assert_same(tmp_path / "foreign.onnx", path, {"X": x}, 0.05)


def test_every_float16_number_is_widened_exactly(tmp_path):
    """All of them in one column each, times ones: subnormal and infinite ones too."""
    every = np.arange(1, 1 << 16, dtype=np.uint16).view(np.float16)
    numbers = every[np.isfinite(every)][: 63 * 1000].reshape(1000, 63)
    weight = np.zeros((252, 1000), np.float16)
    weight[::4] = numbers.T
    model = make_model(
        [node("MatMul", ["X", "W"], ["Y"])],
        [value("X", "n", 252, kind=HALF)],
        [value("Y", "n", 1000, kind=HALF)],
        {"W": weight},
    )
    report, _, path = packed_of(model, tmp_path)
    assert report.packed_layers
    for _, run in sessions(path, False):
        (y,) = run(None, {"X": np.eye(252, dtype=np.float16)})
        np.testing.assert_array_equal(y, weight)


def test_float16_and_float32_in_one_file(tmp_path):
    nodes = [
        node("MatMul", ["X", "V"], ["h"]),
        node("Cast", ["h"], ["f"], to=FLOAT),
        node("MatMul", ["f", "W"], ["g"]),
        node("Cast", ["g"], ["Y"], to=HALF),
    ]
    for opset in (13, 18):
        directory = tmp_path / str(opset)
        directory.mkdir()
        weights = {"V": sparse(WIDE, WIDE).astype(np.float16), "W": sparse(WIDE, WIDE)}
        report, _, path = packed_of(half_model(opset, nodes, **weights), directory)
        assert len(report.packed_layers) == 2
        assert_same(directory / "foreign.onnx", path, {"X": dense(3, WIDE).astype(np.float16)}, 0.05)


def test_inner_graphs_are_converted(tmp_path):
    """If and its branches in opset 11, with a weight in each branch."""
    branches = {}
    for name in ("then_branch", "else_branch"):
        weight = numpy_helper.from_array(sparse(K, N, seed=len(branches)), f"W_{name}")
        inner = [node("Unsqueeze", ["X"], [f"u_{name}"], axes=[0]), node("MatMul", [f"u_{name}", weight.name], [name])]
        branches[name] = helper.make_graph(inner, name, [], [value(name, 1, "n", N)], [weight])
    model = make_model(
        [node("If", ["C"], ["Y"], **branches)],
        [value("X", "n", K), value("C", kind=TensorProto.BOOL)],
        [value("Y", 1, "n", N)],
        {},
        11,
    )
    report = pack(save(model, tmp_path), tmp_path / "packed")
    assert len(report.packed_layers) == 2
    for condition in (True, False):
        feeds = {"X": dense(3, K), "C": np.array(condition)}
        session = onnxruntime.InferenceSession(tmp_path / "packed/model.onnx", providers=["CPUExecutionProvider"])
        expected = exact_session(tmp_path / "foreign.onnx").run(None, feeds)[0]
        np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=0, atol=1e-5)
