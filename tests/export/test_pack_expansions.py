"""Operators that hold a product within: written out around a packed product, they give what they gave."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from pack_models import dense, make_model, node, op_types, run, save, sparse, value

from hebbline.export import pack
from hebbline.export.foreign.expansions import convolutions, recurrent

K, N, T = 48, 32, 5
FLOAT = TensorProto.FLOAT
BIAS = np.linspace(-1, 1, N).astype(np.float32)


def model_of(nodes, constants, inputs, rank=2, **more):
    """A model with the output Y of that rank, and others of the ranks that are named."""
    ranks = {"Y": rank} | more
    ends = [helper.make_tensor_value_info(name, FLOAT, [None] * size) for name, size in ranks.items()]
    return make_model(nodes, inputs, ends, constants, 18, domains=["com.microsoft"])


def fused(op_type, inputs, **attributes):
    return [node(op_type, inputs, ["Y"], "layer", domain="com.microsoft", **attributes)]


def check(model, tmp_path, feeds, op_type=None):
    """Packed, it gives the same with the library and without, and the operator is gone."""
    path = save(model, tmp_path)
    report = pack(path, tmp_path / "packed", measure=False)
    packed = tmp_path / "packed/model.onnx"
    onnx.checker.check_model(str(packed))
    gone = op_type or model.graph.node[0].op_type
    assert report.packed_layers and gone not in op_types(onnx.load(packed)), [row.reason for row in report.layers]
    for name in [output.name for output in model.graph.output]:
        expected = run(path, feeds, name=name)
        for library in (False, True):
            actual = run(packed, feeds, library, name)
            assert actual.shape == expected.shape
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))
    return report


def nbits(quants_NK, scales_NB, block, zeros_NB=None, bits=4, **more):
    packed = quants_NK if bits == 8 else (quants_NK[:, ::2] | quants_NK[:, 1::2] << 4)
    constants = {"W": packed.reshape(len(quants_NK), -1, block * bits // 8).astype(np.uint8), "s": scales_NB}
    inputs = ["X", "W", "s"]
    if zeros_NB is not None:
        constants["z"] = (zeros_NB[:, ::2] | zeros_NB[:, 1::2] << 4).astype(np.uint8) if bits == 4 else zeros_NB
        inputs.append("z")
    attributes = {"N": N, "K": quants_NK.shape[1], "bits": bits, "block_size": block} | more
    return model_of(fused("MatMulNBits", inputs, **attributes), constants, [value("X", "n", quants_NK.shape[1])])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_weights_of_few_bits(bits, zeros, packed_is_faster, tmp_path):
    rng = np.random.default_rng(0)
    centre = (1 << (bits - 1)) + (3 if zeros else 0)
    quants = np.where(rng.random((N, 128)) < 0.04, rng.integers(0, 1 << bits, (N, 128)), centre).astype(np.uint8)
    points = np.full((N, 4), centre, np.uint8) if zeros else None
    model = nbits(quants, rng.uniform(0.01, 0.02, (N, 4)).astype(np.float32), 32, points, bits)
    report = check(model, tmp_path, {"X": dense(T, 128)})
    assert report.layers[0].links == np.count_nonzero(quants != centre) and report.layers[0].shape == (N, 128)


def test_weights_of_few_bits_whose_input_is_rounded_are_left(tmp_path):
    model = nbits(np.full((N, 64), 8, np.uint8), np.ones((N, 2), np.float32), 32, accuracy_level=4)
    report = pack(save(model, tmp_path), tmp_path / "packed")
    assert not report.packed_layers and "rounds its input to int8 in blocks" in report.layers[0].reason


@pytest.mark.parametrize("attributes", [{}, {"transB": 1, "alpha": 0.5}, {"transA": 1}])
def test_fused_matmul(attributes, packed_is_faster, tmp_path):
    weight = sparse(N, K) if "transB" in attributes else sparse(K, N)
    shape = (K, T) if "transA" in attributes else (T, K)
    model = model_of(fused("FusedMatMul", ["X", "W"], **attributes), {"W": weight}, [value("X", *shape)])
    check(model, tmp_path, {"X": dense(*shape)})


@pytest.mark.parametrize(
    "attributes",
    [
        {"activation": "Relu"},
        {"activation": "LeakyRelu", "activation_alpha": 0.2, "transB": 1, "alpha": 0.5, "beta": 2.0},
        {"activation": "Tanh", "transA": 1},
    ],
)
def test_fused_gemm(attributes, packed_is_faster, tmp_path):
    weight = sparse(N, K) if "transB" in attributes else sparse(K, N)
    shape = (K, T) if "transA" in attributes else (T, K)
    constants = {"W": weight, "c": BIAS}
    model = model_of(fused("FusedGemm", ["X", "W", "c"], **attributes), constants, [value("X", *shape)])
    check(model, tmp_path, {"X": dense(*shape)})


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("causal", [0, 1])
def test_attention(mask, causal, packed_is_faster, tmp_path):
    inputs = [value("X", 2, T, K), *([value("m", 2, T, kind=TensorProto.INT32)] if mask else [])]
    nodes = fused("Attention", ["X", "W", "b", *(["m"] if mask else [])], num_heads=4, unidirectional=causal)
    constants = {"W": sparse(K, 3 * N), "b": dense(3 * N)}
    feeds = {"X": dense(2, T, K)} | ({"m": np.array([[1] * T, [1, 1, 1, 0, 0]], np.int32)} if mask else {})
    check(model_of(nodes, constants, inputs, 3), tmp_path, feeds)


@pytest.mark.parametrize("shape", [(4, T, K), (2, 4, T, K), (T, K)])
def test_batches_of_matrices(shape, packed_is_faster, tmp_path):
    nodes = [node("MatMul", ["X", "W"], ["Y"], name="layer")]
    weight = sparse(1, 4, K, N) if len(shape) == 4 else sparse(4, K, N)
    model = model_of(nodes, {"W": weight}, [value("X", *shape)], max(3, len(shape)))
    report = check(model, tmp_path, {"X": dense(*shape)}, "MatMul")
    assert report.layers[0].shape == weight.shape and report.layers[0].links == np.count_nonzero(weight)


CONVOLUTIONS = {
    "plain": ((1, 8, 9, 7), (N, 8, 3, 3), {}),
    "padded": ((2, 8, 9, 7), (N, 8, 3, 3), {"pads": [1, 0, 2, 1]}),
    "strided": ((1, 8, 11, 10), (N, 8, 3, 2), {"pads": [1, 1, 1, 1], "strides": [2, 3]}),
    "dilated": ((1, 8, 11, 10), (N, 8, 3, 2), {"dilations": [2, 3]}),
    "grouped": ((1, 16, 6, 6), (N, 8, 3, 3), {"group": 2}),
    "line": ((1, 8, 20), (N, 8, 5), {"pads": [2, 2]}),
    "volume": ((1, 4, 5, 5, 5), (N, 4, 2, 2, 2), {"strides": [2, 1, 1]}),
    "padded point": ((1, 32, 5, 5), (N, 32, 1, 1), {"pads": [1, 1, 1, 1]}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions(name, bias, packed_is_faster, monkeypatch, tmp_path):
    monkeypatch.setattr(convolutions, "_FEWEST_COLUMNS", 1)
    given, shape, attributes = CONVOLUTIONS[name]
    constants = {"W": sparse(*shape, density=0.1)} | ({"b": BIAS} if bias else {})
    nodes = [node("Conv", ["X", *constants], ["Y"], name="layer", **attributes)]
    model = model_of(nodes, constants, [value("X", *given)], len(given))
    report = check(model, tmp_path, {"X": dense(*given)})
    assert report.layers[0].shape == shape and "an input of" in report.layers[0].reason


RECURRENT = [
    ("LSTM", "forward", {}),
    ("LSTM", "bidirectional", {}),
    ("GRU", "reverse", {}),
    ("GRU", "bidirectional", {"linear_before_reset": 1}),
]


@pytest.mark.parametrize(("kind", "direction", "more"), RECURRENT)
@pytest.mark.parametrize("full", [False, True])
def test_recurrent_layers(kind, direction, more, full, packed_is_faster, monkeypatch, tmp_path):
    """`full`: with a bias, first states and all outputs."""
    monkeypatch.setattr(recurrent, "_SMALLEST", 1)
    ways, gates, hidden = (2 if direction == "bidirectional" else 1), (4 if kind == "LSTM" else 3), 24
    constants = {"W": sparse(ways, gates * hidden, 16), "R": sparse(ways, gates * hidden, hidden)}
    constants |= {"b": dense(ways, 2 * gates * hidden)} if full else {}
    states = (["h", "c"] if kind == "LSTM" else ["h"]) if full else []
    names = ["X", "W", "R", *(["b", "", *states] if full else [])]
    outputs = ["Y", "Yh", "Yc"][: 3 if kind == "LSTM" else 2] if full else ["Y"]
    nodes = [node(kind, names, outputs, name="layer", hidden_size=hidden, direction=direction, **more)]
    inputs = [value("X", "t", 2, 16), *(value(name, ways, 2, hidden) for name in states)]
    feeds = {"X": dense(T, 2, 16)} | {name: dense(ways, 2, hidden, seed=1) for name in states}
    report = check(model_of(nodes, constants, inputs, 4, **dict.fromkeys(outputs[1:], 3)), tmp_path, feeds)
    assert [(row.weight, row.links) for row in report.layers] == [
        (name, np.count_nonzero(constants[name])) for name in "WR"
    ]
    assert sum(row.bytes for row in report.layers) < sum(row.stored_bytes for row in report.layers)
