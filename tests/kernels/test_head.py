"""DenseHead against float64; ShortlistHead against float64 and against its int8 arithmetic in whole numbers.

Legend: R rows, V vocabulary, E hidden size.
"""

import numpy as np
import pytest
from attention_model import open_session
from onnx import TensorProto, helper, numpy_helper

from hebbline.export.layouts import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET

ISAS = ("scalar", "avx2", "avx2-vnni", "avx512")


def quantise(weight_VE):
    """Each row to int8 by its largest magnitude."""
    scales = (np.maximum(np.abs(weight_VE).max(axis=1), 1e-30) / 127).astype(np.float32)
    return np.clip(np.rint(weight_VE / scales[:, None]), -127, 127).astype(np.int8), scales


def make_model(weight_VE, shortlist, **changed):
    int8, scales = quantise(weight_VE)
    tensors = {"int8": int8, "scales": scales, "weight": weight_VE} | changed
    return model_of("ShortlistHead", tensors, shortlist=shortlist)


def model_of(op_type, tensors, **attributes):
    node = helper.make_node(op_type, ["hidden", *tensors], ["logits"], name="head", domain=DOMAIN, **attributes)
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["R", "E"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["R", "V"])
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph([node], "head", [hidden], [logits], initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def run(weight_VE, hidden_RE, shortlist, threads=1):
    return open_session(make_model(weight_VE, shortlist), threads).run(None, {"hidden": hidden_RE})[0]


def estimate(weight_VE, hidden_RE):
    """The int8 pass: exact in whole numbers, then scaled."""
    int8, scales = quantise(weight_VE)
    largest = np.maximum(np.abs(hidden_RE).max(axis=1, keepdims=True), np.float32(1e-30))
    tokens = np.clip(np.rint(hidden_RE * (np.float32(127) / largest)), -127, 127)
    return (tokens.astype(np.int64) @ int8.astype(np.int64).T) * scales.astype(np.float64) * (largest / 127.0)


def make_case(vocabulary, hidden, rows, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((vocabulary, hidden), np.float32),
        rng.standard_normal((rows, hidden), np.float32),
    )


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    """Each instruction set that this processor has."""
    monkeypatch.setenv("HEBBLINE_ISA", request.param)
    try:
        open_session(make_model(np.ones((1, 1), np.float32), 1))
    except Exception as error:
        if "this processor lacks it" in str(error):
            pytest.skip(f"this processor lacks {request.param}")
        raise
    return request.param


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize(("vocabulary", "hidden"), [(1, 1), (3, 15), (130, 16), (515, 64), (1030, 100)])
def test_the_dense_head_is_the_product(isa, vocabulary, hidden, rows):
    weight, tokens = make_case(vocabulary, hidden, rows)
    exact = tokens.astype(np.float64) @ weight.astype(np.float64).T
    for threads in (1, 2):
        logits = open_session(model_of("DenseHead", {"weight": weight}), threads).run(None, {"hidden": tokens})[0]
        assert logits.shape == (rows, vocabulary)
        assert np.abs(logits - exact).max(initial=0) < 1e-6 * np.sqrt(hidden)


def test_a_row_of_the_dense_head_does_not_depend_on_its_neighbours(isa):
    weight, tokens = make_case(700, 72, 7, seed=6)
    session = open_session(model_of("DenseHead", {"weight": weight}), threads=2)
    together = session.run(None, {"hidden": tokens})[0]
    for row in range(7):
        assert session.run(None, {"hidden": tokens[row : row + 1]})[0].tobytes() == together[row].tobytes()


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize(("vocabulary", "hidden"), [(1, 1), (63, 7), (515, 64), (1030, 96), (2000, 200)])
def test_the_highest_logits_are_exact_and_the_rest_are_the_int8_ones(isa, vocabulary, hidden, rows):
    weight, tokens = make_case(vocabulary, hidden, rows)
    logits = run(weight, tokens, shortlist=16)
    assert logits.shape == (rows, vocabulary)
    exact, rough = tokens.astype(np.float64) @ weight.astype(np.float64).T, estimate(weight, tokens)
    scale = np.sqrt(hidden)
    for row in range(rows):
        shortlist = np.argsort(-rough[row], kind="stable")[:16]
        is_exact = np.abs(logits[row] - exact[row]) < 1e-6 * scale
        assert is_exact[shortlist].all()
        rest = np.setdiff1d(np.arange(vocabulary), shortlist)
        is_rough = np.abs(logits[row] - rough[row]) < 1e-5 * scale
        above = rough[row] > exact[row, shortlist].max() - 1e-6 * scale
        assert (is_rough | (is_exact & above))[rest].all()
        assert is_exact[logits[row].argmax()]


def test_a_logit_that_the_int8_pass_overrates_does_not_win():
    """Row 1 is the largest of the int8 pass and the one of the shortlist; exactly it is below row 0."""
    rng = np.random.default_rng(1)
    hidden = rng.standard_normal((1, 256), np.float32)
    weight = rng.standard_normal((300, 256), np.float32) * 0.01
    int8, scales = quantise(weight)
    weight[0], weight[1] = hidden[0], hidden[0] * 0.9
    int8[0] = int8[1] = np.clip(np.rint(hidden[0] * 40), -127, 127)
    scales[0], scales[1] = 0.024, 0.026
    session = open_session(make_model(weight, 1, int8=int8, scales=scales))
    logits = session.run(None, {"hidden": hidden})[0]
    exact = hidden @ weight.T
    assert logits.argmax() == exact.argmax() == 0
    np.testing.assert_allclose(logits[0, :2], exact[0, :2], rtol=1e-5)


def test_greedy_over_many_tokens_is_exact():
    """What a shortlist of 64 is for: over 2000 tokens of random weights the largest logit is always among them."""
    weight, tokens = make_case(4000, 128, 2000, seed=2)
    logits = run(weight, tokens, shortlist=64)
    np.testing.assert_array_equal(logits.argmax(axis=1), (tokens @ weight.T).argmax(axis=1))


def test_a_shortlist_of_everything_is_the_exact_product(isa):
    weight, tokens = make_case(200, 50, 3)
    np.testing.assert_allclose(run(weight, tokens, shortlist=1000), tokens @ weight.T, atol=1e-5)


def test_threads_and_neighbours_do_not_change_a_bit(isa):
    weight, tokens = make_case(3000, 100, 7, seed=3)
    alone = np.concatenate([run(weight, token[None], 64) for token in tokens])
    for threads in (1, 2):
        assert run(weight, tokens, 64, threads).tobytes() == alone.tobytes()


def test_all_instruction_sets_estimate_the_same(monkeypatch):
    weight, tokens = make_case(700, 77, 5, seed=4)
    results = []
    for isa in ISAS:
        monkeypatch.setenv("HEBBLINE_ISA", isa)
        try:
            results.append(run(weight, tokens, shortlist=1))
        except Exception as error:
            assert "this processor lacks it" in str(error)
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_stay_so_and_alone(isa, value):
    weight, tokens = make_case(300, 32, 3)
    wanted = run(weight, tokens, 64)
    tokens[1, 4] = value
    logits = run(weight, tokens, 64)
    assert not np.isfinite(logits[1]).any()
    np.testing.assert_array_equal(logits[[0, 2]], wanted[[0, 2]])


def test_equal_logits_and_zeros(isa):
    weight = np.ones((500, 16), np.float32)
    np.testing.assert_allclose(run(weight, np.ones((1, 16), np.float32), 8), 16, rtol=1e-2)
    assert (run(weight, np.zeros((1, 16), np.float32), 8) == 0).all()


WEIGHT, TOKENS = make_case(40, 8, 1)
BAD_NODES = {
    "scales": ({"scales": np.ones(39, np.float32)}, 4, r"scales is not \[vocabulary\]"),
    "weight": ({"weight": np.ones((40, 9), np.float32)}, 4, "weight has not the shape of int8"),
    "int8": ({"int8": np.ones(40, np.int8)}, 4, r"int8 is not \[vocabulary, hidden\]"),
    "empty": ({"int8": np.ones((0, 8), np.int8), "weight": np.ones((0, 8), np.float32)}, 4, "out of range"),
    "shortlist": ({}, 0, "shortlist"),
}


@pytest.mark.parametrize(("changed", "shortlist", "message"), BAD_NODES.values(), ids=list(BAD_NODES))
def test_malformed_heads_are_refused_at_load(changed, shortlist, message):
    with pytest.raises(Exception, match=f"node 'head': .*{message}"):
        open_session(make_model(WEIGHT, shortlist, **changed))


def test_a_malformed_dense_head_is_refused_at_load():
    with pytest.raises(Exception, match=r"node 'head': weight is not \[vocabulary, hidden\]"):
        open_session(model_of("DenseHead", {"weight": np.ones(8, np.float32)}))


def test_hidden_states_of_another_size_are_refused():
    session = open_session(make_model(WEIGHT, 4))
    with pytest.raises(Exception, match=r"hidden is not \[rows, 8\]"):
        session.run(None, {"hidden": np.ones((1, 9), np.float32)})
