"""Weights that constant nodes compute, and that no weight is missing from the report."""

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from pack_models import (
    FLOAT,
    K,
    N,
    check_packed,
    dense,
    initializer_names,
    make_model,
    node,
    op_types,
    save,
    sparse,
    value,
)

from hebbline.export import pack

WEIGHT = sparse(K, N)
MASK = WEIGHT != 0
FULL = dense(K, N)
X, Y = [value("X", "n", K)], [value("Y", "n", N)]
PRODUCT = node("MatMul", ["X", "w"], ["Y"], name="product")
SCALE = np.float32(0.05)
ROWS = (0.01 + np.arange(N) / 500).astype(np.float32)

COMPUTED = {
    "a mask times a weight": ([node("Mul", ["W", "m"], ["w"])], {"W": FULL, "m": MASK.astype(np.float32)}),
    "a mask of bool": (
        [node("Cast", ["m"], ["f"], to=FLOAT), node("Mul", ["W", "f"], ["w"])],
        {"W": FULL, "m": MASK},
    ),
    "Where": ([node("Where", ["m", "W", "zero"], ["w"])], {"W": FULL, "m": MASK, "zero": np.float32(0)}),
    "Slice": (
        [node("Slice", ["W", "from", "to"], ["w"])],
        {"W": np.r_[WEIGHT, FULL], "from": np.array([0, 0]), "to": np.array([K, N])},
    ),
    "Concat": ([node("Concat", ["W", "V"], ["w"], axis=1)], {"W": WEIGHT[:, :5], "V": WEIGHT[:, 5:]}),
    "Reshape": ([node("Reshape", ["W", "shape"], ["w"])], {"W": WEIGHT.reshape(-1), "shape": np.array([K, N])}),
    "Squeeze": ([node("Squeeze", ["W", "axis"], ["w"])], {"W": WEIGHT[None], "axis": np.array([0])}),
    "Cast times a scale": (
        [node("Cast", ["W"], ["f"], to=FLOAT), node("Mul", ["f", "s"], ["w"])],
        {"W": np.round(WEIGHT / ROWS).clip(-127, 127).astype(np.int8), "s": ROWS},
    ),
    "before a Transpose": (
        [node("Mul", ["W", "m"], ["p"]), node("Transpose", ["p"], ["w"])],
        {"W": FULL.T.copy(), "m": MASK.T.astype(np.float32)},
    ),
    "fake quantisation": (
        [
            node("QuantizeLinear", ["W", "s", "z"], ["q"], axis=1),
            node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1),
        ],
        {"W": WEIGHT, "s": ROWS, "z": np.zeros(N, np.int8)},
    ),
    "a computed scale": (
        [node("Mul", ["s", "two"], ["d"]), node("DequantizeLinear", ["W", "d"], ["w"], axis=1)],
        {"W": np.round(WEIGHT / ROWS / 2).clip(-127, 127).astype(np.int8), "s": ROWS, "two": np.float32(2)},
    ),
}


@pytest.mark.parametrize("form", COMPUTED)
def test_zeros_are_seen_wherever_a_constant_stands(form, tmp_path):
    nodes, constants = COMPUTED[form]
    model = make_model([*nodes, PRODUCT], X, Y, constants, 21)
    report, packed = check_packed(model, tmp_path, {"X": dense(3, K)}, objective="size")  # time is not what is tested
    (layer,) = report.layers
    assert op_types(packed) in (["BitmaskLinear"], ["CodedLinear"], ["CsrLinear"]) and layer.name == "product"
    assert not {"W", "V", "m"} & initializer_names(packed), "what nothing reads any more is gone"
    assert 0 < layer.density < 0.3 and nodes[0].op_type in layer.reason


def test_a_split_weight_of_three_layers(tmp_path):
    weight = sparse(K, 3 * N)
    nodes = [node("Split", ["W", "sizes"], ["q", "k", "v"], axis=1)]
    nodes += [node("MatMul", ["X", part], [f"Y{part}"], name=part) for part in "qkv"]
    outputs = [value(f"Y{part}", "n", N) for part in "qkv"]
    model = make_model(nodes, X, outputs, {"W": weight, "sizes": np.array([N, N, N])})
    report, packed = check_packed(model, tmp_path, {"X": dense(3, K)})
    assert len(report.packed_layers) == 3 and "W" not in initializer_names(packed)
    assert sum(layer.stored_bytes for layer in report.layers) <= weight.nbytes + 24


def test_a_part_that_another_node_reads_stays(tmp_path):
    nodes = [
        node("Split", ["W", "sizes"], ["q", "k"], axis=1),
        node("MatMul", ["X", "q"], ["Y"]),
        node("Relu", ["k"], ["Z"]),
    ]
    outputs = [*Y, value("Z", K, N)]
    model = make_model(nodes, X, outputs, {"W": sparse(K, 2 * N), "sizes": np.array([N, N])})
    report, packed = check_packed(model, tmp_path, {"X": dense(3, K)})
    assert "W" in initializer_names(packed) and "also reads" in report.layers[0].reason


def test_a_function_that_masks_a_weight(tmp_path):
    imports = [helper.make_opsetid("", 18)]
    mask = helper.make_function("local", "Mask", ["a", "b"], ["c"], [node("Mul", ["a", "b"], ["c"])], imports)
    linear = helper.make_function("local", "Linear", ["x", "w"], ["y"], [node("MatMul", ["x", "w"], ["y"])], imports)
    nodes = [node("Mask", ["W", "m"], ["w"], domain="local"), node("Linear", ["X", "w"], ["Y"], domain="local")]
    constants = {"W": FULL, "m": MASK.astype(np.float32)}
    model = make_model(nodes, X, Y, constants, functions=[mask, linear], domains=["local"], ir_version=10)
    report, packed = check_packed(model, tmp_path, {"X": dense(3, K)})
    assert op_types(packed) == ["BitmaskLinear"] and len(report.packed_layers) == 1


def test_weights_in_branches_of_an_if(tmp_path):
    """The mask is the outer graph's, the weight the branch's own."""
    branches = {}
    for seed, name in enumerate(("then_branch", "else_branch")):
        weight = onnx.numpy_helper.from_array(dense(K, N, seed=seed), f"W{seed}")
        nodes = [node("Mul", [f"W{seed}", "m"], [f"w{seed}"]), node("MatMul", ["X", f"w{seed}"], [f"y{seed}"])]
        branches[name] = helper.make_graph(nodes, name, [], [value(f"y{seed}", "n", N)], [weight])
    inputs = [*X, value("C", kind=TensorProto.BOOL)]
    model = make_model([node("If", ["C"], ["Y"], **branches)], inputs, Y, {"m": MASK.astype(np.float32)})
    report, _ = check_packed(model, tmp_path, {"X": dense(3, K), "C": np.array(False)})
    assert len(report.packed_layers) == 2


CHANCE = [node("RandomUniformLike", ["W"], ["r"]), node("Mul", ["W", "r"], ["w"])]
GROWTH = [
    node("Expand", ["W", "shape"], ["e"]),
    node("ReduceSum", ["e"], ["one"]),
    node("Expand", ["one", "large"], ["w"]),
]


@pytest.mark.parametrize("nodes", [CHANCE, GROWTH], ids=["chance", "growth"])
def test_what_must_not_be_computed_is_left(nodes, tmp_path):
    shapes = {"shape": np.array([3000, K, N]), "large": np.array([1 << 14, 1 << 14])}
    inputs = [value("X", 1, K)] if nodes is CHANCE else [value("X", 1, 1 << 14)]
    model = make_model(
        [*nodes, PRODUCT], inputs, [value("Y", 1, None)], {"W": WEIGHT} | (shapes if nodes is GROWTH else {})
    )
    report = pack(save(model, tmp_path), tmp_path / "packed")
    assert not report.packed_layers
    assert nodes is CHANCE or any("could not be computed" in note for note in report.notes)


def test_a_web_of_constants_takes_no_time(tmp_path):
    """Each node reads the one before it twice: a walk along every path would take 2^200 steps."""
    names = ["W", *(f"w{place}" for place in range(199)), "w"]
    nodes = [node("Max", [a, a], [b]) for a, b in itertools.pairwise(names)]
    report, packed = check_packed(
        make_model([*nodes, PRODUCT], X, Y, {"W": WEIGHT}), tmp_path, {"X": dense(3, K)}, reference=False
    )
    assert op_types(packed) == ["BitmaskLinear"] and report.packed_layers


def test_every_weight_is_listed(tmp_path):
    nodes = [
        node("Gather", ["table", "ids"], ["e"], name="embedding"),
        node("LSTM", ["e", "lw", "lr"], ["l", "", ""], name="lstm", hidden_size=4),
        node("GRU", ["e", "gw", "gr"], ["g", ""], name="gru", hidden_size=4),
        node("Einsum", ["e", "ew"], ["n"], equation="tbi,io->tbo", name="einsum"),
        node("Transpose", ["e"], ["t"], perm=[1, 2, 0]),
        node("Conv", ["t", "cw"], ["c"], name="conv"),
    ]
    constants = {
        "table": sparse(20, 8),
        "lw": sparse(1, 16, 8),
        "lr": sparse(1, 16, 4, seed=1),
        "gw": sparse(1, 12, 8),
        "gr": sparse(1, 12, 4, seed=1),
        "ew": sparse(8, 6),
        "cw": sparse(6, 8, 3),
    }
    outputs = [helper.make_tensor_value_info(name, FLOAT, None) for name in "lgnc"]
    model = make_model(nodes, [value("ids", 5, 2, kind=TensorProto.INT64)], outputs, constants)
    report = pack(save(model, tmp_path), tmp_path / "packed")
    rows = {(layer.name, layer.weight): layer for layer in report.layers}
    assert set(rows) == {
        ("embedding", "table"),
        ("lstm", "lw"),
        ("lstm", "lr"),
        ("gru", "gw"),
        ("gru", "gr"),
        ("einsum", "ew"),
        ("conv", "cw"),
    }
    for (_, weight), row in rows.items():
        assert row.links == np.count_nonzero(constants[weight]) and sorted(row.shape) == sorted(constants[weight].shape)


def test_zeros_of_quantised_operators_are_counted_by_their_zero_point(tmp_path):
    quants = np.where(MASK, 7, 3).astype(np.uint8)
    nodes = [
        node("DynamicQuantizeLinear", ["X"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "W", "z", "wz"], ["p"], name="product"),
        node("Cast", ["p"], ["Y"], to=FLOAT),
    ]
    model = make_model(nodes, X, Y, {"W": quants, "wz": np.uint8(3)})
    report = pack(save(model, tmp_path), tmp_path / "packed")
    (layer,) = report.layers
    assert layer.links == np.count_nonzero(MASK) and layer.shape == (N, K)


def test_four_bit_weights_are_counted(tmp_path):
    quants = np.where(sparse(N, 64) != 0, 11, 8).astype(np.uint8)
    packed = (quants[:, ::2] | quants[:, 1::2] << 4).reshape(N, 2, 16)
    nodes = [
        node("MatMulNBits", ["X", "W", "s"], ["Y"], name="p", domain="com.microsoft", N=N, K=64, bits=4, block_size=32)
    ]
    constants = {"W": packed, "s": np.full((N * 2,), 0.1, np.float32)}
    model = make_model(nodes, [value("X", "n", 64)], Y, constants, domains=["com.microsoft"])
    report = pack(save(model, tmp_path), tmp_path / "packed")
    (layer,) = report.layers
    assert layer.links == np.count_nonzero(quants != 8) and layer.shape == (N, 64)
