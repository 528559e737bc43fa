"""Every family and variant, as torch computes it, against both graphs of ONNX Runtime and the one for TensorRT."""

from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, make_model

from hebbline.architectures import check_fits, describe, pin_frequencies, use_linear_layers
from hebbline.export.graph import SourceModel, StockAttention, WeightFile, build_decoder, save_graph
from hebbline.export.tensorrt.decoder import build_static_decoder
from hebbline.export.tensorrt.parity import OnnxStepExecutor
from hebbline.export.tensorrt.typed_graph import PRECISIONS, save_typed_model
from hebbline.serve.engine.portable import PortableRunner
from hebbline.serve.engine.static_cache import StaticCacheRunner, StepLimits

TOKENS = 40
"""Past the windows and the original contexts of the variants, and over two borders of the cache's blocks."""


def source_of(model):
    use_linear_layers(model)
    decoder = describe(model.config)
    check_fits(decoder, model)
    pin_frequencies(model, decoder)
    tied = model.get_parameter(f"{decoder.head}.weight") is model.get_parameter(f"{decoder.embedding}.weight")
    masks = {
        name: module.weight.detach().numpy() != 0
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not (tied and name == decoder.head)
    }
    return SourceModel(Path("model"), model, decoder, masks, masks_stored=True, manifest=None, eos_token_ids=())


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request):
    """A model, tokens, and torch's logits of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    source = source_of(make_model(request.param))
    ids = np.random.default_rng(0).integers(0, 64, TOKENS).tolist()
    with torch.inference_mode():
        expected = source.model(torch.tensor([ids])).logits[0].numpy()
    yield source, ids, expected
    torch.set_num_threads(threads)


def steps(runner, ids):
    """The logits of all tokens: two pieces of a prompt, and single tokens."""
    logits = [runner.prefill(1, ids[:11], 0, range(11)).copy(), runner.prefill(1, ids[11:34], 11, range(23)).copy()]
    return np.concatenate([*logits, *(runner.decode(1, [ids[past]], [past]).copy() for past in range(34, TOKENS))])


def assert_close(actual, expected):
    assert np.abs(actual - expected).max() <= 3e-5 * max(1.0, np.abs(expected).max())


def build(source, folder, form):
    with WeightFile(folder / "weights") as weights:
        save_graph(build_decoder(source, weights, form), folder / "graph.onnx")
    return folder / "graph.onnx"


def test_stock_graph(case, tmp_path):
    source, ids, expected = case
    runner = PortableRunner(build(source, tmp_path, StockAttention()), source.facts(), slots=2, threads=1)
    assert_close(steps(runner, ids), expected)


def test_graph_for_tensorrt(case, tmp_path):
    source, ids, expected = case
    save_typed_model(build_static_decoder(source, PRECISIONS["float32"]), tmp_path / "graph.onnx")
    executor = OnnxStepExecutor(tmp_path / "graph.onnx", source.facts(), slots=2, threads=1)
    runner = StaticCacheRunner(source.facts(), 2, StepLimits(batch=2, tokens=TOKENS), executor)
    assert_close(steps(runner, ids), expected)
