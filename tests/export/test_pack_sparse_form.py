"""Weights in ONNX's own sparse form: packed from every way to write them, refused by name where they are unsound."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pack_models import (
    K,
    N,
    check_packed,
    dense,
    exact_session,
    hostile_directory,
    initializer_names,
    make_model,
    node,
    op_types,
    refused,
    save,
    sparse,
    value,
)

from hebbline.export import pack

WEIGHT = sparse(K, N)
DENSE = [node("MatMul", ["X", "W"], ["Y"])]


def sparse_tensor(array, name, coordinates):
    places = np.argwhere(array) if coordinates else np.flatnonzero(array)
    values = numpy_helper.from_array(array[array != 0], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64), "places"), array.shape)


def model_of(tensor, kind, product=None):
    nodes = product or [node("MatMul", ["X", "W"], ["Y"])]
    if kind == "constant":
        nodes = [node("Constant", [], ["W"], sparse_value=tensor), *nodes]
    model = make_model(nodes, [value("X", "n", K)], [value("Y", "n", N)])
    if kind == "initializer":
        model.graph.sparse_initializer.append(tensor)
    return model


@pytest.mark.parametrize("kind", ["initializer", "constant"])
@pytest.mark.parametrize("coordinates", [False, True])
def test_it_is_packed_as_it_is(kind, coordinates, tmp_path):
    path = save(model_of(sparse_tensor(WEIGHT, "W", coordinates), kind), tmp_path)
    report = pack(path, tmp_path / "packed")
    packed = onnx.load(tmp_path / "packed/model.onnx")
    assert op_types(packed) == ["BitmaskLinear"] and not packed.graph.sparse_initializer
    (layer,) = report.packed_layers
    assert layer.links == np.count_nonzero(WEIGHT) and layer.bytes < layer.stored_bytes
    x = dense(3, K)
    actual = exact_session(tmp_path / "packed/model.onnx").run(None, {"X": x})[0]
    np.testing.assert_allclose(actual, x @ WEIGHT, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["initializer", "constant"])
def test_behind_a_transpose_and_in_external_data(kind, tmp_path):
    tensor = sparse_tensor(WEIGHT.T.copy(), "V", False)
    chain = [node("Transpose", ["V"], ["W"], perm=[1, 0]), *DENSE]
    model = model_of(tensor, kind, chain)
    if kind == "constant":
        model.graph.node[0].output[0] = "V"
    else:  # the values of the tensor lie outside of the model
        (tmp_path / "weights.bin").write_bytes(model.graph.sparse_initializer[0].values.raw_data)
        values = model.graph.sparse_initializer[0].values
        length = str(len(values.raw_data))
        values.ClearField("raw_data")
        values.data_location = TensorProto.EXTERNAL
        for key, entry in (("location", "weights.bin"), ("offset", "0"), ("length", length)):
            values.external_data.add(key=key, value=entry)
    path = save(model, tmp_path)
    report = pack(path, tmp_path / "packed")
    packed = onnx.load(tmp_path / "packed/model.onnx")
    assert op_types(packed) == ["BitmaskLinear"] and not packed.graph.sparse_initializer
    assert "the result of Transpose" in report.layers[0].reason


def test_a_weight_that_another_node_reads_stays(tmp_path):
    model = model_of(sparse_tensor(WEIGHT, "W", False), "initializer")
    model.graph.node.append(node("Relu", ["W"], ["Z"]))
    model.graph.output.append(value("Z", K, N))
    report = pack(save(model, tmp_path), tmp_path / "packed")
    packed = onnx.load(tmp_path / "packed/model.onnx")
    assert [item.values.name for item in packed.graph.sparse_initializer] == ["W"]
    assert "'Z' (Relu) also reads the dense weight" in report.layers[0].reason


def test_dense_and_sparse_in_one_file(tmp_path):
    nodes = [node("MatMul", ["X", "W"], ["a"]), node("MatMul", ["a", "V"], ["Y"])]
    model = make_model(nodes, [value("X", "n", K)], [value("Y", "n", K)], {"V": sparse(N, K)})
    model.graph.sparse_initializer.append(sparse_tensor(WEIGHT, "W", True))
    report = pack(save(model, tmp_path), tmp_path / "packed")
    assert len(report.packed_layers) == 2


def changed(values=None, places=None, dims=(K, N), coordinates=False, kind=np.int64):
    tensor = sparse_tensor(WEIGHT, "W", coordinates)
    values = numpy_helper.to_array(tensor.values) if values is None else values
    places = numpy_helper.to_array(tensor.indices).copy() if places is None else places
    tensors = numpy_helper.from_array(values, "W"), numpy_helper.from_array(places.astype(kind), "places")
    result = onnx.SparseTensorProto(dims=dims)
    result.values.CopyFrom(tensors[0])
    result.indices.CopyFrom(tensors[1])
    return result


LINEAR = np.flatnonzero(WEIGHT)
PAIRS = np.argwhere(WEIGHT)
MALFORMED = {
    "beyond the end": (changed(places=np.r_[LINEAR[:-1], K * N]), "index lies outside"),
    "before the start": (changed(places=np.r_[-1, LINEAR[1:]]), "index lies outside"),
    "a column beyond": (changed(places=np.r_[PAIRS[:-1], [[K - 1, N]]]), "index lies outside"),
    "twice": (changed(places=np.r_[LINEAR[:-1], LINEAR[-2]]), "occurs twice"),
    "out of order": (changed(places=LINEAR[::-1]), "not ascending"),
    "too few": (changed(places=LINEAR[:-1]), "must be int64"),
    "int32": (changed(kind=np.int32), "must be int64"),
    "three coordinates": (changed(places=np.c_[PAIRS, PAIRS[:, :1]]), "must be int64"),
    "values of two dimensions": (changed(values=WEIGHT[WEIGHT != 0][:, None]), "must be one row"),
    "no dimensions": (changed(dims=()), "dimensions"),
    "a negative dimension": (changed(dims=(-K, N)), "dimensions"),
    "endless": (changed(dims=(1 << 31, 1 << 31)), "too large for"),
    "more than 64 bits": (changed(dims=(1 << 40, 1 << 40)), "too large for"),
}


@pytest.mark.parametrize("kind", ["initializer", "constant"])
@pytest.mark.parametrize(("tensor", "match"), MALFORMED.values(), ids=list(MALFORMED))
def test_what_is_unsound_is_refused_by_tensor(kind, tensor, match, tmp_path):
    refused(hostile_directory(tmp_path), model_of(tensor, kind), f"sparse tensor 'W': .*{match}")


def test_one_name_for_a_dense_and_a_sparse_tensor(tmp_path):
    model = model_of(sparse_tensor(WEIGHT, "W", False), "initializer")
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT, "W"))
    refused(hostile_directory(tmp_path), model, "have the same name")


def test_the_sparse_form_packs_to_what_the_dense_form_does(tmp_path):
    """A dense weight of the same values gives the same packed tensors."""
    model = make_model(DENSE, [value("X", "n", K)], [value("Y", "n", N)], {"W": WEIGHT})
    _, packed = check_packed(model, tmp_path, {"X": dense(3, K)})
    (tmp_path / "other").mkdir()
    path = save(model_of(sparse_tensor(WEIGHT, "W", False), "initializer"), tmp_path / "other")
    pack(path, tmp_path / "other/packed")
    twin = onnx.load(tmp_path / "other/packed/model.onnx")
    assert initializer_names(packed) == initializer_names(twin)
    for name in initializer_names(packed):
        first, second = (
            next(numpy_helper.to_array(item) for item in model.graph.initializer if item.name == name)
            for model in (packed, twin)
        )
        np.testing.assert_array_equal(first, second)
