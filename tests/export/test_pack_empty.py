"""Layers without a single link: one projection pruned away must not keep the rest of a model from being packed."""

import numpy as np
import onnx
import onnxruntime
import pytest
from layout_models import make_model as make_layout_model
from onnx import TensorProto, helper, numpy_helper
from pack_models import (
    K,
    N,
    check_packed,
    dense,
    layer_model,
    make_model,
    node,
    save,
    sparse,
    value,
)

from hebbline.export import pack
from hebbline.export.layouts import LAYOUTS
from hebbline.kernels import library_path

NOTHING_KN = np.zeros((K, N), np.float32)
FORMS = {
    "matmul": ([node("MatMul", ["X", "W"], ["Y"])], NOTHING_KN),
    "matmul and bias": ([node("MatMul", ["X", "W"], ["p"]), node("Add", ["p", "b"], ["Y"])], NOTHING_KN),
    "gemm and bias": ([node("Gemm", ["X", "W", "b"], ["Y"])], NOTHING_KN),
    "gemm of a transposed weight": ([node("Gemm", ["X", "W", "b"], ["Y"], transB=1)], NOTHING_KN.T.copy()),
    "behind a Transpose": (
        [node("Transpose", ["W"], ["V"], perm=[1, 0]), node("MatMul", ["X", "V"], ["Y"])],
        NOTHING_KN.T.copy(),
    ),
    "minus zeros": ([node("MatMul", ["X", "W"], ["Y"])], -NOTHING_KN),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("values", ["float32", "int8"])
def test_the_only_layer_of_a_file(tmp_path, form, values):
    nodes, weight = FORMS[form]
    bias = {"b": dense(N)} if any("b" in part.input for part in nodes) else {}
    model = layer_model(nodes, weight, **bias)
    report, _ = check_packed(model, tmp_path, {"X": dense(3, K)}, values=values)
    (layer,) = report.packed_layers
    assert layer.links == 0 and layer.bytes < layer.stored_bytes


@pytest.mark.parametrize("opset", [13, 15, 18, 21])
def test_beside_a_good_layer(tmp_path, opset):
    """Wide enough that the good layer's tensors go to the data file."""
    nodes = [
        node("MatMul", ["X", "good"], ["a"]),
        node("MatMul", ["a", "gone"], ["b"]),
        node("Add", ["a", "b"], ["Y"]),
    ]
    weights = {"good": sparse(128, 128), "gone": np.zeros((128, 128), np.float32)}
    model = make_model(nodes, [value("X", "n", 128)], [value("Y", "n", 128)], weights, opset)
    report, _ = check_packed(model, tmp_path, {"X": dense(3, 128)})
    assert [layer.links for layer in report.packed_layers] == [np.count_nonzero(weights["good"]), 0]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("with_bias", [False, True])
def test_every_layout_holds_no_links(layout, with_bias):
    """The op of the library and the function of the file: what comes out is the bias, or zeros."""
    nothing_NK = np.zeros((33, 40), np.float32)
    bias_N = dense(33) if with_bias else None
    tensors = layout.encode(nothing_NK, nothing_NK != 0)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    for function, given in ((True, onnxruntime.SessionOptions()), (False, options)):
        model = make_layout_model(layout, tensors, 40, bias_N, function=function)
        session = onnxruntime.InferenceSession(model.SerializeToString(), given, providers=["CPUExecutionProvider"])
        for tokens in (0, 1, 9, 70):
            (y,) = session.run(None, {"X": dense(2, tokens, 40)})
            assert y.shape == (2, tokens, 33)
            np.testing.assert_array_equal(y, np.broadcast_to(0 if bias_N is None else bias_N, y.shape))


def test_autotune_times_a_layer_without_links(tmp_path):
    model = layer_model([node("MatMul", ["X", "W"], ["Y"])], NOTHING_KN)
    check_packed(model, tmp_path, {"X": dense(3, K)}, autotune=True)


def test_empty_external_data_of_the_original_moves_into_the_model(tmp_path):
    """Another tool may have written a tensor without elements to the data file, which ONNX Runtime cannot load."""
    empty = TensorProto(name="none", data_type=TensorProto.FLOAT, dims=[0, N], data_location=TensorProto.EXTERNAL)
    (tmp_path / "weights.bin").write_bytes(sparse(K, N).tobytes())
    for key, entry in {"location": "weights.bin", "offset": "0", "length": "0"}.items():
        empty.external_data.add(key=key, value=entry)
    nodes = [node("MatMul", ["X", "W"], ["p"]), node("Concat", ["p", "none"], ["Y"], axis=0)]
    model = make_model(nodes, [value("X", "n", K)], [value("Y", "m", N)], {"W": sparse(K, N), "none": empty})
    pack(save(model, tmp_path), tmp_path / "packed")
    packed = onnx.load(tmp_path / "packed/model.onnx", load_external_data=False)
    (kept,) = [tensor for tensor in packed.graph.initializer if tensor.name == "none"]
    assert kept.data_location == TensorProto.DEFAULT and numpy_helper.to_array(kept).shape == (0, N)
    assert helper.tensor_dtype_to_np_dtype(kept.data_type) == np.float32
