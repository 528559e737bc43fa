"""What is found and rewritten: each form of a linear layer, and what must stay as it is."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pack_models import (
    FLOAT,
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

from hebbline.export import pack


def test_matmul_of_any_leading_dimensions(tmp_path):
    model = layer_model([node("MatMul", ["X", "W"], ["Y"])], sparse(K, N), ("a", "b", "c", K), ("a", "b", "c", N))
    report, packed = check_packed(model, tmp_path, {"X": dense(2, 3, 4, K)})
    assert op_types(packed) == ["BitmaskLinear"] and "W" not in initializer_names(packed)
    (layer,) = report.layers
    assert (layer.out_features, layer.in_features, layer.links) == (N, K, np.count_nonzero(sparse(K, N)))
    assert layer.weight_error == 0 and report.end_to_end.difference <= 1e-6


def test_matmul_of_a_vector(tmp_path):
    model = layer_model([node("MatMul", ["X", "W"], ["Y"])], sparse(K, N), (K,), (N,))
    check_packed(model, tmp_path, {"X": dense(K)})


def gallery(cases, tmp_path, **options):
    """Many small layers in one model, packed at once. A case: its nodes from X to Y, the shape of X, its constants."""
    nodes, inputs, outputs, constants, feeds = [], [], [], {}, {}
    for place, (parts, x_shape, own) in enumerate(cases):
        for part in parts:
            number(part.input, place)
            number(part.output, place)
            nodes.append(part)
        inputs.append(value(f"X{place}", *x_shape))
        outputs.append(helper.make_tensor_value_info(f"Y{place}", FLOAT, None))
        constants |= {f"{name}{place}": array for name, array in own.items()}
        feeds[f"X{place}"] = dense(*x_shape, seed=place)
    model = onnx.shape_inference.infer_shapes(make_model(nodes, inputs, outputs, constants, 21))
    del model.graph.value_info[:]
    return check_packed(model, tmp_path, feeds, **options)


def number(names, place):
    names[:] = [f"{name}{place}" for name in names]


def test_weight_on_the_left(tmp_path):
    shapes = [(K,), (K, 5), (2, K, 5), (2, 3, K, 5)]
    cases = [([node("MatMul", ["W", "X"], ["Y"])], shape, {"W": sparse(N, K)}) for shape in shapes]
    report, packed = gallery(cases, tmp_path)
    assert len(report.packed_layers) == 4
    assert op_types(packed) == ["BitmaskLinear"] + ["Transpose", "BitmaskLinear", "Transpose"] * 3


def test_weight_with_a_leading_one(tmp_path):
    model = layer_model([node("MatMul", ["X", "W"], ["Y"])], sparse(1, K, N), (2, "n", K), (2, "n", N))
    _, packed = check_packed(model, tmp_path, {"X": dense(2, 3, K)})
    assert op_types(packed) == ["BitmaskLinear"]


GEMMS = {
    "plain": {},
    "transB": {"transB": 1},
    "transA": {"transA": 1},
    "both": {"transA": 1, "transB": 1},
    "alpha": {"alpha": 0.3},
    "beta": {"beta": 0.7},
    "all": {"transA": 1, "transB": 1, "alpha": -1.7, "beta": 0.3},
}
ADDENDS = {"none": None, "row": (N,), "1 x row": (1, N), "scalar": (), "column": (5, 1), "matrix": (5, N)}


def test_gemm(tmp_path):
    cases = []
    for attributes in GEMMS.values():
        for addend in ("row", "matrix"):
            x_shape = (K, 5) if attributes.get("transA") else (5, K)
            weight = sparse(N, K) if attributes.get("transB") else sparse(K, N)
            gemm = node("Gemm", ["X", "W", "C"], ["Y"], **attributes)
            cases.append(([gemm], x_shape, {"W": weight, "C": dense(*ADDENDS[addend])}))
    report, packed = gallery(cases, tmp_path)
    assert len(report.packed_layers) == len(cases) and "Gemm" not in op_types(packed)
    # Every matrix is added; of the rows, only those that follow a product times alpha are.
    assert op_types(packed).count("Add") == len(GEMMS) + 2


def test_gemm_with_the_weight_on_the_left(tmp_path):
    cases = []
    for addend in ADDENDS.values():
        inputs = ["W", "X"] + ([] if addend is None else ["C"])
        constants = {"W": sparse(5, K)} | ({} if addend is None else {"C": dense(*addend)})
        cases.append(([node("Gemm", inputs, ["Y"], transB=1, beta=2.0)], (N, K), constants))
    report, _ = gallery(cases, tmp_path)
    assert len(report.packed_layers) == len(cases)


def test_gemm_with_a_computed_addend(tmp_path):
    nodes = [node("Relu", ["Z"], ["C"]), node("Gemm", ["X", "W", "C"], ["Y"], beta=0.5)]
    model = make_model(nodes, [value("X", "n", K), value("Z", "n", N)], [value("Y", "n", N)], {"W": sparse(K, N)})
    check_packed(model, tmp_path, {"X": dense(3, K), "Z": dense(3, N)})


BIASES = {
    "row": ((N,), True),
    "row of rank 3": ((1, 1, N), True),
    "scalar": ((1,), True),
    "more rank than the product": ((1, 1, 1, N), False),
    "per token": ((1, 3, 1), False),
}


def test_bias_is_folded_only_where_it_is_one(tmp_path):
    cases = []
    for shape, _ in BIASES.values():
        for order in (["p", "B"], ["B", "p"]):
            nodes = [node("MatMul", ["X", "W"], ["p"]), node("Add", order, ["Y"])]
            cases.append((nodes, (2, 3, K), {"W": sparse(K, N), "B": dense(*shape)}))
    _, packed = gallery(cases, tmp_path)
    expected = []
    for _, folded in BIASES.values():
        expected += 2 * (["BitmaskLinear"] if folded else ["BitmaskLinear", "Add"])
    assert op_types(packed) == expected


def test_a_product_that_is_read_twice_keeps_its_add(tmp_path):
    nodes = [node("MatMul", ["X", "W"], ["p"]), node("Add", ["p", "B"], ["q"]), node("Mul", ["p", "q"], ["Y"])]
    _, packed = check_packed(layer_model(nodes, sparse(K, N), B=dense(N)), tmp_path, {"X": dense(3, K)})
    assert op_types(packed) == ["BitmaskLinear", "Add", "Mul"]


def test_a_product_that_is_an_output_keeps_its_add(tmp_path):
    nodes = [node("MatMul", ["X", "W"], ["P"]), node("Add", ["P", "B"], ["Y"])]
    outputs = [value("P", "n", N), value("Y", "n", N)]
    model = make_model(nodes, [value("X", "n", K)], outputs, {"W": sparse(K, N), "B": dense(N)})
    _, packed = check_packed(model, tmp_path, {"X": dense(3, K)})
    assert op_types(packed) == ["BitmaskLinear", "Add"]


def chain_cases():
    """The steps, the nodes from the stored tensors to "w" [K, N], and the stored tensors."""
    weight = sparse(N, K, density=0.1)
    scales = np.linspace(0.01, 0.03, N).astype(np.float32)
    integers = np.clip(np.round(weight / scales[:, None]), -127, 127).astype(np.int8)
    nibbles = np.clip(np.round(weight * 3), -7, 7).astype(int).reshape(-1).tolist()
    shifted = np.clip(np.round(weight.T / 0.02) + 128, 0, 255).astype(np.uint8)

    def transpose():
        return node("Transpose", ["d"], ["w"], perm=[1, 0])

    yield "Identity, Transpose", [node("Identity", ["W"], ["d"]), transpose()], {"W": weight}
    yield "", [node("Constant", [], ["w"], value=numpy_helper.from_array(weight.T.copy()))], {}
    yield "Cast, Transpose", [node("Cast", ["W"], ["d"], to=FLOAT), transpose()], {"W": weight.astype(np.float16)}
    whole = [node("DequantizeLinear", ["W", "s", "z"], ["w"])]
    yield "DequantizeLinear", whole, {"W": shifted, "s": np.float32(0.02), "z": np.uint8(128)}
    by_row = [node("DequantizeLinear", ["W", "s"], ["d"], axis=0), transpose()]
    yield "DequantizeLinear, Transpose", by_row, {"W": integers, "s": scales}
    by_block = [node("DequantizeLinear", ["W", "s"], ["d"], axis=1, block_size=8), transpose()]
    int4 = helper.make_tensor("W5", TensorProto.INT4, (N, K), nibbles)
    yield "DequantizeLinear, Transpose", by_block, {"W": int4, "s": np.repeat(scales[:, None], 3, 1)}


def test_weights_behind_chains(tmp_path):
    cases = [([*nodes, node("MatMul", ["X", "w"], ["Y"])], (3, K), constants) for _, nodes, constants in chain_cases()]
    report, packed = gallery(cases, tmp_path, objective="size")  # those of integers are packed where that is faster
    assert set(op_types(packed)) <= {"BitmaskLinear", "CodedLinear"} and len(report.packed_layers) == len(cases)
    assert not any(name[0] in "Wsz" and name[1:].isdigit() for name in initializer_names(packed))
    for layer, (steps, _, _) in zip(report.layers, chain_cases(), strict=True):
        assert f"the result of {steps}" in layer.reason or not steps


def test_a_weight_that_is_smaller_as_stored_is_left(tmp_path):
    """Integers of one byte, hardly sparse: float32 values would take more."""
    weight = np.clip(np.round(sparse(K, N, density=0.5) * 20), -127, 127).astype(np.int8)
    nodes = [node("DequantizeLinear", ["W", "s"], ["w"]), node("MatMul", ["X", "w"], ["Y"])]
    path = save(layer_model(nodes, weight, s=np.float32(0.05)), tmp_path)
    report = pack(path, tmp_path / "packed")
    packed = onnx.load(tmp_path / "packed/model.onnx")
    assert op_types(packed) == ["DequantizeLinear", "MatMul"]
    assert "the file holds it in 388" in report.layers[0].reason


def test_a_double_weight_is_left_with_its_reason(tmp_path):
    model = make_model(
        [node("MatMul", ["X", "W"], ["Y"])],
        [value("X", "n", K, kind=TensorProto.DOUBLE)],
        [value("Y", "n", N, kind=TensorProto.DOUBLE)],
        {"W": sparse(K, N).astype(np.float64)},
    )
    report, packed = check_packed(model, tmp_path, {"X": dense(3, K).astype(np.float64)})
    assert op_types(packed) == ["MatMul"] and "convert the model to float32" in report.layers[0].reason


def test_tied_weights_share_one_packed_copy(tmp_path):
    nodes = [
        node("MatMul", ["X", "W"], ["a"]),
        node("Transpose", ["W"], ["v"]),
        node("MatMul", ["a", "v"], ["b"]),
        node("MatMul", ["b", "W"], ["c"]),
        node("Gemm", ["c", "V"], ["d"], transB=1),
        node("MatMul", ["d", "W"], ["Y"]),
    ]
    model = layer_model(nodes, sparse(K, N), V=sparse(K, N))
    report, packed = check_packed(model, tmp_path, {"X": dense(3, K)}, tolerance=1e-4)
    assert op_types(packed) == ["BitmaskLinear"] * 5
    shared = [layer.shared_with for layer in report.layers]
    assert shared == [None, None, "a", "b", "a"] and [layer.bytes for layer in report.layers][2:] == [0, 0, 0]
    assert len(initializer_names(packed)) == 4


def test_an_embedding_that_is_also_a_head_is_kept_once(tmp_path):
    nodes = [node("Gather", ["W", "T"], ["e"]), node("Gemm", ["e", "W"], ["Y"], transB=1)]
    model = make_model(nodes, [value("T", "n", kind=INT64)], [value("Y", "n", 50)], {"W": sparse(50, K)})
    report, packed = check_packed(model, tmp_path, {"T": np.array([3, 1, 39])})
    assert op_types(packed) == ["BitmaskLinearWeight", "Gather", "BitmaskLinear"]
    assert "W" not in initializer_names(packed)
    lookup, head = report.layers
    assert "'Gather' has no packed form" in lookup.reason
    assert "also reads the dense weight" in head.reason
    sized = pack(tmp_path / "foreign.onnx", tmp_path / "small", objective="size")
    assert sized.packed_layers
    rounded = pack(tmp_path / "foreign.onnx", tmp_path / "rounded", values="int8")
    assert not rounded.packed_layers and "so that packing would add" in rounded.layers[-1].reason


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("kind", [FLOAT, TensorProto.FLOAT16])
def test_a_tied_weight_of_every_opset_and_type(opset, kind, tmp_path):
    nodes = [
        node("Gather", ["W", "T"], ["e"]),
        node("Transpose", ["W"], ["w"], perm=[1, 0]),
        node("MatMul", ["e", "w"], ["Y"]),
    ]
    weight = sparse(500, K).astype(helper.tensor_dtype_to_np_dtype(kind))
    model = make_model(nodes, [value("T", "n", kind=INT64)], [value("Y", "n", 500, kind=kind)], {"W": weight}, opset)
    report, packed = check_packed(model, tmp_path, {"T": np.array([3, 1, 39])}, tolerance=1e-2, reference=False)
    assert len(report.packed_layers) == 1 and "W" not in initializer_names(packed)
    assert report.file_bytes < report.original_bytes


def test_a_weight_that_is_an_output_is_decoded(tmp_path):
    model = make_model(
        [node("MatMul", ["X", "W"], ["Y"])],
        [value("X", "n", K)],
        [value("Y", "n", N), value("W", K, N)],
        {"W": sparse(K, N)},
    )
    report, packed = check_packed(model, tmp_path, {"X": dense(3, K)})
    assert "W" not in initializer_names(packed) and "is an output of the graph" in report.layers[0].reason


def test_a_weight_that_a_caller_may_replace_is_left(tmp_path):
    inputs = [value("X", "n", K), value("W", K, N)]
    model = make_model([node("MatMul", ["X", "W"], ["Y"])], inputs, [value("Y", "n", N)], {"W": sparse(K, N)})
    report, packed = check_packed(model, tmp_path, {"X": dense(3, K)})
    assert op_types(packed) == ["MatMul"] and "may replace it" in report.layers[0].reason


LEFT = {
    "no zeros": ([node("MatMul", ["X", "W"], ["Y"])], dense(K, N), "none of its weights is zero"),
    "vector": ([node("MatMul", ["X", "W"], ["Y"])], sparse(K), "a vector, not a matrix"),
    "hardly a zero": ([node("MatMul", ["X", "W"], ["Y"])], sparse(K, N, density=0.99), "left"),
}


@pytest.mark.parametrize(("nodes", "weight", "reason"), LEFT.values(), ids=list(LEFT))
def test_what_is_left_says_why(nodes, weight, reason, tmp_path):
    y_shape = {1: (5,), 2: (5, N), 3: (3, 5, N)}[weight.ndim]
    report, packed = check_packed(layer_model(nodes, weight, (5, K), y_shape), tmp_path, {"X": dense(5, K)})
    assert op_types(packed) == ["MatMul"] and not packed.functions and reason in report.layers[0].reason


def test_min_speedup_leaves_layers(tmp_path):
    path = save(layer_model([node("MatMul", ["X", "W"], ["Y"])], sparse(K, N)), tmp_path)
    report = pack(path, tmp_path / "packed", min_speedup=1000)
    assert not report.packed_layers and "below 1000" in report.layers[0].reason


def test_minus_zeros_are_no_links_and_infinities_survive(tmp_path):
    weight = sparse(K, N)
    weight[weight == 0] = -0.0
    weight[0, :2] = np.inf, np.nan
    report, packed = check_packed(
        layer_model([node("MatMul", ["X", "W"], ["Y"])], weight), tmp_path, {"X": dense(3, K)}
    )
    (layer,) = report.layers
    assert "weights of -0" in layer.reason and layer.links < K * N / 2
    values = next(t for t in packed.graph.initializer if t.name == "W.values")
    np.testing.assert_array_equal(numpy_helper.to_array(values), weight.T[weight.T != 0])
