"""What the report says of the whole model's speed, and of the numbers that were compared."""

import json
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper
from pack_models import K, N, make_model, node, save, sparse, value

from hebbline.cli import main
from hebbline.export import pack
from hebbline.export.foreign import Packing, PackOptions, open_document, speed
from hebbline.export.foreign.inputs import input_attempts
from hebbline.export.foreign.packing import WHOLE, Plan, next_plan
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
    assert f"Measured: {found.speedup:.2f} times as fast" in (tmp_path / "packed/report.html").read_text()


def test_sizes_follow_the_objective(tmp_path):
    path = save(linear([value("X", "n", "t", K)], sparse(K, N)), tmp_path)
    model = onnx.load(path)
    shapes = {kind: speed.timing_feeds(model, kind)[0]["X"].shape for kind in ("latency", "throughput")}
    assert shapes == {"latency": (1, 16, K), "throughput": (8, 64, K)}


def test_images_have_the_size_of_images():
    nodes = [node("Conv", ["X", "W"], ["Y"])]
    inputs, outputs = [value("X", "n", 3, 48, "w")], [value("Y", "n", 8, 48, "w")]
    recogniser = make_model(nodes, inputs, outputs, {"W": sparse(8, 3, 1, 1)})
    assert speed.timing_feeds(recogniser, "latency")[0]["X"].shape == (1, 3, 48, 320)
    free = make_model(nodes, [value("X", "n", 3, "h", "w")], [value("Y", "n", 8, "h", "w")], {"W": sparse(8, 3, 1, 1)})
    shapes = [feeds["X"].shape for feeds in speed.timing_feeds(free, "latency")]
    assert shapes[0] == (1, 3, 320, 320) and (1, 3, 48, 320) in shapes
    caches = [value(name, "n", 4, "past", 16) for name in ("X", "Z")]
    assert speed.timing_feeds(linear(caches, sparse(16, N)), "latency")[0]["X"].shape == (1, 4, 16, 16)


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


def test_a_model_that_is_slower_is_packed_by_measured_times_and_else_left(tmp_path):
    path = save(linear([value("X", "n", K)], sparse(K, N)), tmp_path)
    report = pack(path, tmp_path / "packed")
    slower = replace(report, speed=replace(report.speed, original_ms=1.0, packed_ms=2.0))
    assert next_plan(WHOLE, slower) == Plan(by_time=True)
    left = next_plan(Plan(by_time=True), slower)
    assert left is not None and left.fault == "packed, it takes 2 ms here, the original 1"
    for fine in ({"original_ms": 0.1, "packed_ms": 0.2}, {"original_ms": 1.0, "packed_ms": 1.01}, {"packed_ms": None}):
        assert next_plan(WHOLE, replace(report, speed=replace(slower.speed, **fine))) is None
    assert next_plan(WHOLE, replace(slower, options=PackOptions(objective="size"))) is None
    with open_document(path) as document:
        found = Packing(document, PackOptions(), tmp_path, tmp_path, lambda stage: None, Plan(fault=left.fault)).run()
    assert not found.packed_layers and left.fault in found.layers[0].reason and left.fault in found.notes[0]
    assert found.file_bytes == found.original_bytes and found.end_to_end.difference == 0


def test_inputs_of_the_comparison_are_timed_where_no_others_fit(tmp_path):
    """Free sizes of four names, which fit together only where all are 2."""
    nodes = [node("MatMul", ["X", "W"], ["p"]), node("Add", ["p", "Z"], ["Y"])]
    inputs, outputs = [value("X", "a", "b", K), value("Z", "c", "d", N)], [value("Y", "e", "f", N)]
    nodes.insert(0, node("Reshape", ["X", "square"], ["s"]))
    nodes[1].input[0] = "s"
    model = make_model(nodes, inputs, outputs, {"W": sparse(K, N), "square": np.array([2, 2, K])})
    report = pack(save(model, tmp_path), tmp_path / "packed")
    assert report.speed.speedup is not None and report.speed.inputs == f"inputs X 2x2x{K}, Z 2x2x{N}"


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


def test_tokens_are_those_that_the_embedding_has():
    nodes = [node("Cast", ["ids"], ["i"], to=TensorProto.INT64), node("Gather", ["E", "i"], ["x"])]
    nodes += [node("Gather", ["T", "kinds"], ["t"]), node("Add", ["x", "t"], ["s"]), node("MatMul", ["s", "W"], ["Y"])]
    inputs = [value(name, "n", 8, kind=TensorProto.INT32) for name in ("ids", "kinds", "mask")]
    constants = {"E": sparse(300, K), "T": sparse(3, K), "W": sparse(K, N)}
    (feeds,) = input_attempts(make_model(nodes, inputs, [value("Y", "n", 8, N)], constants), 1)[2]
    assert 100 < feeds["ids"].max() < 300 and feeds["kinds"].max() == 2 and set(feeds["mask"].flat) == {1}


def test_inputs_on_which_all_results_are_nan_are_passed_over(tmp_path):
    """NaN agrees with NaN. Where fewer than 8 rows come, 0 / 0 is added to the sum."""
    nodes = [node("MatMul", ["X", "W"], ["p"]), node("Shape", ["X"], ["s"], start=0, end=1)]
    nodes += [
        node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        node("Sub", ["f", "seven"], ["d"]),
        node("Relu", ["d"], ["r"]),
    ]
    nodes += [node("Div", ["r", "r"], ["q"]), node("Mul", ["p", "q"], ["Y"])]
    inputs, outputs = [value("X", "n", K)], [value("Y", "n", N)]
    model = make_model(nodes, inputs, outputs, {"W": sparse(K, N), "seven": np.array([7], np.float32)})
    report = pack(save(model, tmp_path), tmp_path / "packed")
    assert report.end_to_end.outputs == 8 * 8 * N and report.end_to_end.note == "outputs agree"


def test_a_model_that_always_gives_nan_says_so(tmp_path):
    nodes = [node("MatMul", ["X", "W"], ["p"]), node("Mul", ["p", "nan"], ["Y"])]
    constants = {"W": sparse(K, N), "nan": np.array([np.nan], np.float32)}
    model = make_model(nodes, [value("X", "n", K)], [value("Y", "n", N)], constants)
    report = pack(save(model, tmp_path), tmp_path / "packed")
    assert report.end_to_end.outputs == 0 and "its outputs say nothing" in report.end_to_end.note
