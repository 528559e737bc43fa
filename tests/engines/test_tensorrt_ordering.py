"""Layers that gather their inputs in an order of their own, which makes them 2:4: the same function as before."""

import numpy as np
import onnx
import pytest
from sparse_llama import make_sparse_llama

from hebbline.artifacts.masks import MASKS_FILE, save_masks
from hebbline.export.graph import load_source
from hebbline.export.layouts.nm24 import is_two_of_four
from hebbline.export.passes import PassOptions
from hebbline.export.tensorrt import EngineOptions, export_engines
from hebbline.export.tensorrt.decoder import build_static_decoder
from hebbline.export.tensorrt.ordering import in_order, input_orders
from hebbline.runtime.engines import is_installed
from hebbline.runtime.static_cache import StepLimits


def random_mask(density, shape=(256, 256)):
    return np.random.default_rng(0).random(shape) < density


def test_an_order_is_found_where_it_makes_a_layer_two_four():
    masks = {
        "sparse": random_mask(0.08),
        "dense": random_mask(0.3),
        "short": random_mask(0.08, (256, 254)),
        "legal": np.tile([True, False, False, False], (8, 16)),
    }
    orders = input_orders(masks)
    assert set(orders) == {"sparse"} and not is_two_of_four(masks["sparse"])
    assert sorted(orders["sparse"]) == list(range(256))
    assert is_two_of_four(in_order(masks["sparse"], orders["sparse"]))
    assert in_order(masks["dense"], None) is masks["dense"]


@pytest.fixture(scope="module")
def directory(tokenizer, tmp_path_factory):
    """A model at 12% density: one order of the residual stream makes some of its layers 2:4, and not all."""
    folder = tmp_path_factory.mktemp("ordered") / "model"
    model, masks = make_sparse_llama(0.12, vocab_size=len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_masks(folder / MASKS_FILE, masks)
    return folder


def test_the_graph_gathers_inputs_and_stores_weights_in_that_order(directory):
    source = load_source(directory)
    orders = input_orders(source.masks)
    assert len(orders) > 4
    model = build_static_decoder(source, orders=orders)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    for name, order_K in orders.items():
        weight_NK = source.weight(name).astype(np.float16)
        np.testing.assert_array_equal(stored[f"{name}.weight"].T, weight_NK[:, order_K])
        gather = nodes[f"{name}.inputs"]
        assert gather.op_type == "Gather" and nodes[name].input[0] == gather.output[0]


@pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="pip install 'hebbline[gpu-build]'")
def test_an_engine_of_a_permuted_model_is_two_four_and_agrees_with_torch(directory, tmp_path):
    options, passes = EngineOptions(limits=StepLimits(2, 16)), PassOptions(permute="2:4")
    onnx_report, report = export_engines(directory, tmp_path / "out", options, passes=passes)
    assert all(layer.two_four for layer in report.layers) and len(report.layers) == 14
    assert report.parity.float32.greedy_tokens == 64
    assert set(report.unchanged) == {"model.embed_tokens", *(layer.name for layer in report.layers)}
    own = [layer for layer in onnx_report.engine_layers if "order of its own" in layer.reason]
    assert own, "no layer of the permuted model was left for an order of its own"
