"""ResidualNorm against float64.

Legend: T tokens, E hidden size.
"""

import numpy as np
import pytest
from attention_model import open_session
from onnx import TensorProto, helper, numpy_helper

from hebbline.export.layouts import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET

ISAS = ("scalar", "avx2", "avx512")


def make_model(scale_E, **attributes):
    node = helper.make_node(
        "ResidualNorm", ["hidden", "update", "scale"], ["normed", "sum"], name="norm", domain=DOMAIN, **attributes
    )
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("hidden", "update")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("normed", "sum")]
    graph = helper.make_graph([node], "norm", inputs, outputs, [numpy_helper.from_array(scale_E, "scale")])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
def test_every_path_computes_what_float64_does(isa, monkeypatch):
    monkeypatch.setenv("HEBBLINE_ISA", isa)
    for size in (1, 15, 16, 64, 100, 576):
        scale = random(size)
        try:
            sessions = [open_session(make_model(scale, epsilon=1e-5), threads) for threads in (1, 2)]
        except Exception as failure:
            if "this processor lacks it" in str(failure):
                pytest.skip(f"this processor lacks {isa}")
            raise
        for shape in ((0, size), (1, size), (3, 70, size)):
            hidden, update = random(*shape, seed=1), random(*shape, seed=2)
            total = hidden.astype(np.float64) + update
            normed = total / np.sqrt((total**2).mean(axis=-1, keepdims=True) + 1e-5) * scale
            results = [session.run(None, {"hidden": hidden, "update": update}) for session in sessions]
            assert results[0][0].tobytes() == results[1][0].tobytes()
            np.testing.assert_array_equal(results[0][1], hidden + update)
            np.testing.assert_allclose(results[0][0], normed, rtol=2e-6, atol=2e-6)


def test_malformed_nodes_are_refused_at_load():
    with pytest.raises(Exception, match=r"node 'norm': scale is not a constant \[hidden size\]"):
        open_session(make_model(random(2, 3), epsilon=1e-5))
    with pytest.raises(Exception, match="node 'norm': attribute epsilon is missing"):
        open_session(make_model(random(3)))


def test_states_of_another_size_are_refused():
    session = open_session(make_model(random(8), epsilon=1e-5))
    with pytest.raises(Exception, match="the last dimension of hidden is not 8"):
        session.run(None, {"hidden": random(2, 9), "update": random(2, 9)})
    with pytest.raises(Exception, match="update has not the shape of hidden"):
        session.run(None, {"hidden": random(2, 8), "update": random(1, 8)})
