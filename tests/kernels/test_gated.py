"""GatedLinear and QkvLinear: against float64, against their functions, and what is refused.

Legend: N out_features, K in_features, M tokens.
"""

import math

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from packed import LAYOUTS, error, expected, make_layer, open_session

from hebbline.export.layouts import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET, FusedOp

ROUNDING = 3e-6
ROWS = {"gated": (48, 48), "qkv": (48, 16, 20)}
ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x / 2 * np.vectorize(math.erfc, otypes=[float])(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}
ISAS = ("scalar", "avx2", "avx512", "amx-emulated")


def make_parts(layout, kind, in_features=100, densities=(0.3, 0.3, 0.3), rows=None):
    """For each layer its tensors, and the weight that they stand for."""
    parts = []
    for number, (count, density) in enumerate(zip(rows or ROWS[kind], densities, strict=False)):
        weight, mask = make_layer(layout, (count, in_features), density, seed=number)
        tensors = layout.encode(weight, mask)
        parts.append((tensors, layout.decode(tensors, in_features)[0]))
    return parts


def make_model(fused, parts, biases, in_features=100, function=True):
    named = {
        f"{part}_{name}": tensors[name]
        for part, (tensors, _) in zip(fused.parts, parts, strict=True)
        for name in fused.layout.tensor_names
    }
    named_biases = {f"{part}_bias": bias for part, bias in zip(fused.parts, biases, strict=True)}
    inputs = ["X", *named, *(name if bias is not None else "" for name, bias in named_biases.items())]
    given = named | {name: bias for name, bias in named_biases.items() if bias is not None}
    node = helper.make_node(
        fused.op_type, inputs, ["Y"], name="layer", domain=DOMAIN, in_features=in_features, **fused.attributes
    )
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["B", "S", in_features])
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["B", "S", "N"])
    initializers = [numpy_helper.from_array(array, name) for name, array in given.items()]
    graph = helper.make_graph([node], "fused", [x], [y], initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    functions = [fused.layout.function(), fused.function()] if function else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, functions=functions)


def wanted(kind, values, x, parts, biases, activation="silu"):
    """The op in float64, over X as the value type rounds it."""
    results = [expected(x, weight, bias, values) for (_, weight), bias in zip(parts, biases, strict=True)]
    if kind == "qkv":
        return np.concatenate(results, axis=-1)
    gate, up = results
    return ACTIVATIONS[activation](gate) * up


def random_biases(kind, seed=5):
    """A bias for every layer but the first."""
    rng = np.random.default_rng(seed)
    return [None, *(rng.standard_normal(rows).astype(np.float32) for rows in ROWS[kind][1:])]


def random_x(tokens, in_features=100, seed=1):
    return np.random.default_rng(seed).standard_normal((1, tokens, in_features)).astype(np.float32)


@pytest.mark.parametrize("kind", list(ROWS))
@pytest.mark.parametrize("isa", ISAS)
def test_every_layout_computes_what_float64_does(isa, kind, monkeypatch):
    monkeypatch.setenv("HEBBLINE_ISA", isa)
    for layout in LAYOUTS.values():
        parts, biases = make_parts(layout, kind), random_biases(kind)
        try:
            session = open_session(make_model(FusedOp(kind, layout), parts, biases, function=False))
        except Exception as failure:
            if "this processor lacks it" in str(failure):
                pytest.skip(f"this processor lacks {isa}")
            raise
        for tokens in (0, 1, 5, 16, 70):
            x = random_x(tokens)
            (y,) = session.run(None, {"X": x})
            exact = wanted(kind, layout.values.name, x, parts, biases)
            assert y.shape == exact.shape
            assert error(y, exact) < ROUNDING, (layout.name, tokens)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("isa", ISAS[:3])
def test_every_activation_of_the_gate(isa, activation, monkeypatch):
    """By kernel, by function, and in ONNX's own evaluator."""
    monkeypatch.setenv("HEBBLINE_ISA", isa)
    layout = LAYOUTS["bitmask"]
    parts, biases = make_parts(layout, "gated"), random_biases("gated")
    model = make_model(FusedOp("gated", layout, activation), parts, biases)
    try:
        session = open_session(model)
    except Exception as failure:
        if "this processor lacks it" in str(failure):
            pytest.skip(f"this processor lacks {isa}")
        raise
    x = random_x(7) * 3
    exact = wanted("gated", "float32", x, parts, biases, activation)
    for run in (session.run, open_session(model, kernels=False).run, ReferenceEvaluator(model).run):
        assert error(run(None, {"X": x})[0], exact) < ROUNDING


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_an_activation_is_exact_near_0_and_at_its_extremes(activation):
    layout = LAYOUTS["csr"]
    eye = np.eye(64, dtype=np.float32)
    up = np.zeros((64, 64), np.float32)
    up[:, 63] = 1  # X's last number times the activation of each
    parts = [(layout.encode(w, w != 0), w) for w in (eye, up)]
    fused = FusedOp("gated", layout, activation)
    session = open_session(make_model(fused, parts, [None, None], in_features=64))
    x = np.concatenate([np.linspace(-6, 6, 57), [-1e30, -90, -20, 20, 90, 1e30, 1]]).astype(np.float32)
    (y,) = session.run(None, {"X": x[None, None]})
    with np.errstate(over="ignore"):
        exact = ACTIVATIONS[activation](x.astype(np.float64))
    np.testing.assert_allclose(y[0, 0], exact, rtol=2e-6, atol=4e-7)
    assert np.isnan(session.run(None, {"X": np.where(x == 20, np.nan, x)[None, None]})[0]).any()


def test_an_unknown_activation_is_refused_at_load():
    layout = LAYOUTS["bitmask"]
    model = make_model(FusedOp("gated", layout, "tanh"), make_parts(layout, "gated"), [None, None], function=False)
    with pytest.raises(Exception, match="node 'layer': activation 'tanh' is not known"):
        open_session(model)


@pytest.mark.parametrize("kind", list(ROWS))
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_kernel_function_and_reference_agree(layout, kind):
    """The portable file computes the same in ONNX Runtime with and without kernels, and in ONNX's own evaluator."""
    fused = FusedOp(kind, layout)
    for biases in ([None] * len(fused.parts), random_biases(kind)):
        model = make_model(fused, make_parts(layout, kind), biases)
        x = random_x(6)
        runs = (open_session(model).run, open_session(model, kernels=False).run, ReferenceEvaluator(model).run)
        kernel, function, reference = (run(None, {"X": x})[0] for run in runs)
        assert error(kernel, function) < ROUNDING and error(kernel, reference) < ROUNDING


@pytest.mark.parametrize("kind", list(ROWS))
def test_layers_that_cannot_share_a_packing(kind):
    """4-bit layers of unequal density have scales for groups of unequal width."""
    layout = LAYOUTS["bitmask-int4"]
    parts = make_parts(layout, kind, in_features=600, densities=(0.5, 0.1, 0.9))
    assert parts[0][0]["scales"].shape[1] != parts[1][0]["scales"].shape[1]
    biases = random_biases(kind)
    session = open_session(make_model(FusedOp(kind, layout), parts, biases, in_features=600, function=False))
    for tokens in (1, 40):
        x = random_x(tokens, 600)
        assert error(session.run(None, {"X": x})[0], wanted(kind, "int4", x, parts, biases)) < ROUNDING


@pytest.mark.parametrize("kind", list(ROWS))
@pytest.mark.parametrize("name", ["bitmask", "bitmask-int8", "csr-bfloat16"])
def test_results_depend_neither_on_threads_nor_on_earlier_calls(name, kind):
    layout = LAYOUTS[name]
    model = make_model(FusedOp(kind, layout), make_parts(layout, kind), random_biases(kind), function=False)
    one, two = open_session(model, threads=1), open_session(model, threads=2)
    for tokens in (1, 7, 130, 1):
        x = random_x(tokens)
        first = one.run(None, {"X": x})[0]
        for session in (one, two, two):
            assert session.run(None, {"X": x})[0].tobytes() == first.tobytes()


def test_the_gate_at_its_extremes():
    """Far from 0 silu is 0 or the number itself, and NaN stays NaN."""
    layout = LAYOUTS["csr"]
    eye = np.eye(8, dtype=np.float32)
    up = np.zeros((8, 8), np.float32)
    up[:, 7] = 1  # X's last number times silu of each
    parts = [(layout.encode(w, w != 0), w) for w in (eye, up)]
    session = open_session(make_model(FusedOp("gated", layout), parts, [None, None], in_features=8))
    x = np.array([-1e30, -90, -20, 0, 20, 90, 1e30, 1], np.float32)
    (y,) = session.run(None, {"X": x[None, None]})
    silu = x / (1 + np.exp(-x.astype(np.float64).clip(-700)))
    np.testing.assert_allclose(y[0, 0], silu, rtol=1e-6, atol=1e-30)
    assert np.isnan(session.run(None, {"X": np.where(x == 0, np.nan, x)[None, None]})[0]).any()


def test_malformed_nodes_are_refused_at_load():
    layout = LAYOUTS["bitmask"]
    fused = FusedOp("gated", layout)
    biases = [None, None]
    unequal = make_parts(layout, "gated", rows=(48, 32))
    with pytest.raises(Exception, match="node 'layer': the weights have not as many rows each"):
        open_session(make_model(fused, unequal, biases, function=False))
    damaged = make_parts(layout, "gated")
    damaged[1][0]["values"] = damaged[1][0]["values"][:-1]
    with pytest.raises(Exception, match="node 'layer/up': values has"):
        open_session(make_model(fused, damaged, biases, function=False))
    with pytest.raises(Exception, match="node 'layer': gate_bias has not the shape"):
        open_session(make_model(fused, make_parts(layout, "gated"), [np.ones(47, np.float32), None], function=False))


def test_another_width_of_x_is_refused():
    layout = LAYOUTS["bitmask"]
    model = make_model(FusedOp("qkv", layout), make_parts(layout, "qkv"), [None] * 3, function=False)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "K"
    with pytest.raises(Exception, match="the last dimension of X is not in_features, 100"):
        open_session(model).run(None, {"X": random_x(1, 99)})
