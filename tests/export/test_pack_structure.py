"""Layers in subgraphs and functions, and all that packing leaves as it is."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pack_models import (
    BOOL,
    INT64,
    K,
    N,
    check_packed,
    dense,
    initializer_names,
    layer_model,
    make_model,
    node,
    op_types,
    save,
    sparse,
    value,
)

from hebbline.artifacts import CheckError, InputError, read_manifest
from hebbline.export import pack
from hebbline.export.foreign import deciding


def branch(name, nodes, *initializers):
    tensors = [numpy_helper.from_array(array, title) for title, array in initializers]
    return helper.make_graph(nodes, name, [], [value(f"{name}_out", "n", N)], tensors)


def test_branches_of_an_if(tmp_path):
    """One weight is the outer graph's, one the branch's own, and names of the two branches are the same."""
    then = branch("then", [node("MatMul", ["X", "W"], ["then_out"], name="product")])
    other = branch("else", [node("MatMul", ["X", "V"], ["else_out"], name="product")], ("V", sparse(K, N, seed=1)))
    nodes = [node("If", ["C"], ["Y"], name="choice", then_branch=then, else_branch=other)]
    inputs = [value("X", "n", K), value("C", kind=BOOL)]
    model = make_model(nodes, inputs, [value("Y", "n", N)], {"W": sparse(K, N)})
    report, packed = check_packed(model, tmp_path, {"X": dense(3, K), "C": np.array(False)})
    assert {layer.name for layer in report.layers} == {"choice/then_branch/product", "choice/else_branch/product"}
    assert all(layer.packed for layer in report.layers) and "W" not in initializer_names(packed)
    for attribute in packed.graph.node[0].attribute:
        assert [item.op_type for item in attribute.g.node] == ["BitmaskLinear"] and not attribute.g.initializer


def test_bodies_of_loop_and_scan(tmp_path):
    body = helper.make_graph(
        [node("MatMul", ["state", "W"], ["p"]), node("Add", ["p", "B"], ["next"]), node("Identity", ["go"], ["going"])],
        "body",
        [value("step", kind=INT64), value("go", kind=BOOL), value("state", 3, K)],
        [value("going", kind=BOOL), value("next", 3, K)],
    )
    scanned = helper.make_graph(
        [node("Gemm", ["row", "W"], ["out"])], "scanned", [value("row", 1, K)], [value("out", 1, K)]
    )
    nodes = [
        node("Loop", ["count", "", "X"], ["looped"], body=body),
        node("Unsqueeze", ["looped", "one"], ["rows"]),
        node("Scan", ["rows"], ["Y"], body=scanned, num_scan_inputs=1),
    ]
    constants = {"W": sparse(K, K, density=0.1), "B": dense(K), "count": np.array(3), "one": np.array([1])}
    model = make_model(nodes, [value("X", 3, K)], [value("Y", 3, 1, K)], constants)
    report, packed = check_packed(model, tmp_path, {"X": dense(3, K)})
    assert [layer.packed for layer in report.layers] == [True, True] and "W" not in initializer_names(packed)


OPSETS = [helper.make_opsetid("", 18)]


def test_functions_with_weights_of_their_own_stay_functions(tmp_path):
    constant = node("Constant", [], ["w"], value=numpy_helper.from_array(sparse(K, K)))
    nodes = [constant, node("MatMul", ["x", "w"], ["y"], name="inner")]
    function = helper.make_function("local", "Layer", ["x"], ["y"], nodes, OPSETS)
    calls = [node("Layer", ["X"], ["h"], domain="local"), node("Layer", ["h"], ["Y"], domain="local")]
    model = make_model(calls, [value("X", "n", K)], [value("Y", "n", K)], functions=[function], domains=["local"])
    report, packed = check_packed(model, tmp_path, {"X": dense(3, K)})
    assert [layer.name for layer in report.layers] == ["function local.Layer/inner"]
    assert op_types(packed) == ["Layer", "Layer"]
    (layer,) = [item for item in packed.functions if item.domain == "local"]
    assert [item.op_type for item in layer.node] == ["Constant", "Constant", "BitmaskLinear"]


def test_functions_that_take_weights_are_inlined(tmp_path):
    """Through two levels: the outer function hands its argument on."""
    inner = helper.make_function("local", "Product", ["x", "w"], ["y"], [node("MatMul", ["x", "w"], ["y"])], OPSETS)
    nodes = [
        node("Transpose", ["w"], ["v"]),
        node("Product", ["x", "v"], ["p"], domain="local"),
        node("Add", ["p", "b"], ["y"]),
    ]
    outer = helper.make_function(
        "local", "Layer", ["x", "w", "b"], ["y"], nodes, [*OPSETS, helper.make_opsetid("local", 1)]
    )
    kept = helper.make_function("local", "Twice", ["x"], ["y"], [node("Add", ["x", "x"], ["y"])], OPSETS)
    calls = [node("Layer", ["X", "W", "B"], ["h"], domain="local"), node("Twice", ["h"], ["Y"], domain="local")]
    model = make_model(
        calls,
        [value("X", "n", K)],
        [value("Y", "n", N)],
        {"W": sparse(N, K), "B": dense(N)},
        functions=[inner, outer, kept],
        domains=["local"],
    )
    report, packed = check_packed(model, tmp_path, {"X": dense(3, K)})
    assert op_types(packed) == ["BitmaskLinear", "Twice"] and "local.Layer, local.Product" in report.notes[0]
    assert [item.name for item in packed.functions] == ["BitmaskLinear", "Twice"]


def test_a_product_whose_attributes_are_the_callers_is_left(tmp_path):
    """One body, two values of alpha: there is no one layer."""
    gemm = node("Gemm", ["x", "w"], ["y"], name="inner")
    reference = onnx.AttributeProto(name="alpha", ref_attr_name="scale", type=onnx.AttributeProto.FLOAT)
    gemm.attribute.append(reference)
    constant = node("Constant", [], ["w"], value=numpy_helper.from_array(sparse(K, K)))
    function = helper.make_function("local", "Scaled", ["x"], ["y"], [constant, gemm], OPSETS, ["scale"])
    calls = [
        node("Scaled", ["X"], ["h"], domain="local", scale=1.0),
        node("Scaled", ["h"], ["Y"], domain="local", scale=0.5),
    ]
    model = make_model(calls, [value("X", "n", K)], [value("Y", "n", K)], functions=[function], domains=["local"])
    report, packed = check_packed(model, tmp_path, {"X": dense(3, K)})
    assert "each caller may give others" in report.layers[0].reason and packed.functions == model.functions


def test_everything_else_of_the_file_is_kept(tmp_path):
    nodes = [
        node("MatMul", ["X", "W"], ["h"], name="layer one", doc_string="the first"),
        node("Gelu", ["h"], ["Y"], name="act", domain="com.microsoft"),
    ]
    model = make_model(
        nodes,
        [value("X", "batch", "seq", K)],
        [value("Y", "batch", "seq", N)],
        {"W": sparse(K, N), "unused": dense(3)},
        domains=["com.microsoft"],
    )
    model.producer_name, model.doc_string, model.model_version = "somebody", "about", 7
    helper.set_model_props(model, {"author": "someone", "license": "theirs"})
    model.graph.value_info.append(value("h", "batch", "seq", N))
    model.graph.node[0].metadata_props.add(key="scope", value="encoder")
    _, packed = check_packed(model, tmp_path, {"X": dense(2, 3, K)}, reference=False)
    assert (packed.producer_name, packed.doc_string, packed.model_version) == ("somebody", "about", 7)
    first, second = packed.graph.node
    assert (first.name, first.doc_string, first.metadata_props[0].value) == ("layer one", "the first", "encoder")
    assert second == model.graph.node[1] and packed.graph.value_info == model.graph.value_info
    assert "unused" in initializer_names(packed) and packed.graph.name == model.graph.name
    domains = {entry.domain: entry.version for entry in packed.opset_import}
    assert domains == {"": 18, "com.microsoft": 1, "ai.hebbline": 1}


def test_new_names_never_meet_those_of_the_file(tmp_path):
    nodes = [node("MatMul", ["X", "W"], ["W.values"]), node("Mul", ["W.values", "W.mask"], ["Y"])]
    model = layer_model(nodes, sparse(K, N), **{"W.mask": dense(N)})
    check_packed(model, tmp_path, {"X": dense(3, K)})


def test_a_packed_file_can_be_packed_again(tmp_path):
    model = layer_model(
        [node("MatMul", ["X", "W"], ["h"]), node("Gemm", ["h", "V"], ["Y"])], sparse(K, N), V=dense(N, N)
    )
    check_packed(model, tmp_path, {"X": dense(3, K)})
    again = pack(tmp_path / "packed/model.onnx", tmp_path / "again")
    assert again.file_bytes <= again.original_bytes and not again.packed_layers


def test_external_data_goes_in_and_comes_out(tmp_path):
    nodes = [node("MatMul", ["X", "W"], ["h"]), node("Mul", ["h", "S"], ["Y"])]
    model = layer_model(nodes, sparse(K, N), S=dense(N))
    path = save(model, tmp_path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert onnx.load(path, load_external_data=False).graph.initializer[0].data_location == TensorProto.EXTERNAL
    _, packed = check_packed(path, tmp_path, {"X": dense(3, K)})
    assert "BitmaskLinear" in op_types(packed)
    assert set(read_manifest(tmp_path / "packed").files) == {
        "model.onnx",
        "model.onnx.data",
        "report.html",
        "report.json",
    }


def test_a_model_that_disagrees_is_not_published(tmp_path, monkeypatch):
    """One value of the packed form off by a little: the gate must see it."""
    encode = deciding.Decider._packed_weight

    def encode_wrong(self, *arguments):
        packed = encode(self, *arguments)

        def tensors():
            right = packed.encode()
            right["values"][3] += 0.1
            return right

        return deciding.replace(packed, encode=tensors)

    monkeypatch.setattr(deciding.Decider, "_packed_weight", encode_wrong)
    path = save(layer_model([node("MatMul", ["X", "W"], ["Y"])], sparse(K, N)), tmp_path)
    with pytest.raises(CheckError, match="decoding does not give back its weights"):
        pack(path, tmp_path / "packed")
    monkeypatch.setattr(deciding.Decider, "_check_layer", lambda *arguments: None)
    with pytest.raises(CheckError, match="outputs of the packed model differ"):
        pack(path, tmp_path / "packed")
    assert [item.name for item in tmp_path.iterdir()] == ["foreign.onnx"]


def test_a_taken_directory_is_refused_before_any_work(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not published by hebbline"):
        pack(tmp_path / "foreign.onnx", tmp_path / "taken")
