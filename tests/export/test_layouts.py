import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hebbline.export.layouts import DOMAIN, DOMAIN_VERSION, IR_VERSION, LAYOUTS, OPSET, choose_layout

layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))


def make_layer(out_features, in_features, density, seed=0):
    """A masked weight with an active zero, an active minus zero, and an empty row where there is room."""
    rng = np.random.default_rng(seed)
    mask = rng.random((out_features, in_features)) < density
    if out_features > 2:
        mask[out_features // 2] = False
    weight = np.where(mask, rng.standard_normal(mask.shape), 0).astype(np.float32)
    links = np.argwhere(mask)
    for place, value in zip(links[:2], (0.0, -0.0), strict=False):
        weight[tuple(place)] = value
    return weight, mask


def same_bits(first, second):
    return first.shape == second.shape and first.tobytes() == second.tobytes()


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([0, 0.05, 0.3, 1]), st.integers(0, 10**6))
def test_decoding_gives_back_weight_and_mask_bit_for_bit(out_features, in_features, density, seed):
    weight, mask = make_layer(out_features, in_features, density, seed)
    for layout in LAYOUTS.values():
        tensors = layout.encode(weight, mask)
        decoded_weight, decoded_mask = layout.decode(tensors, in_features)
        assert same_bits(decoded_weight, weight) and same_bits(decoded_mask, mask)
        assert tuple(tensors) == layout.tensor_names
        links = int(mask.sum())
        assert sum(t.nbytes for t in tensors.values()) == layout.packed_bytes(out_features, in_features, links, 4)


@layouts
def test_wide_layers_round_trip(layout):
    weight, mask = make_layer(2, 70_000, 0.01)
    decoded_weight, decoded_mask = layout.decode(layout.encode(weight, mask), 70_000)
    assert same_bits(decoded_weight, weight) and same_bits(decoded_mask, mask)


@layouts
def test_weights_off_the_mask_are_not_dropped_silently(layout):
    weight, mask = make_layer(4, 9, 0.5)
    weight[~mask] = 1e-30
    with pytest.raises(ValueError, match="off the mask"):
        layout.encode(weight, mask)


def damage_bitmask(tensors):
    yield tensors | {"values": tensors["values"][:-1]}
    yield tensors | {"mask": tensors["mask"][:, :-1]}
    yield tensors | {"mask": np.full_like(tensors["mask"], 255)}


def damage_csr(tensors):
    offsets, columns = tensors["row_offsets"], tensors["columns"]
    yield tensors | {"values": tensors["values"][:-1]}
    yield tensors | {"row_offsets": offsets + 1}
    yield tensors | {"row_offsets": np.concatenate([offsets[:1], offsets[:0:-1]])}
    yield tensors | {"columns": columns + 9}
    yield tensors | {"columns": columns[::-1].copy()}


def test_damaged_tensors_are_refused():
    weight, mask = make_layer(4, 9, 0.5)
    for name, damage in (("bitmask", damage_bitmask), ("csr", damage_csr)):
        for tensors in damage(LAYOUTS[name].encode(weight, mask)):
            with pytest.raises(ValueError):
                LAYOUTS[name].decode(tensors, 9)


def make_model(layout, weight, mask, bias):
    tensors = layout.encode(weight, mask)
    initializers = [numpy_helper.from_array(tensors[name], name) for name in layout.tensor_names]
    if bias is not None:
        initializers.append(numpy_helper.from_array(bias, "bias"))
    inputs = ["X", *layout.tensor_names, "bias" if bias is not None else ""]
    out_features, in_features = weight.shape
    node = helper.make_node(layout.op_type, inputs, ["Y"], domain=DOMAIN, in_features=in_features)
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["B", "S", in_features])
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["B", "S", out_features])
    graph = helper.make_graph([node], "linear", [x], [y], initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, functions=[layout.function()])
    onnx.checker.check_model(model)
    return model


@layouts
@pytest.mark.parametrize("shape", [(1, 1), (5, 8), (24, 33), (33, 7)])
@pytest.mark.parametrize("density", [0, 0.3, 1])
@pytest.mark.parametrize("with_bias", [False, True])
def test_function_runs_anywhere_and_equals_float64(layout, shape, density, with_bias):
    weight, mask = make_layer(*shape, density)
    rng = np.random.default_rng(1)
    bias = rng.standard_normal(shape[0]).astype(np.float32) if with_bias else None
    model = make_model(layout, weight, mask, bias)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for x_shape in ((1, 1), (2, 3)):
        x = rng.standard_normal((*x_shape, shape[1])).astype(np.float32)
        expected = x.astype(np.float64) @ weight.astype(np.float64).T + (0 if bias is None else bias)
        for run in (session.run, ReferenceEvaluator(model).run):
            (y,) = run(None, {"X": x})
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@layouts
def test_onnx_runtime_folds_the_function_to_one_dense_product(layout, tmp_path):
    """Elsewhere than under the op library the price of the packed form is paid once, at load."""
    weight, mask = make_layer(24, 32, 0.3)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(make_model(layout, weight, mask, None).SerializeToString(), options)
    left = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "Gemm" in left and left <= {"Gemm", "Reshape", "Shape", "Slice", "Concat"}


def test_choice_is_the_smallest_and_says_why():
    assert choose_layout(512, 512, round(0.3 * 512**2)).layout.name == "bitmask"
    assert choose_layout(512, 512, round(0.01 * 512**2)).layout.name == "csr"
    dense = choose_layout(512, 512, 512**2)
    assert dense.layout is None and "left dense" in dense.reason and dense.packed_bytes == dense.dense_bytes
    choice = choose_layout(512, 512, 26_214)
    assert choice.packed_bytes == 512 * 64 + 4 * 26_214 and "bitmask 0.131" in choice.reason
