"""Damaged and hostile files: refused at load with the node's name, or computed right; never a read out of bounds."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from packed import LAYOUTS, error, expected, make_layer, make_model, open_session

SHAPE = (33, 70)


def tensors_of(name):
    weight, mask = make_layer(LAYOUTS[name], SHAPE, 0.4)
    return LAYOUTS[name].encode(weight, mask)


def replaced(name, **changes):
    """A model of the layout with some tensors replaced."""
    tensors = tensors_of(name)
    for part, change in changes.items():
        tensors[part] = change(tensors[part])
    return make_model(LAYOUTS[name], tensors, SHAPE[1], function=False)


def set_last(value):
    return lambda tensor: np.concatenate([tensor.reshape(-1)[:-1], [value]]).astype(tensor.dtype).reshape(tensor.shape)


DAMAGE = {
    "mask and values disagree": ("bitmask", {"values": lambda t: t[:-1]}, "values has shape"),
    "padding bits": ("bitmask", {"mask": set_last(255)}, "mask has padding bits set in row 32"),
    "mask rows too short": ("bitmask", {"mask": lambda t: t[:, :-1]}, "mask has shape"),
    "mask of one dimension": ("bitmask", {"mask": lambda t: t.reshape(-1)}, "mask has shape"),
    "coded values too few": ("coded", {"values": lambda t: t[:-1]}, "values has shape"),
    "coded values of float16": ("coded", {"values": lambda t: t.astype(np.float16)}, "values are float16, not float32"),
    "too many planes": ("coded", {"codes": lambda t: np.repeat(t, 5, 0)}, "codes have shape"),
    "no planes": ("coded", {"codes": lambda t: t[:0]}, "codes have shape"),
    "planes too short": ("coded-bfloat16", {"codes": lambda t: t[:, :-1]}, "codes have shape"),
    "codes past the powers": ("coded", {"powers": lambda t: t[:-1]}, r"codes hold \d+, but there are \d+ powers"),
    "more powers than codes": ("coded", {"powers": lambda t: np.repeat(t, 9)}, "powers have shape"),
    "powers of another type": ("coded-bfloat16", {"powers": lambda t: t.astype(np.float32)}, "powers is float32, not"),
    "powers repeat": ("coded", {"powers": lambda t: np.repeat(t[:1], len(t))}, "powers do not ascend"),
    "powers fall": ("coded", {"powers": lambda t: t[::-1]}, "powers do not ascend"),
    "powers with a fraction": ("coded", {"powers": lambda t: t * 1.5}, "not a power of two"),
    "powers below zero": ("coded", {"powers": lambda t: -t}, "not a power of two"),
    "powers not finite": ("coded", {"powers": set_last(np.inf)}, "not a power of two"),
    "fractions too few": ("coded", {"fractions": lambda t: t[:-1]}, "fractions has shape"),
    "fractions of another width": ("coded", {"fractions": lambda t: t[:, 1:]}, "fractions has shape"),
    "half byte not zero": ("csr-int4", {"values": lambda t: t[:-1]}, "values has shape"),
    "offsets past the end": ("csr", {"row_offsets": set_last(10**6)}, "row_offsets do not run from 0"),
    "offsets fall": ("csr", {"row_offsets": lambda t: t[::-1]}, "row_offsets do not run from 0"),
    "offsets negative": ("csr", {"row_offsets": lambda t: t - 1}, "row_offsets do not run from 0"),
    "no offsets": ("csr", {"row_offsets": lambda t: t[:0]}, "row_offsets have shape"),
    "column past the end": ("csr", {"columns": set_last(70)}, "do not ascend below 70"),
    "columns negative": ("csr", {"columns": lambda t: t.astype(np.int32) - 1}, "do not ascend below 70"),
    "columns repeat": ("csr", {"columns": np.zeros_like}, "do not ascend below 70"),
    "columns of a wrong type": ("csr", {"columns": lambda t: t.astype(np.int64)}, "columns are int64"),
    "values of a wrong type": ("csr", {"values": lambda t: t.astype(np.float64)}, "values are"),
    "values of another op": (
        "csr",
        {"values": lambda t: t.astype(np.int8)},
        "values are int8, which is not of this op",
    ),
    "scales too few": ("bitmask-int8", {"scales": lambda t: t[:-1]}, "scales has shape"),
    "scales not finite": ("bitmask-int8", {"scales": set_last(np.nan)}, "scales hold a value that is not finite"),
    "groups that do not divide": ("bitmask-int4", {"scales": lambda t: np.repeat(t, 7, 1)}, "do not divide"),
    "activation scale negative": ("csr-int8", {"activation_scale": lambda t: t - 1}, "activation_scale is not"),
    "blocks not square": ("block", {"values": lambda t: t[:, :-1]}, "values have shape"),
    "more rows than blocks": ("block", {"out_features": lambda t: t + 16}, "row_offsets has shape"),
    "rows overflow": ("block", {"out_features": lambda t: t + 2**62}, "out_features is"),
    "rows negative": ("block", {"out_features": lambda t: -t}, "out_features is -33"),
    "padding rows hold values": ("block", {"values": np.ones_like}, "values past"),
}


@pytest.mark.parametrize("name, changes, message", DAMAGE.values(), ids=list(DAMAGE))
def test_damage_is_refused_at_load_by_the_node_s_name(name, changes, message):
    with pytest.raises(Exception, match=f"node 'linear': .*{message}"):
        open_session(replaced(name, **changes))


@pytest.mark.parametrize("in_features", [-1, -(2**63), 2**31, 2**63 - 1])
def test_in_features_out_of_range_is_refused(in_features):
    for name in ("bitmask", "csr", "block"):
        with pytest.raises(Exception, match=r"node 'linear': .*in_features is"):
            open_session(make_model(LAYOUTS[name], tensors_of(name), in_features, function=False))


def test_in_features_must_be_given():
    model = replaced("bitmask")
    del model.graph.node[0].attribute[:]
    with pytest.raises(Exception, match="attribute in_features is missing"):
        open_session(model)


def test_a_computed_tensor_is_refused():
    model = replaced("bitmask")
    mask = model.graph.initializer[1]
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.UINT8, list(mask.dims)))
    model.graph.initializer.remove(mask)
    with pytest.raises(Exception, match="node 'linear': mask is not a constant input"):
        open_session(model)


def test_x_and_bias_of_a_wrong_shape_are_refused_at_the_call():
    session = open_session(make_model(LAYOUTS["csr"], tensors_of("csr"), SHAPE[1], np.ones(5, np.float32), False))
    with pytest.raises(Exception, match=r"node 'linear': bias has not the shape \[out_features\]"):
        session.run(None, {"X": np.ones((1, 2, SHAPE[1]), np.float32)})
    model = replaced("csr")
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "K"
    with pytest.raises(Exception, match="the last dimension of X is not in_features, 70"):
        open_session(model).run(None, {"X": np.ones((1, 2, 9), np.float32)})


@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_mutated_tensors_are_refused_or_mean_what_decode_says(data):
    """Where the kernel takes the tensors, the Python decoder does too, and the two agree."""
    name = data.draw(st.sampled_from(sorted(LAYOUTS)))
    layout = LAYOUTS[name]
    tensors = {part: tensor.copy() for part, tensor in tensors_of(name).items()}
    part = data.draw(st.sampled_from(sorted(tensors)))
    raw = bytearray(tensors[part].tobytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    tensors[part] = np.frombuffer(bytes(raw), tensors[part].dtype).reshape(tensors[part].shape)
    model = make_model(layout, tensors, SHAPE[1], function=False)
    onnx.checker.check_model(model)
    try:
        session = open_session(model)
    except Exception as refusal:
        assert "node 'linear': " in str(refusal)
        return
    weight, _ = layout.decode(tensors, SHAPE[1])
    x = np.random.default_rng(0).standard_normal((1, 3, SHAPE[1])).astype(np.float32)
    (y,) = session.run(None, {"X": x})
    if not np.isfinite(weight).all() or np.abs(weight).max() > 1e30:
        return
    scale = float(tensors.get("activation_scale", np.zeros(1))[0])
    assert error(y, expected(x, weight, None, layout.values.name, scale)) < 1e-5
