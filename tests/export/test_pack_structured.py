"""Empty rows and columns of a weight are removed, not paid for as links that lie anywhere."""

import numpy as np
import onnx
import onnxruntime
import pytest
from pack_models import check_packed, dense, initializer_names, make_model, node, op_types, save, value

from hebbline.export import pack
from hebbline.export.foreign import quantised_choice
from hebbline.export.foreign.compact_layout import compact_layout

K, N = 96, 64


@pytest.fixture
def removal_gains(monkeypatch):
    """What is tested is the form, which time on small layers does not choose."""
    found = quantised_choice.interleaved_medians
    monkeypatch.setattr(quantised_choice, "interleaved_medians", lambda *given: found(*given) | {"dense": 1e9})


def structured(rows, columns, seed=0):
    """W^T [K, N], full but for every so many rows and columns of W."""
    weight = dense(K, N, seed=seed)
    weight[:, np.arange(N) % rows != 0] = 0
    weight[np.arange(K) % columns != 0] = 0
    return weight


FORMS = {
    "rows": (3, 1, ["weight", "rows"]),
    "columns": (1, 4, ["weight", "columns"]),
    "both": (2, 3, ["weight", "columns", "rows"]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("biased", [False, True])
def test_empty_rows_and_columns_are_removed(form, opset, biased, removal_gains, tmp_path):
    rows, columns, tensors = FORMS[form]
    nodes = [node("MatMul", ["X", "W"], ["p" if biased else "Y"], name="layer")]
    nodes += [node("Add", ["p", "b"], ["Y"])] * biased
    constants = {"W": structured(rows, columns)} | ({"b": dense(N)} if biased else {})
    model = make_model(nodes, [value("X", "a", "n", K)], [value("Y", "a", "n", N)], constants, opset)
    report, packed = check_packed(model, tmp_path, {"X": dense(2, 5, K)})
    (layer,) = report.packed_layers
    assert layer.layout == "compact" and layer.weight_error == 0 and layer.links == np.count_nonzero(constants["W"])
    assert op_types(packed)[0].startswith("Compact") and op_types(packed)[1:] == ["Add"] * biased
    assert {f"W.{name}" for name in tensors} <= initializer_names(packed) and "W" not in initializer_names(packed)
    assert layer.bytes < layer.stored_bytes and "are empty, and what is left" in layer.reason
    session = onnxruntime.InferenceSession(tmp_path / "packed/model.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"X": dense(2, 0, K)})[0].shape == (2, 0, N)


def test_gemm_of_a_transposed_weight(removal_gains, tmp_path):
    model = make_model(
        [node("Gemm", ["X", "W", "b"], ["Y"], transB=1)],
        [value("X", "n", K)],
        [value("Y", "n", N)],
        {"W": structured(2, 2).T.copy(), "b": dense(N)},
    )
    report, _ = check_packed(model, tmp_path, {"X": dense(5, K)})
    assert [layer.layout for layer in report.layers] == ["compact"]


def test_what_is_not_empty_enough_or_not_full_enough_is_no_case():
    assert compact_layout(np.ones((N, K), bool)) is None
    assert compact_layout(np.zeros((N, K), bool)) is None
    scattered = np.random.default_rng(0).random((N, K)) < 0.2
    scattered[::2] = False
    assert compact_layout(scattered) is None
    nearly = np.ones((N, K), bool)
    nearly[0] = False
    assert compact_layout(nearly) is None


def test_it_is_measured(tmp_path):
    """Whatever the time here says, the layer is right; half of a large layer is faster than all of it."""
    model = make_model(
        [node("MatMul", ["X", "W"], ["Y"])], [value("X", "n", K)], [value("Y", "n", N)], {"W": structured(2, 2)}
    )
    report = pack(save(model, tmp_path), tmp_path / "packed")
    (layer,) = report.layers
    assert layer.layout in ("compact", "bitmask", "dense")
    x = dense(5, K)
    session = onnxruntime.InferenceSession(tmp_path / "packed/model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"X": x})[0], x @ structured(2, 2), rtol=0, atol=1e-4)
    assert onnx.load(tmp_path / "packed/model.onnx").graph.output[0].name == "Y"
