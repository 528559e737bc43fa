"""Every family and variant, as torch computes it, against both graphs of ONNX Runtime and the one for TensorRT."""

import numpy as np
import pytest
import torch
from families import FAMILIES, make_model
from family_graphs import TOKENS, assert_close, build, source_of, steps

from hebbline.export.graph import StockAttention, VarlenAttention
from hebbline.export.tensorrt.decoder import build_static_decoder
from hebbline.export.tensorrt.parity import OnnxStepExecutor
from hebbline.export.tensorrt.typed_graph import PRECISIONS, save_typed_model
from hebbline.serve.engine.portable import PortableRunner
from hebbline.serve.engine.static_cache import StaticCacheRunner, StepLimits
from hebbline.serve.engine.varlen import VarlenRunner


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


def test_stock_graph(case, tmp_path):
    source, ids, expected = case
    runner = PortableRunner(build(source, tmp_path, StockAttention()), source.facts(), slots=2, threads=1)
    assert_close(steps(runner, ids), expected)


def test_graph_of_the_op_library(case, tmp_path):
    source, ids, expected = case
    runner = VarlenRunner(build(source, tmp_path, VarlenAttention()), source.facts(), slots=2, threads=1)
    assert_close(steps(runner, ids), expected)


def test_graph_for_tensorrt(case, tmp_path):
    source, ids, expected = case
    save_typed_model(build_static_decoder(source, PRECISIONS["float32"]), tmp_path / "graph.onnx")
    executor = OnnxStepExecutor(tmp_path / "graph.onnx", source.facts(), slots=2, threads=1)
    runner = StaticCacheRunner(source.facts(), 2, StepLimits(batch=2, tokens=TOKENS), executor)
    assert_close(steps(runner, ids), expected)
