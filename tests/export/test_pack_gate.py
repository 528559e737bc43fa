"""What the comparison of whole models lets through and what it refuses, and files that packing would make larger."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pack_models import K, N, check_packed, dense, make_model, node, save, sparse, value

from hebbline.artifacts import CheckError
from hebbline.cli import main
from hebbline.export import pack
from hebbline.export.foreign import packing

WIDE = 256


def detector(offset=-15.0, seed=0):
    """As text detectors end: two layers, then a Sigmoid, which sees nothing anywhere."""
    constants = {
        "W": sparse(WIDE, N, seed=seed),
        "V": sparse(N, N, density=0.5) / 20,
        "c": np.full(N, offset, np.float32),
    }
    nodes = [
        node("MatMul", ["X", "W"], ["h"], name="wide"),
        node("Tanh", ["h"], ["t"]),
        node("MatMul", ["t", "V"], ["p"]),
        node("Add", ["p", "c"], ["logits"]),
        node("Sigmoid", ["logits"], ["s"]),
        node("Transpose", ["s"], ["Y"]),
    ]
    return make_model(nodes, [value("X", "n", WIDE)], [value("Y", N, "n")], constants)


def test_a_model_whose_sigmoids_are_all_but_0(tmp_path):
    """Its largest output is some steps of a Sigmoid's rounding, which is no error of a packed layer."""
    path = save(detector(), tmp_path)
    x = np.random.default_rng(0).standard_normal((64, WIDE)).astype(np.float32)
    report, _ = check_packed(path, tmp_path, {"X": x}, tolerance=2.0**-20, reference=False)
    assert len(report.packed_layers) == 2 and report.end_to_end.note == "outputs agree"


def test_a_wrong_layer_shows_where_the_sigmoid_hides_it(tmp_path, monkeypatch):
    """The outputs of the two are equal to 1e-6; what goes into the Sigmoid is not."""
    compare = packing.compare_models

    def with_another(source, original, packed, proto, *given, **named):
        onnx.save(detector(seed=1), original)
        return compare(source, original, packed, proto, *given, **named)

    monkeypatch.setattr(packing, "compare_models", with_another)
    with pytest.raises(CheckError, match="differ"):
        pack(save(detector(), tmp_path), tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def is_the_same(path, other):
    """But for where the weights are kept."""
    first, second = onnx.load(path), onnx.load(other)
    arrays = [[numpy_helper.to_array(item) for item in model.graph.initializer] for model in (first, second)]
    del first.graph.initializer[:], second.graph.initializer[:]
    equal = all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))
    return equal and first.SerializeToString() == second.SerializeToString()


def test_a_model_in_which_nothing_is_packed_stays_as_it_is(tmp_path):
    """An old opset would be converted for packed layers only."""
    nodes = [node("MatMul", ["X", "W"], ["h"]), node("Relu", ["h"], ["Y"])]
    model = make_model(nodes, [value("X", "n", K)], [value("Y", "n", N)], {"W": dense(K, N)}, opset=11, ir_version=6)
    path = save(model, tmp_path)
    report = pack(path, tmp_path / "packed")
    assert is_the_same(path, tmp_path / "packed/model.onnx") and report.opset == 11
    assert report.file_bytes == report.original_bytes and report.notes == ["the model is as it was: no layer is packed"]


def test_a_file_that_would_grow_stays_as_it_is(tmp_path, monkeypatch):
    """A layer of some bytes less does not make up for the operators' definitions, in a file of any size."""
    monkeypatch.setattr(packing, "_SMALL_FILE", 0)
    nodes = [node("MatMul", ["X", "W"], ["Y"], name="fc")]
    path = save(make_model(nodes, [value("X", "n", K)], [value("Y", "n", N)], {"W": sparse(K, N)}), tmp_path)
    report = pack(path, tmp_path / "packed")
    (layer,) = report.layers
    assert not layer.packed and "the file would take" in layer.reason and layer.bytes == layer.stored_bytes
    assert is_the_same(path, tmp_path / "packed/model.onnx")


def test_a_converted_file_has_no_descriptions_more_than_before(tmp_path):
    nodes = [node("MatMul", ["X", "W"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "V"], ["Y"])]
    constants = {"W": sparse(K, N), "V": sparse(N, K)}
    model = make_model(nodes, [value("X", "n", K)], [value("Y", "n", K)], constants, opset=9, ir_version=4)
    check_packed(model, tmp_path, {"X": dense(3, K)})
    assert not onnx.load(tmp_path / "packed/model.onnx").graph.value_info


def test_the_console_gives_layers_left_for_one_reason_in_one_line(tmp_path, capsys):
    names = [f"W{place}" for place in range(5)]
    values = ["X", *(f"h{place}" for place in range(4)), "Y"]
    nodes = [
        node("MatMul", [values[place], name], [values[place + 1]], name=f"fc{place}")
        for place, name in enumerate(names)
    ]
    weights = [dense(K, K, seed=place) if place % 2 else sparse(K, K, seed=place) for place in range(5)]
    model = make_model(nodes, [value("X", "n", K)], [value("Y", "n", K)], dict(zip(names, weights, strict=True)))
    assert main(["pack", str(save(model, tmp_path)), "--out", str(tmp_path / "packed"), "--no-measure"]) == 0
    printed = capsys.readouterr().err.split()
    assert "fc1" in printed and "more" in printed and "fc3" not in printed and {"fc0", "fc2", "fc4"} < set(printed)
