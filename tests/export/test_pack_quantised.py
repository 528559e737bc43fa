"""Models that are multiplied in integers: the file's own integers and scales are kept, or the layer stays as it is."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from pack_models import make_model, node, op_types, save, sparse, value

from hebbline.export import pack
from hebbline.export.foreign import quantised_choice
from hebbline.kernels import library_path

K, N, T = 96, 64, 5
WIDE = 512


@pytest.fixture
def packed_is_faster(monkeypatch):
    """What is tested is the form, which time on small layers does not choose."""
    found = quantised_choice.interleaved_medians

    def medians(*arguments):
        return found(*arguments) | {"dense": 1e9}

    monkeypatch.setattr(quantised_choice, "interleaved_medians", medians)


def integers(rows, columns, scales, density=0.2, seed=0):
    weight = sparse(rows, columns, density=density, seed=seed)
    return np.clip(np.round(weight / np.abs(weight).max() * 127), -127, 127).astype(np.int8), scales


def qdq_model(kind, zero, form="matmul", per_channel=True, columns=K, rows=N, density=0.2):
    """X -> QuantizeLinear -> DequantizeLinear -> product with a dequantised weight."""
    scales = np.linspace(0.001, 0.003, rows).astype(np.float32) if per_channel else np.float32(0.002)
    quants, _ = integers(columns, rows, scales, density)
    point = np.array(zero, helper.tensor_dtype_to_np_dtype(kind))
    constants = {
        "xs": np.float32(0.03),
        "xz": point,
        "W": quants,
        "s": scales,
        "b": np.linspace(-1, 1, rows).astype("f4"),
    }
    axis = {"axis": 1} if per_channel else {}
    nodes = [
        node("QuantizeLinear", ["X", "xs", "xz"], ["q"]),
        node("DequantizeLinear", ["q", "xs", "xz"], ["x"]),
        node("DequantizeLinear", ["W", "s"], ["w"], **axis),
    ]
    if form == "matmul":
        nodes.append(node("MatMul", ["x", "w"], ["Y"], name="layer"))
    elif form == "bias":
        nodes += [node("MatMul", ["x", "w"], ["p"], name="layer"), node("Add", ["p", "b"], ["Y"])]
    else:
        constants["W"] = quants.T.copy()
        nodes[2] = node("DequantizeLinear", ["W", "s"], ["w"], **({"axis": 0} if per_channel else {}))
        nodes.append(node("Gemm", ["x", "w", "b"], ["Y"], name="layer", transB=1))
    return make_model(nodes, [value("X", "n", columns)], [value("Y", "n", rows)], constants, 17), quants, scales


def run(path, feeds, library=False):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if library:
        options.register_custom_ops_library(str(library_path()))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


ACTIVATIONS = [
    (TensorProto.UINT8, 128),
    (TensorProto.UINT8, 0),
    (TensorProto.UINT8, 255),
    (TensorProto.UINT8, 113),
    (TensorProto.INT8, 0),
    (TensorProto.INT8, -128),
    (TensorProto.INT8, 17),
]


@pytest.mark.parametrize(("kind", "zero"), ACTIVATIONS)
@pytest.mark.parametrize("form", ["matmul", "bias", "gemm"])
def test_integers_scales_and_zero_points_are_kept(kind, zero, form, packed_is_faster, tmp_path):
    """Held to exact integers: inputs reach both ends of the type, where int8 has no number to spare."""
    model, quants, scales = qdq_model(kind, zero, form)
    report = pack(save(model, tmp_path), tmp_path / "packed")
    path = tmp_path / "packed/model.onnx"
    packed = onnx.load(path)
    (layer,) = report.packed_layers
    assert layer.values == "int8" and layer.weight_error == 0 and "BitmaskLinearInt8" in op_types(packed)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in packed.graph.initializer}
    np.testing.assert_array_equal(held["W.scales"], scales)
    assert sorted(held["W.values"]) == sorted(quants[quants != 0]) and held["W.activation_scale"] == np.float32(0.03)
    x = np.random.default_rng(0).uniform(-9, 9, (T, K)).astype(np.float32)
    lowest = 0 if kind == TensorProto.UINT8 else -128
    steps = np.clip(np.rint(x / np.float32(0.03)) + zero, lowest, lowest + 255) - zero
    exact = steps @ (quants.astype(np.float64) * scales) * np.float32(0.03)
    exact += 0 if form == "matmul" else np.linspace(-1, 1, N).astype("f4")
    for library in (False, True):
        np.testing.assert_allclose(run(path, {"X": x}, library), exact, rtol=0, atol=2e-5 * np.abs(exact).max())


def test_one_scale_for_the_whole_weight(packed_is_faster, tmp_path):
    model, _, scale = qdq_model(TensorProto.UINT8, 0, per_channel=False)
    assert len(pack(save(model, tmp_path), tmp_path / "packed").packed_layers) == 1
    packed = onnx.load(tmp_path / "packed/model.onnx")
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in packed.graph.initializer}
    np.testing.assert_array_equal(held["W.scales"], np.full(N, scale))


def test_a_layer_that_is_as_fast_as_it_stands_is_left(tmp_path):
    """Half of the weights of a small layer: ONNX Runtime's integer kernels are faster on every machine."""
    model, _, _ = qdq_model(TensorProto.UINT8, 128, density=0.85)
    report = pack(save(model, tmp_path), tmp_path / "packed", objective="throughput")
    (layer,) = report.layers
    assert not layer.packed and layer.density > 0.8
    assert "in integers, as fast or faster" in layer.reason or "packed it would take" in layer.reason
    assert layer.time_unit == "us measured"
    assert "DequantizeLinear" in op_types(onnx.load(tmp_path / "packed/model.onnx"))


def test_what_a_file_of_quantised_layers_gains_or_keeps_is_measured(tmp_path):
    model, _, _ = qdq_model(TensorProto.UINT8, 128, columns=WIDE, rows=WIDE, density=0.1)
    report = pack(save(model, tmp_path), tmp_path / "packed")
    (layer,) = report.layers
    assert layer.time_unit == "us measured" and "1 token" in layer.reason and "16 tokens" in layer.reason
    assert layer.packed == ("as fast or faster" not in layer.reason)


def test_scales_by_column_are_left(packed_is_faster, tmp_path):
    model, _, _ = qdq_model(TensorProto.UINT8, 128, columns=N)
    model.graph.node[2].attribute[0].i = 0
    report = pack(save(model, tmp_path), tmp_path / "packed")
    (layer,) = report.layers
    assert not layer.packed and "times one scale a row" in layer.reason and layer.density


def test_a_factor_of_gemm_is_left(packed_is_faster, tmp_path):
    model, _, _ = qdq_model(TensorProto.UINT8, 128, form="gemm")
    model.graph.node[3].attribute.append(helper.make_attribute("alpha", 0.5))
    report = pack(save(model, tmp_path), tmp_path / "packed")
    assert not report.packed_layers and "multiplied by a number" in report.layers[0].reason


def test_two_layers_of_one_weight(packed_is_faster, tmp_path):
    """With one scale of their inputs they share it, with zero points of their own."""
    model, _, _ = qdq_model(TensorProto.UINT8, 128)
    model.graph.node.extend(
        [
            node("QuantizeLinear", ["X", "xs", "other"], ["q2"]),
            node("DequantizeLinear", ["q2", "xs", "other"], ["x2"]),
            node("MatMul", ["x2", "w"], ["Z"], name="second"),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(20, np.uint8), "other"))
    model.graph.output.append(value("Z", "n", N))
    report = pack(save(model, tmp_path), tmp_path / "packed")
    assert [layer.shared_with for layer in report.packed_layers] == [None, "layer"]


def test_four_bit_blocks_are_compared_with_the_kernels_for_them(tmp_path):
    """Blocks of DequantizeLinear become MatMulNBits in ONNX Runtime: that is what is measured."""
    rng = np.random.default_rng(0)
    quants = np.where(rng.random((WIDE, WIDE)) < 0.1, rng.integers(-7, 8, (WIDE, WIDE)), 0)
    weight = helper.make_tensor("W", TensorProto.INT4, (WIDE, WIDE), quants.reshape(-1).tolist())
    scales = rng.uniform(0.01, 0.02, (WIDE // 32, WIDE)).astype(np.float32)
    nodes = [
        node("DequantizeLinear", ["W", "s"], ["w"], axis=0, block_size=32),
        node("MatMul", ["X", "w"], ["Y"], name="layer"),
    ]
    inputs, outputs = [value("X", "n", WIDE)], [value("Y", "n", WIDE)]
    model = make_model(nodes, inputs, outputs, {"W": weight, "s": scales}, 21)
    report = pack(save(model, tmp_path), tmp_path / "packed")
    (layer,) = report.layers
    assert layer.time_unit == "us measured" and layer.links == np.count_nonzero(quants)


def test_a_weight_that_is_dequantised_to_float_is_measured_as_the_floats_it_becomes(tmp_path):
    quants, scales = integers(WIDE, WIDE, np.full(WIDE, 0.01, np.float32), density=0.05)
    nodes = [node("DequantizeLinear", ["W", "s"], ["w"], axis=1), node("MatMul", ["X", "w"], ["Y"], name="layer")]
    inputs, outputs = [value("X", "n", WIDE)], [value("Y", "n", WIDE)]
    model = make_model(nodes, inputs, outputs, {"W": quants, "s": scales}, 17)
    report = pack(save(model, tmp_path), tmp_path / "packed")
    assert report.layers[0].time_unit == "us measured"
