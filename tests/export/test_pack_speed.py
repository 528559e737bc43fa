"""What the report says of the whole model's speed, and of the numbers that were compared."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper
from pack_models import K, N, make_model, node, save, sparse, value

from hebbline.cli import main
from hebbline.export import pack
from hebbline.export.foreign import speed
from hebbline.kernels.isa import kernels_isa


def linear(inputs, weight):
    return make_model([node("MatMul", ["X", "W"], ["Y"])], inputs, [value("Y", "n", N)], {"W": weight})


def test_the_whole_model_is_measured(tmp_path):
    report = pack(save(linear([value("X", "n", K)], sparse(K, N)), tmp_path), tmp_path / "packed")
    found = report.speed
    assert found.original_ms > 0 and found.packed_ms > 0 and found.rounds == 31
    assert found.isa == kernels_isa() and found.inputs == f"inputs X 1x{K}"
    written = json.loads((tmp_path / "packed/report.json").read_text())["speed"]
    assert written["speedup"] == found.original_ms / found.packed_ms
    assert f"measured: {found.speedup:.2f} times as fast" in (tmp_path / "packed/report.html").read_text()


def test_sizes_follow_the_objective(tmp_path):
    path = save(linear([value("X", "n", "t", K)], sparse(K, N)), tmp_path)
    model = onnx.load(path)
    shapes = {kind: speed.timing_feeds(model, kind)[0]["X"].shape for kind in ("latency", "throughput")}
    assert shapes == {"latency": (1, 16, K), "throughput": (8, 64, K)}


def test_one_name_is_one_size():
    inputs = [value("X", "b", "t", K), value("mask", "b", "t", kind=TensorProto.INT64), value("z", "t", K)]
    feeds = speed.timing_feeds(linear(inputs, sparse(K, N)), "latency")[0]
    assert feeds["X"].shape[:2] == feeds["mask"].shape and feeds["z"].shape[0] == feeds["X"].shape[1]


def test_sizes_that_the_model_refuses_are_passed_over(tmp_path):
    """Only 32 columns fit the addend."""
    nodes = [node("MatMul", ["W", "X"], ["p"]), node("Add", ["p", "c"], ["Y"])]
    outputs = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)]
    constants = {"W": sparse(N, K), "c": np.ones((N, 32), np.float32)}
    model = make_model(nodes, [value("X", K, "n")], outputs, constants)
    report = pack(save(model, tmp_path), tmp_path / "packed")
    assert report.speed.inputs == f"inputs X {K}x32"


def test_it_is_not_measured_where_that_is_asked_for(tmp_path):
    path = save(linear([value("X", "n", K)], sparse(K, N)), tmp_path)
    report = pack(path, tmp_path / "packed", measure=False)
    assert report.speed.speedup is None and "not asked for" in report.speed.words


def test_a_model_that_takes_too_long_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("hebbline.export.foreign.comparison.SECONDS", 0.0)
    report = pack(save(linear([value("X", "n", K)], sparse(K, N)), tmp_path), tmp_path / "packed")
    assert "one run of both takes 0 s" in report.speed.words and report.packed_layers


def test_the_command_gives_the_difference_of_the_library_and_how_many_numbers(tmp_path, capsys):
    path = save(linear([value("X", "n", K)], sparse(K, N)), tmp_path)
    assert main(["pack", str(path), "--out", str(tmp_path / "packed")]) == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert "with the library" in printed and f"over {8 * 2 * N} numbers" in printed and "measured:" in printed
    assert main(["pack", str(path), "--out", str(tmp_path / "other"), "--no-measure"]) == 0
    assert "was not measured: it was not asked for" in " ".join(capsys.readouterr().err.split())
