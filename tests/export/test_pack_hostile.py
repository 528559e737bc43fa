"""Attempts to make `pack` crash or hang: graphs without end, files that are no models, mutated files."""

import contextlib
import itertools
import resource
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from pack_models import (
    INT64,
    SIZE,
    K,
    N,
    external_tensor,
    hostile_directory,
    make_model,
    node,
    one_layer,
    refused,
    save,
    sparse,
    value,
)

from hebbline.artifacts import InputError
from hebbline.export import pack
from hebbline.export.foreign import comparison, isolation, open_document
from hebbline.export.foreign.bodies import Readers, ValueTypes, all_bodies
from hebbline.export.foreign.inlining import inline_weight_functions
from hebbline.export.foreign.linears import Linear, find_linears


@pytest.fixture
def model_directory(tmp_path):
    return hostile_directory(tmp_path)


def function(name, *calls):
    """A function of one input and output that calls others in a row."""
    names = ["a", *(f"v{place}" for place in range(len(calls) - 1)), "b"]
    nodes = [node(call, [x], [y], domain="f") for call, x, y in zip(calls, names, names[1:], strict=False)]
    nodes = nodes or [node("Relu", ["a"], ["b"])]
    return helper.make_function(
        "f", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    )


def with_functions(*functions):
    nodes = [node(functions[0].name, ["X"], ["h"], domain="f"), node("MatMul", ["h", "W"], ["Y"])]
    inputs, outputs = [value("X", "n", K)], [value("Y", "n", N)]
    return make_model(nodes, inputs, outputs, {"W": sparse(K, N)}, functions=functions, domains=["f"])


STRUCTURES = {
    "cycle": (
        [node("Add", ["X", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("MatMul", ["b", "W"], ["Y"])],
        "a cycle",
    ),
    "itself": ([node("Add", ["X", "h"], ["h"]), node("MatMul", ["h", "W"], ["Y"])], "a cycle"),
    "nothing writes it": ([node("MatMul", ["nowhere", "W"], ["Y"])], "reads 'nowhere'"),
    "written twice": (
        [node("Relu", ["X"], ["h"]), node("Abs", ["X"], ["h"]), node("MatMul", ["h", "W"], ["Y"])],
        "already",
    ),
    "writes a weight": ([node("Relu", ["X"], ["W"]), node("MatMul", ["X", "W"], ["Y"])], "already"),
    "no output": ([node("MatMul", ["X", "W"], ["Z"])], "nothing writes the output 'Y'"),
}


@pytest.mark.parametrize(("nodes", "match"), STRUCTURES.values(), ids=list(STRUCTURES))
def test_graphs_that_are_no_graphs(model_directory, nodes, match):
    refused(model_directory, one_layer(sparse(K, N), nodes), match)


def test_functions_that_never_end(model_directory):
    refused(model_directory, with_functions(function("F", "F")), "calls itself")
    refused(model_directory, with_functions(function("F", "G"), function("G", "F")), "calls itself")
    levels = [function(f"F{level}", f"F{level + 1}", f"F{level + 1}") for level in range(40)]
    refused(model_directory, with_functions(*levels, function("F40")), "functions expand to")
    chain = [function(f"F{level}", f"F{level + 1}") for level in range(500)]
    refused(model_directory, with_functions(*chain, function("F500")), "nest deeper")
    refused(model_directory, with_functions(*reversed(chain), function("F500")), "nest deeper")


def test_chains_of_weights_that_never_end(tmp_path):
    """A thousand steps are followed as far as a chain may be long, and the layer is left."""
    names = ["W", *(f"w{place}" for place in range(1000))]
    nodes = [node("Identity", [x], [y]) for x, y in itertools.pairwise(names)]
    path = save(one_layer(sparse(K, N), [*nodes, node("MatMul", ["X", names[-1]], ["Y"])]), tmp_path)
    assert not pack(path, tmp_path / "out").packed_layers


BYTES = {
    "empty": (b"", "no graph"),
    "text": (b"import os; os.system('true')", "cannot parse it|no graph"),
    "cut off": (one_layer(sparse(K, N)).SerializeToString()[:-100], "cannot parse it"),
    "nested without end": (b"\x3a\x80\x80\x80\x80\x08" * 40, "cannot parse it|no graph"),
}


@pytest.mark.parametrize(("content", "match"), BYTES.values(), ids=list(BYTES))
def test_files_that_are_not_models(model_directory, content, match):
    refused(model_directory, content, match)


def test_a_graph_in_a_graph_in_a_graph(model_directory):
    content = b""
    for _ in range(2000):  # graph.node.attribute.g, as protobuf fields 1, 5 and 6
        for field in (6, 5, 1):
            content = bytes([field << 3 | 2]) + varint(len(content)) + content
    refused(model_directory, bytes([7 << 3 | 2]) + varint(len(content)) + content, "cannot parse it")


def varint(number):
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def test_old_versions(model_directory):
    model = one_layer(sparse(K, N))
    model.opset_import[0].version = 6
    refused(model_directory, model, "opset 6 is older than 7")
    model.opset_import[0].version, model.ir_version = 13, 2
    refused(model_directory, model, "IR version 2")


def test_more_than_protobuf_holds(tmp_path):
    with (tmp_path / "big.onnx").open("wb") as stream:
        stream.truncate(2**31 + 5)  # a hole: it takes no room
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"big\.onnx has 2\.15 GB"):
        pack(tmp_path / "big.onnx", tmp_path / "out")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19  # not read


def test_what_exhausts_memory_takes_only_its_own_process(model_directory):
    """The graph asks for 4 TB of zeros, which stays within a process of limited memory."""
    nodes = [
        node("ConstantOfShape", ["shape"], ["z"]),
        node("ReduceSum", ["z"], ["s"], keepdims=0),
        node("MatMul", ["X", "W"], ["h"]),
        node("Add", ["h", "s"], ["Y"]),
    ]
    model = make_model(
        nodes, [value("X", "n", K), value("shape", 1, kind=INT64)], [value("Y", "n", N)], {"W": sparse(K, N)}
    )
    model.graph.node[0].input[0] = "giant"
    model.graph.initializer.append(numpy_helper.from_array(np.array([10**12]), "giant"))
    path = model_directory / "model.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        report = pack(path, model_directory / "out")
    except InputError as error:
        assert "ONNX Runtime" in str(error)
    else:
        assert "does not run on made-up inputs" in report.end_to_end.note


def test_what_never_returns_is_ended(model_directory, monkeypatch):
    monkeypatch.setattr(isolation, "SECONDS", 2)
    body = helper.make_graph(
        [node("Identity", ["go"], ["going"]), node("Relu", ["state"], ["next"])],
        "body",
        [value("step", kind=INT64), value("go", kind=TensorProto.BOOL), value("state", "n", K)],
        [value("going", kind=TensorProto.BOOL), value("next", "n", K)],
    )
    nodes = [node("Loop", ["", "true", "X"], ["h"], body=body), node("MatMul", ["h", "W"], ["Y"])]
    model = make_model(nodes, [value("X", "n", K)], [value("Y", "n", N)], {"W": sparse(K, N), "true": np.array(True)})
    refused(model_directory, model, "did not finish within 2 s")


def test_a_crash_of_the_runtime_is_an_error_of_the_file(model_directory, tmp_path, monkeypatch):
    """The process that runs the model is replaced by one that dies as a crash does."""
    dying = tmp_path / "dying.py"
    dying.write_text("import os\nprint(0, flush=True)\nos.kill(os.getpid(), 11)\n")
    monkeypatch.setattr(comparison, "_RUNNER", dying)
    refused(model_directory, one_layer(sparse(K, N)), r"died running it \(signal 11")


def test_unloadable_graphs_are_refused(model_directory):
    refused(model_directory, one_layer(sparse(K, N), [node("MatMul", ["X", "W", "X"], ["Y"])]), "cannot load it")
    bad = make_model(
        [node("MatMul", ["X", "W"], ["Y"])], [value("X", "n", K + 1)], [value("Y", "n", N)], {"W": sparse(K, N)}
    )
    refused(model_directory, bad, "cannot load it")


def test_names_cannot_write_to_the_terminal(model_directory):
    """Control characters of a name stay out of the message, and a name of megabytes is cut."""
    bad = one_layer(None, [node("MatMul", ["X", "\x1b[2Jgone" + "x" * 10**6], ["Y"])])
    path = model_directory / "model.onnx"
    path.write_bytes(bad.SerializeToString())
    command = [sys.executable, "-m", "hebbline", "pack", str(path), "--out", str(model_directory / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert "\x1b" not in done.stderr and "gone" in done.stderr and len(done.stderr) < 1000


def test_report_escapes_names(tmp_path):
    model = make_model(
        [node("MatMul", ["X", "<script>W"], ["Y"], name="<img src=x onerror=alert(1)>")],
        [value("X", "n", K)],
        [value("Y", "n", N)],
        {"<script>W": sparse(K, N)},
    )
    pack(save(model, tmp_path), tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    assert "<script>" not in page and "<img src=x" not in page and "&lt;script&gt;W" in page


def fuzzed_models():
    """Sound models that between them have everything that the reader looks at."""
    weight = sparse(K, N)
    yield one_layer(weight).SerializeToString()
    yield with_functions(function("F", "G"), function("G")).SerializeToString()
    body = helper.make_graph([node("MatMul", ["X", "W"], ["y"])], "then", [], [value("y", "n", N)])
    other = helper.make_graph([node("Gemm", ["X", "W"], ["z"], alpha=2.0)], "else", [], [value("z", "n", N)])
    nodes = [
        node("DequantizeLinear", ["Q", "s"], ["d"], axis=0),
        node("Transpose", ["d"], ["W"], perm=[1, 0]),
        node("If", ["c"], ["Y"], then_branch=body, else_branch=other),
    ]
    constants = {"Q": (weight.T * 10).astype(np.int8), "s": np.full(N, 0.1, np.float32), "c": np.array(True)}
    yield make_model(nodes, [value("X", "n", K)], [value("Y", "n", N)], constants, 19).SerializeToString()
    external = [node("Gemm", ["X", "W", "C"], ["Y"], transA=0)]
    model = make_model(
        external, [value("X", "n", K)], [value("Y", "n", N)], {"W": external_tensor("weights.bin", 0, SIZE)}
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones(N, np.float32), "C"))
    yield model.SerializeToString()


SOUND = list(fuzzed_models())


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SOUND), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_files_are_refused_or_read(model_directory, content, changes):
    """Whatever the bytes say: an error of ours, or a model whose layers are found and whose weights are read."""
    changed = bytearray(content)
    for place, byte in changes:
        changed[int(place * (len(changed) - 1))] = byte
    path = model_directory / "model.onnx"
    path.write_bytes(changed)
    try:
        with open_document(path) as document:
            document = inline_weight_functions(document)
            bodies = all_bodies(document.proto)
            layers = find_linears(document, bodies, Readers(bodies), ValueTypes(document.proto, bodies))
            for layer in layers:
                if isinstance(layer, Linear):
                    with contextlib.suppress(ValueError):  # becomes the reason in the report
                        assert layer.weight_matrix(document).ndim == 2
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_dequantization_trees_are_not_walked(tmp_path):
    """Each node reads the one before three times: 3^30 ways to the weight."""
    nodes = [node("DequantizeLinear", ["W", "W", "W"], ["d0"])]
    nodes += [node("DequantizeLinear", [f"d{i}"] * 3, [f"d{i + 1}"]) for i in range(30)]
    path = tmp_path / "model.onnx"
    path.write_bytes(one_layer(sparse(K, N), [*nodes, node("MatMul", ["X", "d30"], ["Y"])]).SerializeToString())
    with open_document(path) as document:
        bodies = all_bodies(document.proto)
        assert find_linears(document, bodies, Readers(bodies), ValueTypes(document.proto, bodies)) == []


def test_a_block_that_claims_to_be_endless(tmp_path):
    tensor = numpy_helper.from_array((sparse(K, N) * 20).astype(np.int8), "Q")
    dequantize = node("DequantizeLinear", ["Q", "s"], ["W"], axis=1, block_size=2**40)
    constants = {"Q": tensor, "s": np.ones((K, 1), np.float32)}
    nodes = [dequantize, node("MatMul", ["X", "W"], ["Y"])]
    path = save(make_model(nodes, [value("X", "n", K)], [value("Y", "n", N)], constants, 21), tmp_path)
    with open_document(path) as document:
        bodies = all_bodies(document.proto)
        (layer,) = find_linears(document, bodies, Readers(bodies), ValueTypes(document.proto, bodies))
        np.testing.assert_array_equal(layer.weight_matrix(document).T, (sparse(K, N) * 20).astype(np.int8))
