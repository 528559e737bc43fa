"""Convolutions of one point and einsums of a matrix, which are linear layers in another notation."""

import sys

import numpy as np
import onnx
import pytest
from onnx import helper
from pack_models import FLOAT, check_packed, dense, make_model, node, op_types, save, sparse, value

from hebbline.export import pack
from hebbline.export.foreign import deciding

CHANNELS, FILTERS = 24, 16


@pytest.fixture
def convolutions_gain(monkeypatch):
    """What is tested is the form, which time on small layers does not choose."""
    monkeypatch.setattr(deciding, "gains", lambda times: times.packed > 0)


def model_of(nodes, x_shape, **constants):
    outputs = [helper.make_tensor_value_info("Y", FLOAT, None)]
    model = make_model(nodes, [value("X", *x_shape)], outputs, constants)
    return onnx.shape_inference.infer_shapes(model)


def weight_of(axes):
    return sparse(FILTERS, CHANNELS).reshape(FILTERS, CHANNELS, *[1] * axes)


CONVOLUTIONS = {
    "1d": ((2, CHANNELS, 7), {}, False),
    "2d": ((2, CHANNELS, 5, 6), {}, True),
    "3d": ((2, CHANNELS, 3, 4, 5), {}, True),
    "strided": ((2, CHANNELS, 5, 8), {"strides": [2, 3]}, True),
    "strided 1d": ((1, CHANNELS, 9), {"strides": [4]}, False),
    "named": ((2, CHANNELS, 5, 6), {"kernel_shape": [1, 1], "pads": [0] * 4, "group": 1, "auto_pad": "NOTSET"}, True),
    "valid": ((2, CHANNELS, 5, 6), {"auto_pad": "VALID", "dilations": [2, 2]}, False),
    "unit strides": ((2, CHANNELS, 5, 6), {"strides": [1, 1]}, True),
}


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_a_convolution_of_one_point_is_a_layer_in_place(form, convolutions_gain, monkeypatch, tmp_path):
    shape, attributes, biased = CONVOLUTIONS[form]
    constants = {"W": weight_of(len(shape) - 2)} | ({"b": dense(FILTERS)} if biased else {})
    nodes = [node("Conv", ["X", "W", "b"][: 2 + biased], ["Y"], name="conv", **attributes)]
    monkeypatch.setattr(sys.modules[pack.__module__], "_is_slower", lambda report: False)
    report, packed = check_packed(model_of(nodes, shape, **constants), tmp_path, {"X": dense(*shape)})
    (layer,) = report.layers
    assert layer.shape == (FILTERS, CHANNELS) and layer.op_type == "Conv" and layer.name == "conv"
    strided = any(step > 1 for step in attributes.get("strides", []))
    assert op_types(packed) == ["Slice"] * strided + ["Transpose", "BitmaskLinear", "Transpose"]
    assert layer.time_unit == "us measured" and "measured on an input of 1x24x" in layer.reason


LEFT = {
    "3x3": (sparse(FILTERS, CHANNELS, 3, 3), {}, "as it stands"),
    "grouped": (sparse(FILTERS, CHANNELS // 2, 1, 1), {"group": 2}, "a convolution so small"),
    "padded": (weight_of(2), {"pads": [1, 0, 0, 0]}, "a convolution so small"),
}


@pytest.mark.parametrize("form", LEFT)
def test_other_convolutions_are_left_with_their_density(form, convolutions_gain, tmp_path):
    weight, attributes, reason = LEFT[form]
    model = model_of([node("Conv", ["X", "W"], ["Y"], **attributes)], (1, CHANNELS, 5, 5), W=weight)
    report = pack(save(model, tmp_path), tmp_path / "packed", measure=False)
    (layer,) = report.layers
    assert not layer.packed and reason in layer.reason
    assert layer.shape == weight.shape and layer.density == np.count_nonzero(weight) / weight.size


def test_a_model_that_is_slower_by_its_convolutions_is_packed_without(convolutions_gain, monkeypatch, tmp_path):
    """Tiny ones, among which transpositions cost more than products save; the MatMul beside them is still packed."""
    nodes = [
        node("Conv", ["X", "W"], ["c"], name="conv"),
        node("MatMul", ["c", "M"], ["Y"], name="product"),
    ]
    model = model_of(nodes, (1, CHANNELS, 4, 32), W=weight_of(2), M=sparse(32, 32))
    monkeypatch.setattr(
        sys.modules[pack.__module__],
        "_is_slower",
        lambda report: any(item.op_type == "Conv" for item in report.packed_layers),
    )
    report = pack(save(model, tmp_path), tmp_path / "packed")
    assert [layer.packed for layer in report.layers] == [False, True]
    assert "the whole model was no faster" in report.layers[0].reason
    assert op_types(onnx.load(tmp_path / "packed/model.onnx")) == ["Conv", "BitmaskLinear"]


def test_a_convolution_is_measured(tmp_path):
    model = model_of([node("Conv", ["X", "W"], ["Y"])], (1, CHANNELS, 5, 5), W=weight_of(2))
    (layer,) = pack(save(model, tmp_path), tmp_path / "packed").layers
    assert layer.time_unit == "us measured" and layer.packed == ("left" not in layer.reason)


def test_a_quantised_convolution_is_left(convolutions_gain, tmp_path):
    constants = {"W": (weight_of(2) * 40).clip(-127, 127).astype(np.int8), "s": np.float32(0.1)}
    nodes = [node("DequantizeLinear", ["W", "s"], ["w"]), node("Conv", ["X", "w"], ["Y"])]
    report = pack(save(model_of(nodes, (1, CHANNELS, 5, 5), **constants), tmp_path), tmp_path / "packed")
    assert "a quantised convolution" in report.layers[0].reason and report.layers[0].density < 0.3


EINSUMS = {
    "bti,oi->bto": (True, (2, 5, CHANNELS)),
    "bti,io->bto": (False, (2, 5, CHANNELS)),
    "oi,bti->bto": (True, (2, 5, CHANNELS)),
    "bit,oi->bto": (True, (2, CHANNELS, 5)),
    "bti,oi->obt": (True, (2, 5, CHANNELS)),
    "i,oi->o": (True, (CHANNELS,)),
    "b t i , o i -> b o t": (True, (2, 5, CHANNELS)),
}


@pytest.mark.parametrize("equation", EINSUMS)
def test_an_einsum_that_is_a_layer(equation, tmp_path):
    by_row, shape = EINSUMS[equation]
    weight = sparse(FILTERS, CHANNELS) if by_row else sparse(CHANNELS, FILTERS)
    names = ["W", "X"] if equation.startswith("oi") else ["X", "W"]
    model = model_of([node("Einsum", names, ["Y"], equation=equation, name="sum")], shape, W=weight)
    report, packed = check_packed(model, tmp_path, {"X": dense(*shape)}, reference=" " not in equation)
    assert len(report.packed_layers) == 1 and "Einsum" not in op_types(packed)


@pytest.mark.parametrize("equation", ["bti,ti->bt", "bti,oi->bt", "bti,oi", "...i,oi->...o", "bii,oi->bo"])
def test_an_einsum_that_is_none(equation, tmp_path):
    size = 6
    shape = (2, size, size)
    weight = sparse(size, size, density=0.3)
    model = model_of([node("Einsum", ["X", "W"], ["Y"], equation=equation)], shape, W=weight)
    report = pack(save(model, tmp_path), tmp_path / "packed")
    assert not report.packed_layers and report.layers[0].links == np.count_nonzero(weight)
