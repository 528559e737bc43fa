"""Operators that multiply integers: their own integers, scales and zero points are kept, and their sums are exact."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pack_models import make_model, node, op_types, run, save, value

from hebbline.export import pack
from hebbline.export.foreign.expansions import trial

K, N, T = 96, 64, 5


def only(monkeypatch, title):
    """Leave only the form of this title among those that can be chosen."""
    written = trial.Trial._written

    def only_that(self, expansion, form):
        item = written(self, expansion, form)
        return item if title in form.title else trial.replace(item, bytes=1 << 40)

    monkeypatch.setattr(trial.Trial, "_written", only_that)


def quants(kind, zero, density=0.2, seed=0, largest=60):
    rng = np.random.default_rng(seed)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    far = rng.integers(-largest, largest + 1, (K, N))
    return np.where(rng.random((K, N)) < density, far + zero, zero).astype(dtype)


INT8, UINT8, FLOAT = TensorProto.INT8, TensorProto.UINT8, TensorProto.FLOAT
SCALES = np.linspace(0.001, 0.003, N).astype(np.float32)
BIAS = np.linspace(-1, 1, N).astype(np.float32)


def dynamic_model(kind=INT8, zero=0):
    """As `onnxruntime.quantization.quantize_dynamic` writes it."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [
        node("DynamicQuantizeLinear", ["X"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "W", "z", "wz"], ["sums"], name="layer"),
        node("Cast", ["sums"], ["floats"], to=FLOAT),
        node("Mul", ["s", "ws"], ["scale"]),
        node("Mul", ["floats", "scale"], ["scaled"]),
        node("Add", ["scaled", "b"], ["Y"]),
    ]
    constants = {"W": quants(kind, zero), "wz": np.array(zero, dtype), "ws": np.float32(0.002), "b": BIAS}
    return make_model(nodes, [value("X", "n", K)], [value("Y", "n", N)], constants, 17)


def integer_model(kind=INT8, zero=0, given=UINT8, point=120):
    """Sums in integers are the model's output."""
    types = [helper.tensor_dtype_to_np_dtype(item) for item in (given, kind)]
    nodes = [node("MatMulInteger", ["X", "W", "z", "wz"], ["Y"], name="layer")]
    constants = {"W": quants(kind, zero), "z": np.array(point, types[0]), "wz": np.array(zero, types[1])}
    inputs, outputs = [value("X", "n", K, kind=given)], [value("Y", "n", N, kind=TensorProto.INT32)]
    return make_model(nodes, inputs, outputs, constants, 17)


def qlinear_model(given=UINT8, point=128, per_channel=True):
    dtype = helper.tensor_dtype_to_np_dtype(given)
    scales = SCALES if per_channel else np.float32(0.002)
    nodes = [node("QLinearMatMul", ["X", "xs", "xz", "W", "ws", "wz", "ys", "yz"], ["Y"], name="layer")]
    constants = {"xs": np.float32(0.03), "xz": np.array(point, dtype), "ys": np.float32(0.05), "yz": np.array(7, dtype)}
    constants |= {"W": quants(INT8, 0), "ws": scales, "wz": np.zeros(N if per_channel else (), np.int8)}
    return make_model(nodes, [value("X", "n", K, kind=given)], [value("Y", "n", N, kind=given)], constants, 17)


def microsoft_model(op_type, inputs, outputs, constants, **attributes):
    nodes = [node(op_type, ["X", *constants], ["Y"], "layer", domain="com.microsoft", **attributes)]
    return make_model(nodes, [inputs], [outputs], constants, 17, (), ("com.microsoft",))


def inputs_of(model):
    kind = model.graph.input[0].type.tensor_type.elem_type
    rng = np.random.default_rng(1)
    if kind == FLOAT:
        return {"X": (rng.standard_normal((T, K)) + 0.3).astype(np.float32)}
    bounds = np.iinfo(helper.tensor_dtype_to_np_dtype(kind))
    return {"X": rng.integers(bounds.min, bounds.max + 1, (T, K)).astype(bounds.dtype)}


def check(model, tmp_path, exact=False):
    """The same results with and without the library; nothing of the operator is left."""
    path = save(model, tmp_path)
    report = pack(path, tmp_path / "packed")
    (layer,) = report.packed_layers
    packed = tmp_path / "packed/model.onnx"
    onnx.checker.check_model(str(packed), full_check=True)
    feeds = inputs_of(model)
    expected = run(path, feeds)
    for library in (False, True):
        actual = run(packed, feeds, library)
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        if exact:
            np.testing.assert_array_equal(actual, expected)
        elif expected.dtype == np.float32:
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        else:
            steps = np.abs(actual.astype(int) - expected.astype(int))
            assert steps.max() <= 1 and steps.mean() < 0.01
    return layer, onnx.load(packed)


FORMS = ["int8", "bfloat16"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "zero"), [(INT8, 0), (INT8, 3), (UINT8, 128), (UINT8, 131)])
def test_dynamically_quantised(form, kind, zero, packed_is_faster, monkeypatch, tmp_path):
    only(monkeypatch, form)
    layer, packed = check(dynamic_model(kind, zero), tmp_path)
    assert layer.name == "layer" and layer.op_type == "MatMulInteger" and layer.values == form
    assert layer.weight_error == 0 and "DynamicQuantizeLinear" in op_types(packed)
    assert not {"MatMulInteger", "W", "wz"} & {*op_types(packed), *(item.name for item in packed.graph.initializer)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("given", "point"), [(UINT8, 0), (UINT8, 120), (UINT8, 255), (INT8, 0), (INT8, -128)])
def test_sums_are_exact(form, given, point, packed_is_faster, monkeypatch, tmp_path):
    only(monkeypatch, form)
    layer, packed = check(integer_model(given=given, point=point), tmp_path, exact=True)
    assert layer.values == form and op_types(packed)[-1] == "Cast"


def test_weights_beyond_int8_are_integers_of_bfloat16(packed_is_faster, tmp_path):
    model = integer_model(UINT8, 5)
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 0] = 255
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "W"))
    assert check(model, tmp_path, exact=True)[0].values == "bfloat16"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("given", "point"), [(UINT8, 128), (UINT8, 3), (INT8, 5)])
def test_qlinear_matmul(form, per_channel, given, point, packed_is_faster, monkeypatch, tmp_path):
    only(monkeypatch, form)
    layer, packed = check(qlinear_model(given, point, per_channel), tmp_path)
    assert layer.op_type == "QLinearMatMul" and op_types(packed)[-1] == "QuantizeLinear"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [False, True])
def test_dynamic_quantize_matmul(form, bias, packed_is_faster, monkeypatch, tmp_path):
    only(monkeypatch, form)
    constants = {"W": quants(INT8, 0), "ws": SCALES, "wz": np.zeros(N, np.int8)} | ({"b": BIAS} if bias else {})
    model = microsoft_model("DynamicQuantizeMatMul", value("X", "n", K), value("Y", "n", N), constants)
    layer, packed = check(model, tmp_path)
    assert layer.values == form and "DynamicQuantizeMatMul" not in op_types(packed)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_qgemm(form, rounded, packed_is_faster, monkeypatch, tmp_path):
    only(monkeypatch, form)
    steps = np.linspace(-900, 900, N).astype(np.int32)
    constants = {"xs": np.float32(0.03), "xz": np.uint8(120), "W": quants(INT8, 0).T.copy(), "ws": SCALES}
    constants |= {"wz": np.zeros(N, np.int8), "c": steps}
    constants |= {"ys": np.float32(0.05), "yz": np.uint8(9)} if rounded else {}
    out = value("Y", "n", N, kind=UINT8 if rounded else FLOAT)
    model = microsoft_model("QGemm", value("X", "n", K, kind=UINT8), out, constants, transB=1)
    layer, _ = check(model, tmp_path)
    assert layer.values == form and layer.shape == (N, K)


@pytest.mark.parametrize("form", FORMS)
def test_matmul_integer_to_float(form, packed_is_faster, monkeypatch, tmp_path):
    only(monkeypatch, form)
    constants = {"W": quants(INT8, 0), "xs": np.float32(0.03), "ws": SCALES, "xz": np.uint8(120)}
    constants |= {"wz": np.zeros(N, np.int8), "b": BIAS}
    model = microsoft_model("MatMulIntegerToFloat", value("X", "n", K, kind=UINT8), value("Y", "n", N), constants)
    assert check(model, tmp_path)[0].values == form


def test_what_is_as_fast_as_it_stands_is_left_with_its_density(monkeypatch, tmp_path):
    found = trial._quartiles
    monkeypatch.setattr(trial, "_quartiles", lambda *given: [1e-9, *found(*given)[1:]])
    report = pack(save(dynamic_model(), tmp_path), tmp_path / "packed")
    (layer,) = report.layers
    assert not layer.packed and "as fast or faster as it stands" in layer.reason and 0.1 < layer.density < 0.3
    assert layer.time_unit == "us measured"
