"""Channels that do nothing are removed from the graph, and nothing else is. Weights are whole: sums are then exact."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from pack_models import dense, make_model, node, save, value

from hebbline.export import pack
from hebbline.export.foreign.channel_rules import _RULES
from hebbline.export.foreign.document import open_document
from hebbline.export.foreign.removal import remove_channels


def whole(*shape, seed=0):
    """A weight of small whole numbers, none of them 0."""
    rng = np.random.default_rng((seed, *shape))
    return (rng.integers(1, 4, shape) * rng.choice([-1, 1], shape)).astype(np.float32)


def without(weight, axis, places):
    """The weight with zeros at some places of an axis."""
    weight = weight.copy()
    weight[(slice(None),) * axis + (places,)] = 0
    return weight


def removed(model, tmp_path, feeds, exact=True):
    """The model after removal, which computes the same as before."""
    path = save(model, tmp_path)
    with open_document(path) as document:
        found = remove_channels(document, tmp_path)
        after = onnx.ModelProto.FromString(document.proto.SerializeToString())
    onnx.checker.check_model(after, full_check=True)
    for expected, actual in zip(run(model, feeds), run(after, feeds), strict=True):
        assert actual.shape == expected.shape and np.abs(expected).max() > 0
        if exact:
            np.testing.assert_array_equal(actual, expected)
        else:
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    return found, after


def run(model, feeds):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def shapes(model):
    return {tensor.name.removesuffix(".kept"): tuple(tensor.dims) for tensor in model.graph.initializer}


def stays(model, tmp_path, feeds):
    before = model.SerializeToString()
    found, after = removed(model, tmp_path, feeds)
    assert not found.layers and not found.notes and after.SerializeToString() == before


DEAD = [1, 4, 5]
LEFT = 5


def two_layers(middle=(), first=None, second=None, bias=None, **more):
    """X [2, 6] -> 8 channels -> Y [2, 4], with nodes from "h" to "m" between."""
    nodes = [node("Gemm", ["X", "A", "a"], ["h"], name="first"), *middle]
    nodes.append(node("MatMul", ["m" if middle else "h", "B"], ["Y"], name="second"))
    bias = without(whole(8), 0, DEAD) if bias is None else bias
    constants = {"A": without(whole(6, 8), 1, DEAD) if first is None else first, "a": bias}
    constants |= {"B": whole(8, 4) if second is None else second} | more
    return make_model(nodes, [value("X", 2, 6)], [value("Y", 2, 4)], constants, 18)


X = {"X": whole(2, 6, seed=7)}


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Tanh", "Elu", "HardSwish", "Identity", "Neg"])
def test_empty_rows_go_through_an_activation(activation, tmp_path):
    model = two_layers([node(activation, ["h"], ["m"])])
    found, after = removed(model, tmp_path, X, exact=activation in ("Relu", "Identity", "Neg"))
    assert shapes(after) == {"A": (6, LEFT), "a": (LEFT,), "B": (LEFT, 4)}
    assert found.layers == (("first", 3, 8),) and "3 of the 8 output channels of 1 layers" in found.notes[0]


def test_what_the_next_layer_does_not_read(tmp_path):
    """Rows that are full, and a bias: the next layer's columns are empty, so that neither matters."""
    model = two_layers(
        [node("Softplus", ["h"], ["m"])], first=whole(6, 8), second=without(whole(8, 4), 0, DEAD), bias=whole(8)
    )
    _, after = removed(model, tmp_path, X, exact=False)
    assert shapes(after) == {"A": (6, LEFT), "a": (LEFT,), "B": (LEFT, 4)}


def test_a_constant_goes_into_the_next_bias(tmp_path):
    """relu(bias) of an empty row is the same for all inputs: an Add behind a MatMul that has no bias."""
    model = two_layers([node("Relu", ["h"], ["m"])], bias=whole(8))
    _, after = removed(model, tmp_path, X)
    assert shapes(after) == {"A": (6, LEFT), "a": (LEFT,), "B": (LEFT, 4), "Y.constants": (4,)}
    assert [item.op_type for item in after.graph.node] == ["Gemm", "Relu", "MatMul", "Add"]


def test_a_constant_goes_on_through_layers(tmp_path):
    """A layer whose only links read a constant is a constant too."""
    second = without(whole(8, 4), 1, [2])
    second[1, 2] = 3.0  # of a channel that is a constant
    nodes = [node("Gemm", ["X", "A", "a"], ["h"]), node("Relu", ["h"], ["m"]), node("Gemm", ["m", "B", "b"], ["n"])]
    nodes += [node("Gemm", ["n", "C"], ["Y"], transB=1)]
    constants = {
        "A": without(whole(6, 8), 1, DEAD),
        "a": np.abs(whole(8)),
        "B": second,
        "b": whole(4),
        "C": whole(5, 4),
    }
    model = make_model(nodes, [value("X", 2, 6)], [value("Y", 2, 5)], constants, 18)
    _, after = removed(model, tmp_path, X)
    assert {name: shape for name, shape in shapes(after).items() if name in "ABC"} == {
        "A": (6, LEFT),
        "B": (LEFT, 3),
        "C": (5, 3),
    }


def test_through_gelu_as_exporters_write_it(tmp_path):
    nodes = [node("Div", ["h", "root"], ["d"]), node("Erf", ["d"], ["e"]), node("Add", ["e", "one"], ["f"])]
    nodes += [node("Mul", ["h", "f"], ["g"]), node("Mul", ["g", "half"], ["m"])]
    scalars = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    model = two_layers(nodes, bias=whole(8), **{name: np.array(number) for name, number in scalars.items()})
    _, after = removed(model, tmp_path, X, exact=False)
    assert shapes(after)["B"] == (LEFT, 4)


def test_a_gate_closes_a_channel(tmp_path):
    """silu(gate) * up: an empty row of the gate makes 0, whatever the other is."""
    nodes = [node("MatMul", ["X", "G"], ["g"]), node("Sigmoid", ["g"], ["s"]), node("Mul", ["g", "s"], ["t"])]
    nodes += [node("MatMul", ["X", "U"], ["u"]), node("Mul", ["t", "u"], ["m"]), node("MatMul", ["m", "B"], ["Y"])]
    constants = {"G": without(whole(6, 8), 1, DEAD), "U": whole(6, 8, seed=1), "B": whole(8, 4)}
    model = make_model(nodes, [value("X", 2, 6)], [value("Y", 2, 4)], constants, 18)
    _, after = removed(model, tmp_path, X)
    assert shapes(after) == {"G": (6, LEFT), "U": (6, LEFT), "B": (LEFT, 4)}


def test_of_a_sum_only_channels_that_are_empty_in_both(tmp_path):
    nodes = [node("MatMul", ["X", "A"], ["a"]), node("MatMul", ["X", "C"], ["c"]), node("Add", ["a", "c"], ["h"])]
    nodes += [node("Relu", ["h"], ["m"]), node("MatMul", ["m", "B"], ["Y"])]
    constants = {"A": without(whole(6, 8), 1, [1, 2, 3]), "C": without(whole(6, 8, seed=1), 1, [2, 3, 4])}
    model = make_model(nodes, [value("X", 2, 6)], [value("Y", 2, 4)], constants | {"B": whole(8, 4)}, 18)
    _, after = removed(model, tmp_path, X)
    assert shapes(after) == {"A": (6, 6), "C": (6, 6), "B": (6, 4)}


FILTERS = 12
EMPTY = [1, 3, 4, 5, 6, 7, 9, 11]
"""ONNX Runtime takes channels by fours: what is left of them must be such a number."""
FULL = 4
PICTURE = {"X": whole(1, 3, 6, 6, seed=7)}


def convolutions(middle, end, constants, y_shape, bias=None, pads=(1, 1, 1, 1)):
    """X [1, 3, 6, 6] -> Conv of 12 filters, most of them empty -> nodes from "h" to "m" -> `end`, which writes Y."""
    nodes = [node("Conv", ["X", "A", "a"], ["h"], name="first", pads=list(pads)), *middle, *end]
    bias = without(whole(FILTERS), 0, EMPTY) if bias is None else bias
    given = {"A": without(whole(FILTERS, 3, 3, 3), 0, EMPTY), "a": bias}
    return make_model(nodes, [value("X", 1, 3, 6, 6)], [value("Y", *y_shape)], given | constants, 18)


CONV = [node("Conv", ["m", "B", "b"], ["Y"], pads=[1, 1, 1, 1])]
CONSTANTS = {"B": whole(4, FILTERS, 3, 3), "b": whole(4)}
RELU = [node("Relu", ["h"], ["m"])]


def test_empty_filters_go_to_the_next_convolution(tmp_path):
    _, after = removed(convolutions(RELU, CONV, CONSTANTS, (1, 4, 6, 6)), tmp_path, PICTURE)
    assert shapes(after) == {"A": (FULL, 3, 3, 3), "a": (FULL,), "B": (4, FULL, 3, 3), "b": (4,)}


def test_a_number_at_padded_borders_is_no_constant(tmp_path):
    """Where the border is padded, a filter's constant meets fewer taps: only those that Relu makes 0 go."""
    bias = np.array([1, -1, 1, -1, -1, -1, 1, 1, 1, 1, 1, 1], np.float32)
    _, after = removed(convolutions(RELU, CONV, CONSTANTS, (1, 4, 6, 6), bias), tmp_path, PICTURE)
    assert shapes(after)["B"] == (4, FULL + 4, 3, 3)
    end = [node("Conv", ["m", "B", "b"], ["Y"])]
    _, after = removed(convolutions(RELU, end, CONSTANTS, (1, 4, 4, 4), bias), tmp_path, PICTURE)
    assert shapes(after)["B"] == (4, FULL, 3, 3)


def test_batch_norm_between(tmp_path):
    """Its shift makes a constant of an empty filter, which Relu makes 0 where it is negative."""
    norm = [node("BatchNormalization", ["h", "s", "t", "mean", "var"], ["n"]), node("Relu", ["n"], ["m"])]
    shift = np.array([1, -1, 1, -1, -1, -3, 5, 1, 1, 1, 1, 1], np.float32)
    mean, variance = np.zeros(FILTERS, np.float32), np.ones(FILTERS, np.float32)
    constants = CONSTANTS | {"s": whole(FILTERS), "t": shift, "mean": mean, "var": variance}
    _, after = removed(convolutions(norm, CONV, constants, (1, 4, 6, 6)), tmp_path, PICTURE, exact=False)
    assert shapes(after)["B"] == (4, FULL + 4, 3, 3) and shapes(after)["mean"] == (FULL + 4,)


def test_one_group_for_each_channel(tmp_path):
    """A depthwise convolution loses the channels that it is given none of, and those of which its taps are zero."""
    middle = [node("Conv", ["h", "D", "d"], ["e"], group=FILTERS, pads=[1, 1, 1, 1]), node("Relu", ["e"], ["m"])]
    model = convolutions(middle, CONV, CONSTANTS, (1, 4, 6, 6))
    tensors = {"A": without(whole(FILTERS, 3, 3, 3), 0, EMPTY[:6]), "a": without(whole(FILTERS), 0, EMPTY[:6])}
    tensors |= {"D": without(whole(FILTERS, 1, 3, 3), 0, EMPTY[6:]), "d": without(whole(FILTERS), 0, EMPTY)}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in tensors]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *(numpy_helper.from_array(*pair[::-1]) for pair in tensors.items())])
    _, after = removed(model, tmp_path, PICTURE)
    assert shapes(after)["D"] == (FULL, 1, 3, 3) and shapes(after)["A"] == (FULL, 3, 3, 3)
    assert helper.get_attribute_value(after.graph.node[1].attribute[-1]) == FULL


def test_pooling_resizing_and_padding_are_passed(tmp_path):
    middle = [node("MaxPool", ["h"], ["p"], kernel_shape=[2, 2], strides=[2, 2])]
    middle += [node("Resize", ["p", "", "scales"], ["r"], mode="nearest"), node("Pad", ["r", "pads"], ["m"])]
    constants = CONSTANTS | {"scales": np.array([1, 1, 2, 2], np.float32), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    _, after = removed(convolutions(middle, CONV, constants, (1, 4, 8, 8)), tmp_path, PICTURE)
    assert shapes(after)["B"] == (4, FULL, 3, 3)


@pytest.mark.parametrize("flat", ["Flatten", "Reshape"])
def test_a_classifier_behind_convolutions(flat, tmp_path):
    middle = [node("MaxPool", ["h"], ["p"], kernel_shape=[3, 3], strides=[3, 3])]
    middle.append(node(flat, ["p", "shape"][: 1 + (flat == "Reshape")], ["m"]))
    constants = {"B": whole(4 * FILTERS, 4)} | ({"shape": np.array([0, -1])} if flat == "Reshape" else {})
    model = convolutions(middle, [node("Gemm", ["m", "B"], ["Y"])], constants, (1, 4))
    _, after = removed(model, tmp_path, PICTURE)
    assert shapes(after)["B"] == (FULL * 4, 4)


def test_global_pooling_and_squeezing(tmp_path):
    middle = [node("GlobalMaxPool", ["h"], ["p"]), node("Squeeze", ["p", "axes"], ["m"])]
    constants = {"B": whole(FILTERS, 4), "axes": np.array([2, 3])}
    model = convolutions(middle, [node("MatMul", ["m", "B"], ["Y"])], constants, (1, 4))
    _, after = removed(model, tmp_path, PICTURE)
    assert shapes(after)["B"] == (FULL, 4)


def test_concatenated_and_split(tmp_path):
    """Channels are followed into the parts: those go that are empty in both."""
    middle = [node("Conv", ["X", "C"], ["c"], pads=[1, 1, 1, 1]), node("Concat", ["h", "c"], ["both"], axis=1)]
    middle += [node("Split", ["both"], ["one", "two"], axis=1, num_outputs=2), node("Add", ["one", "two"], ["m"])]
    constants = CONSTANTS | {"C": without(whole(FILTERS, 3, 3, 3, seed=1), 0, [*EMPTY[:4], 0, 2, 8, 10])}
    _, after = removed(convolutions(middle, CONV, constants, (1, 4, 6, 6)), tmp_path, PICTURE)
    assert shapes(after)["B"] == (4, 8, 3, 3) and shapes(after)["C"] == (8, 3, 3, 3)
    (split,) = (item for item in after.graph.node if item.op_type == "Split")
    sizes = {tensor.name: tensor for tensor in after.graph.initializer}[split.input[1]]
    assert numpy_helper.to_array(sizes).tolist() == [8, 8] and not split.attribute[1:]


def test_transposed_convolution(tmp_path):
    end = [node("ConvTranspose", ["m", "B", "b"], ["Y"], strides=[2, 2])]
    model = convolutions(RELU, end, {"B": whole(FILTERS, 4, 2, 2), "b": whole(4)}, (1, 4, 12, 12))
    _, after = removed(model, tmp_path, PICTURE)
    assert shapes(after)["B"] == (FULL, 4, 2, 2)


def test_a_layer_that_is_all_zero_keeps_one_channel(tmp_path):
    model = two_layers([node("Relu", ["h"], ["m"])], first=np.zeros((6, 8), np.float32), bias=np.abs(whole(8)))
    _, after = removed(model, tmp_path, X)
    assert shapes(after)["A"] == (6, 1)


STAYING = {
    "a softmax over the channels": [node("Softmax", ["h"], ["m"], axis=-1)],
    "a layer norm": [node("LayerNormalization", ["h", "norm"], ["m"])],
    "another shape": [node("Reshape", ["h", "shape"], ["r"]), node("Reshape", ["r", "back"], ["m"])],
    "a slice": [node("Slice", ["h", "zeros", "eight", "ones"], ["m"])],
    "a sum with what has no channels": [node("Add", ["h", "V"], ["m"])],
    "its shape is read": [node("Shape", ["h"], ["k"]), node("Reshape", ["h", "k"], ["m"])],
    "a mean over the channels": [node("ReduceMean", ["h", "last"], ["r"]), node("Sub", ["h", "r"], ["m"])],
}
LISTS = {"shape": [4, 4], "back": [2, 8], "zeros": [0], "eight": [8], "ones": [1], "last": [-1]}


@pytest.mark.parametrize("why", STAYING)
def test_what_must_not_be_touched(why, tmp_path):
    read = {name for item in STAYING[why] for name in item.input}
    more = {name: np.array(numbers, np.int64) for name, numbers in LISTS.items() if name in read}
    more |= {"norm": whole(8)} if "norm" in read else {}
    model = two_layers(STAYING[why], **more)
    feeds = dict(X)
    if "V" in read:
        model.graph.input.append(value("V", 2, 8))
        feeds["V"] = whole(2, 8, seed=3)
    stays(model, tmp_path, feeds)


def test_an_output_of_the_graph_stays(tmp_path):
    model = two_layers([node("Relu", ["h"], ["m"])])
    model.graph.output.append(value("m", 2, 8))
    stays(model, tmp_path, X)


def test_what_a_branch_reads_stays(tmp_path):
    branch = [
        helper.make_graph([node(kind, ["m"], [kind])], kind, [], [value(kind, 2, 8)]) for kind in ("Identity", "Neg")
    ]
    model = two_layers([node("Relu", ["h"], ["m"])])
    model.graph.node.append(node("If", ["which"], ["Z"], then_branch=branch[0], else_branch=branch[1]))
    model.graph.input.append(value("which", kind=TensorProto.BOOL))
    model.graph.output.append(value("Z", 2, 8))
    stays(model, tmp_path, X | {"which": np.array(True)})


def test_weights_that_something_else_reads_stay(tmp_path):
    """Two copies of one weight would make the file larger."""
    nodes = [node("MatMul", ["X", "A"], ["h"]), node("Relu", ["h"], ["m"]), node("MatMul", ["m", "B"], ["Y"])]
    nodes.append(node("MatMul", ["X", "A"], ["Z"]))
    constants = {"A": without(whole(64, 64), 1, DEAD), "B": whole(64, 4)}
    outputs = [value("Y", 2, 4), value("Z", 2, 64)]
    stays(make_model(nodes, [value("X", 2, 64)], outputs, constants, 18), tmp_path, {"X": whole(2, 64)})


def test_a_few_channels_are_not_worth_it(tmp_path):
    """Sparse kernels pass over empty rows; and of convolutions what is left must be a multiple of four."""
    stays(two_layers([node("Relu", ["h"], ["m"])], first=without(whole(6, 8), 1, []), bias=whole(8)), tmp_path, X)
    wide = {"A": without(whole(6, 32), 1, DEAD), "B": whole(32, 4)}
    nodes = [node("MatMul", ["X", "A"], ["h"]), node("Relu", ["h"], ["m"]), node("MatMul", ["m", "B"], ["Y"])]
    stays(make_model(nodes, [value("X", 2, 6)], [value("Y", 2, 4)], wide, 18), tmp_path, X)
    bias = without(np.abs(whole(FILTERS)), 0, EMPTY[:3])
    stays(convolutions(RELU, CONV, CONSTANTS, (1, 4, 6, 6), bias), tmp_path, PICTURE)


def test_infinite_weights_stay(tmp_path):
    """0 times infinity is no 0."""
    second = whole(8, 4)
    second[DEAD[0], 0] = np.inf
    model = two_layers([node("Relu", ["h"], ["m"])], second=second)
    with open_document(save(model, tmp_path)) as document:
        assert not remove_channels(document, tmp_path).layers


def test_a_mask_as_exporters_write_it(tmp_path):
    """Weight times mask, computed in the graph: the result is stored smaller, and neither of the two any more."""
    mask = without(np.ones((6, 8), np.float32), 1, DEAD)
    model = two_layers([node("Relu", ["h"], ["m"])], first=whole(6, 8), M=mask)
    model.graph.node.insert(0, node("Mul", ["A", "M"], ["masked"]))
    model.graph.node[1].input[1] = "masked"
    _, after = removed(model, tmp_path, X)
    assert shapes(after) == {"masked": (6, LEFT), "a": (LEFT,), "B": (LEFT, 4)}
    assert [item.op_type for item in after.graph.node] == ["Gemm", "Relu", "MatMul"]


def test_packing_says_what_was_removed(tmp_path):
    """From file to file, with shapes of values between that the file states."""
    inner, dead = 96, np.arange(0, 96, 2)
    nodes = [node("Gemm", ["X", "A", "a"], ["h"], name="wide"), node("Relu", ["h"], ["m"])]
    nodes.append(node("Gemm", ["m", "B"], ["Y"], name="narrow"))
    constants = {"A": without(dense(32, inner), 1, dead), "a": dense(inner), "B": dense(inner, 8)}
    model = make_model(nodes, [value("X", "n", 32)], [value("Y", "n", 8)], constants, 18)
    model.graph.value_info.extend([value("h", "n", inner), value("m", "n", inner)])
    path = save(model, tmp_path)
    report = pack(path, tmp_path / "packed")
    assert (
        "48 of the 96 output channels of 1 layers do nothing" in report.notes[0] and "wide 48 of 96" in report.notes[0]
    )
    assert report.file_bytes < 0.65 * report.original_bytes and report.end_to_end.difference < 1e-5
    assert [layer.shape for layer in report.layers] == [(48, 32), (8, 48)]
    assert (
        report.speed.speedup is not None and "96 output channels" in Path(tmp_path / "packed/report.html").read_text()
    )
    x = dense(5, 32)
    session = onnxruntime.InferenceSession(tmp_path / "packed/model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"X": x})[0], run(model, {"X": x})[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("domain", "name"), sorted(_RULES))
@pytest.mark.parametrize("inputs", [["h"], ["", "h"]], ids=["one", "the second"])
def test_a_node_without_what_its_operator_needs_is_left(domain, name, inputs, tmp_path):
    """Files of which a part is missing: what such a node does is not known, and all of its inputs are needed."""
    nodes = [node("MatMul", ["X", "W"], ["h"]), helper.make_node(name, inputs, ["Y"], domain=domain)]
    model = make_model(nodes, [value("X", "n", 8)], [value("Y", "n", 8)], {"W": whole(8, 8)})
    with open_document(save(model, tmp_path)) as document:
        before = [list(one.input) for one in document.proto.graph.node]
        remove_channels(document, tmp_path)
        assert [list(one.input) for one in document.proto.graph.node] == before


def test_a_node_with_an_attribute_of_another_type_is_left(tmp_path):
    nodes = [node("Conv", ["X", "W"], ["h"]), node("Conv", ["h", "V"], ["Y"], pads=1.5)]
    weights = {"W": without(whole(8, 4, 1, 1), 0, [1, 2]), "V": whole(4, 8, 1, 1)}
    model = make_model(nodes, [value("X", 1, 4, 5, 5)], [value("Y", 1, 4, 5, 5)], weights)
    with open_document(save(model, tmp_path)) as document:
        remove_channels(document, tmp_path)
        assert shapes(document.proto) == {"W": (8, 4, 1, 1), "V": (4, 8, 1, 1)}
