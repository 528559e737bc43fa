"""Fixed scales of activations: calibration of packed int8 and 4-bit layers."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from pack_models import check_packed, dense, exact_session, make_model, node, save, sparse, value

from hebbline.artifacts import InputError
from hebbline.cli import main
from hebbline.export import pack

K, N = 192, 128


def two_layers(opset=18):
    nodes = [node("MatMul", ["X", "A"], ["a"]), node("Relu", ["a"], ["r"]), node("MatMul", ["r", "B"], ["Y"])]
    constants = {"A": sparse(K, N, density=0.3), "B": sparse(N, N, density=0.3, seed=1)}
    return make_model(nodes, [value("X", "n", K)], [value("Y", "n", N)], constants, opset)


def calibration(tmp_path, **arrays):
    path = tmp_path / "calibration.npz"
    np.savez(path, **arrays)
    return path


def activation_scales(model):
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    names = [name for name in tensors if name.endswith("activation_scale")]
    return [float(numpy_helper.to_array(tensors[name])[0]) for name in names]


def loaded(directory):
    return onnx.load(directory / "model.onnx")


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("values", ["int8", "int4"])
def test_scales_are_those_of_the_calibration(values, opset, tmp_path):
    model, x = two_layers(opset), 3 * dense(40, K)
    path = calibration(tmp_path, X=x)
    bound = {"int8": 4e-2, "int4": 0.3}[values]
    report, packed = check_packed(model, tmp_path, {"X": x[:5]}, bound, values=values, calibration=path)
    hidden = np.maximum(x @ numpy_helper.to_array(model.graph.initializer[0]), 0)
    expected = [np.abs(x).max() / 127, np.abs(hidden).max() / 127]
    np.testing.assert_allclose(activation_scales(packed), expected, rtol=1e-5)
    assert [layer.largest_activation for layer in report.layers] == pytest.approx([127 * scale for scale in expected])
    assert "rounded up to a magnitude" in (tmp_path / "packed/report.html").read_text()


def test_larger_activations_are_cut_off(tmp_path):
    """One scale rounds all tokens: one ten times as large as calibrated gives what the largest gives."""
    weight = np.where(np.arange(K)[:, None] == 0, 1, sparse(K, N) * (np.arange(K) > 0)[:, None]).astype(np.float32)
    model = make_model([node("MatMul", ["X", "W"], ["Y"])], [value("X", "n", K)], [value("Y", "n", N)], {"W": weight})
    x = np.zeros((1, K), np.float32)
    x[0, 0] = 1
    pack(save(model, tmp_path), tmp_path / "packed", values="int8", calibration=calibration(tmp_path, X=x))
    run = exact_session(tmp_path / "packed/model.onnx").run
    np.testing.assert_allclose(run(None, {"X": 10 * x})[0], run(None, {"X": x})[0], rtol=1e-6)


def test_one_weight_with_two_inputs_takes_the_larger_scale(tmp_path):
    nodes = [node("MatMul", ["X", "W"], ["a"]), node("MatMul", ["Z", "W"], ["b"]), node("Add", ["a", "b"], ["Y"])]
    inputs = [value("X", "n", K), value("Z", "n", K)]
    model = make_model(nodes, inputs, [value("Y", "n", N)], {"W": sparse(K, N, density=0.3)})
    path = calibration(tmp_path, X=dense(4, K), Z=5 * dense(4, K, seed=1))
    pack(save(model, tmp_path), tmp_path / "packed", values="int8", calibration=path)
    assert activation_scales(loaded(tmp_path / "packed")) == pytest.approx(
        [5 * np.abs(dense(4, K, seed=1)).max() / 127]
    )


def test_a_value_of_a_function_is_not_one_of_the_graph(tmp_path):
    """Names of a function's values are its own: its X is not the graph's, and keeps a scale a token."""
    weight = numpy_helper.from_array(sparse(N, N, density=0.3, seed=1), "W")
    inner = [node("Constant", [], ["W"], value=weight), node("MatMul", ["X", "W"], ["Y"])]
    function = helper.make_function("local", "Inner", ["X"], ["Y"], inner, [helper.make_opsetid("", 18)])
    nodes = [node("MatMul", ["X", "A"], ["a"]), node("Inner", ["a"], ["Y"], domain="local")]
    constants = {"A": sparse(K, N, density=0.3)}
    inputs, outputs = [value("X", "n", K)], [value("Y", "n", N)]
    model = make_model(nodes, inputs, outputs, constants, functions=[function], domains=["local"])
    path = calibration(tmp_path, X=dense(4, K))
    report = pack(save(model, tmp_path), tmp_path / "packed", values="int8", calibration=path)
    assert [layer.largest_activation is not None for layer in report.packed_layers] == [True, False]


@pytest.mark.parametrize(
    ("arrays", "options", "match"),
    [
        ({"X": dense(4, K)}, {}, "does not round activations"),
        ({"x": dense(4, K)}, {"values": "int8"}, "the model's inputs are"),
        ({"X": dense(4, K + 1)}, {"values": "int8"}, "does not run on the calibration inputs"),
        ({"X": np.full((1, K), np.inf, np.float32)}, {"values": "int8"}, "not finite"),
    ],
)
def test_calibrations_that_do_not_fit(arrays, options, match, tmp_path):
    path = save(two_layers(), tmp_path)
    with pytest.raises(InputError, match=match):
        pack(path, tmp_path / "packed", calibration=calibration(tmp_path, **arrays), **options)
    assert not (tmp_path / "packed").exists()


def test_a_file_that_is_no_archive(tmp_path):
    path, broken = save(two_layers(), tmp_path), tmp_path / "calibration.npz"
    broken.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"no \.npz archive"):
        pack(path, tmp_path / "packed", values="int8", calibration=broken)


def test_the_command(tmp_path, capsys):
    path, given = save(two_layers(), tmp_path), calibration(tmp_path, X=dense(4, K))
    arguments = ["pack", str(path), "--out", str(tmp_path / "packed"), "--values", "int8"]
    assert main([*arguments, "--calibration", str(given), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["options"]["calibration"] == str(given)
    assert all(layer["largest_activation"] > 0 for layer in report["layers"])
