"""Options of `pack`: value types, objective, autotune; and the command."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pack_models import check_packed, dense, make_model, node, op_types, save, sparse, value

from hebbline.artifacts import InputError
from hebbline.cli import main
from hebbline.export import pack
from hebbline.export.foreign import autotune, choosing
from hebbline.export.foreign.choosing import candidates, decide
from hebbline.export.foreign.layer_check import ERROR_BOUNDS
from hebbline.export.foreign.options import PackOptions
from hebbline.export.layouts import LAYOUTS

K, N = 192, 128


def two_layers(opset=18):
    nodes = [
        node("MatMul", ["X", "A"], ["a"], name="first"),
        node("Relu", ["a"], ["r"]),
        node("Gemm", ["r", "B", "C"], ["Y"], name="second"),
    ]
    constants = {"A": sparse(K, N, density=0.3), "B": sparse(N, N, density=0.3), "C": dense(N)}
    return make_model(nodes, [value("X", "n", K)], [value("Y", "n", N)], constants, opset)


@pytest.mark.parametrize("values", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("opset", [13, 24])
def test_inexact_values_report_their_error(values, opset, tmp_path):
    report, packed = check_packed(two_layers(opset), tmp_path, {"X": dense(5, K)}, ERROR_BOUNDS[values], values=values)
    suffix = {"bfloat16": "", "int8": "Int8", "int4": "Int4"}[values]
    assert op_types(packed) == ["BitmaskLinear" + suffix, "Relu", "BitmaskLinear" + suffix]
    for layer in report.layers:
        assert layer.values == values and 0 < layer.weight_error <= layer.output_error * 10
        assert 0 < layer.output_error <= ERROR_BOUNDS[values]
        exact_bytes = LAYOUTS["bitmask"].packed_bytes(layer.out_features, layer.in_features, layer.links)
        assert layer.bytes < 0.7 * exact_bytes
    assert report.end_to_end.difference > 1e-5 and report.end_to_end.allowed is None
    assert "not judged" in report.end_to_end.note


def test_inexact_values_of_infinite_weights_are_left(tmp_path):
    weight = sparse(K, N)
    weight[0, 0] = np.inf
    model = make_model([node("MatMul", ["X", "W"], ["Y"])], [value("X", "n", K)], [value("Y", "n", N)], {"W": weight})
    report = pack(save(model, tmp_path), tmp_path / "packed", values="int8")
    assert not report.packed_layers and "infinite or NaN" in report.layers[0].reason


def test_blocks_are_seen(tmp_path):
    mask = np.kron(np.random.default_rng(0).random((K // 16, N // 16)) < 0.3, np.ones((16, 16), bool))
    weight = np.where(mask, dense(K, N), 0).astype(np.float32)
    model = make_model([node("MatMul", ["X", "W"], ["Y"])], [value("X", "n", K)], [value("Y", "n", N)], {"W": weight})
    report, packed = check_packed(model, tmp_path, {"X": dense(5, K)})
    assert op_types(packed) == ["BlockLinear"] and report.layers[0].layout == "block"
    weight[np.argwhere(mask)[0][0], np.argwhere(mask)[0][1]] = 0  # one hole: no longer whole blocks
    assert "block" not in [layout.name for layout in candidates(weight.T != 0, "float32")]


@pytest.mark.parametrize("objective", ["latency", "throughput", "size"])
def test_autotune_measures_here(objective, tmp_path, monkeypatch):
    monkeypatch.setattr(autotune, "_ROUNDS", 3)
    report, _ = check_packed(two_layers(), tmp_path, {"X": dense(5, K)}, autotune=True, objective=objective)
    tokens = {"latency": "1 token:", "throughput": "64 tokens:", "size": "1 token:"}[objective]
    for layer in report.layers:
        assert layer.time_unit == "us measured" and layer.dense_time > 0 and layer.packed_time > 0
        assert f"measured at {tokens} dense" in layer.reason and "bitmask" in layer.reason and "csr" in layer.reason
        assert layer.packed == (objective == "size" or layer.packed_time < layer.dense_time)
    page = (tmp_path / "packed/report.html").read_text()
    assert ("measured on this machine" in page) == bool(report.packed_layers)


def test_autotune_without_the_library_is_refused(tmp_path, monkeypatch):
    def missing():
        raise InputError("there is no library")

    monkeypatch.setattr(autotune, "library_path", missing)
    with pytest.raises(InputError, match="autotune times the op library: there is no library"):
        pack(save(two_layers(), tmp_path), tmp_path / "packed", autotune=True)
    assert not (tmp_path / "packed").exists()


def test_the_measured_fastest_is_taken():
    weight = sparse(N, K)
    times = choosing.Times(dense=9.0, packed=2.0, unit="us measured")

    def measure(weight_NK, mask_NK, layouts):
        assert weight_NK is weight and [layout.name for layout in layouts] == ["bitmask", "csr"]
        return LAYOUTS["csr"], times, "csr is the fastest"

    decision = decide(weight, weight != 0, weight.nbytes, None, PackOptions(autotune=True), measure)
    assert decision.layout is LAYOUTS["csr"] and decision.times.speedup == 4.5
    decision = decide(weight, weight != 0, weight.nbytes, None, PackOptions(min_speedup=5), measure)
    assert decision.layout is None and "speed-up 4.50 is below 5" in decision.reason


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"values": "fp8"}, "values is 'fp8'"),
        ({"objective": "fun"}, "objective is"),
        ({"min_speedup": -1}, "min_speedup"),
    ],
)
def test_options_outside_their_choices(options, match, tmp_path):
    with pytest.raises(InputError, match=match):
        pack(tmp_path / "none.onnx", tmp_path / "out", **options)


def test_the_command_prints_the_report(tmp_path, capsys):
    path = save(two_layers(), tmp_path)
    assert main(["pack", str(path), "--out", str(tmp_path / "packed"), "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report == json.loads((tmp_path / "packed/report.json").read_text())
    assert [layer["layout"] for layer in report["layers"]] == ["bitmask", "bitmask"]
    assert "2 of 2 layers with constant weights are packed" in printed.err
    page = (tmp_path / "packed/report.html").read_text()
    assert page.count("data:image/png") == 4 and page.count('class="packed"') == 2


def test_the_command_answers_bad_input_with_one_line_and_2(tmp_path, capsys):
    assert main(["pack", str(tmp_path / "none.onnx"), "--out", str(tmp_path / "packed")]) == 2
    assert main(["pack", str(tmp_path), "--out", str(tmp_path / "packed")]) == 2
    assert main(["pack", "x.onnx", "--out", "y", "--values", "fp8"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_inputs_that_cannot_be_made_up_leave_the_check_of_each_layer(tmp_path):
    """A position that must be below a length: neither zeros, ones nor noise do."""
    nodes = [
        node("Reshape", ["X", "S"], ["x"]),
        node("MatMul", ["x", "A"], ["Y"]),
    ]
    inputs = [value("X", "n"), value("S", 3, kind=onnx.TensorProto.INT64)]
    model = make_model(nodes, inputs, [value("Y", "a", "b", N)], {"A": sparse(K, N)})
    report = pack(save(model, tmp_path), tmp_path / "packed")
    assert report.end_to_end.difference is None and "every layer was verified alone" in report.end_to_end.note
    assert report.layers[0].weight_error == 0 and report.layers[0].output_error <= 1e-5
    values = [t for t in onnx.load(tmp_path / "packed/model.onnx").graph.initializer if t.name == "A.values"]
    np.testing.assert_array_equal(numpy_helper.to_array(values[0]), sparse(K, N).T[sparse(K, N).T != 0])


def test_a_string_input_is_said_to_be_none(tmp_path):
    nodes = [node("MatMul", ["X", "A"], ["Y"]), node("Identity", ["T"], ["U"])]
    inputs = [value("X", "n", K), value("T", 1, kind=onnx.TensorProto.STRING)]
    outputs = [value("Y", "n", N), value("U", 1, kind=onnx.TensorProto.STRING)]
    report = pack(save(make_model(nodes, inputs, outputs, {"A": sparse(K, N)}), tmp_path), tmp_path / "packed")
    assert "input 'T' has the element type STRING" in report.end_to_end.note and report.layers[0].packed
