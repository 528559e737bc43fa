"""Every family and variant, as torch computes it, against both graphs of ONNX Runtime and the one for TensorRT."""

import numpy as np
import pytest
import torch
from families import FAMILIES, MIXTURES, make_model
from family_graphs import TOKENS, assert_close, build, source_of, steps

from hebbline.artifacts import UnsupportedModelError
from hebbline.export.graph import StockAttention, VarlenAttention
from hebbline.export.reference import float32_rounding
from hebbline.export.tensorrt.decoder import build_static_decoder
from hebbline.export.tensorrt.parity import OnnxStepExecutor
from hebbline.export.tensorrt.typed_graph import PRECISIONS, save_typed_model
from hebbline.runtime.portable import PortableRunner
from hebbline.runtime.static_cache import StaticCacheRunner, StepLimits
from hebbline.runtime.varlen import VarlenRunner


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request):
    """A model, tokens, and torch's logits of them."""
    yield from make_case(request)


@pytest.fixture(scope="module", params=[variant for variant in FAMILIES if variant not in MIXTURES])
def static_case(request):
    """The same, of those that TensorRT takes."""
    yield from make_case(request)


def make_case(request):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    source = source_of(make_model(request.param))
    ids = np.random.default_rng(0).integers(0, 64, TOKENS).tolist()
    with torch.inference_mode():
        expected = source.model(torch.tensor([ids])).logits[0].numpy()
    yield source, ids, expected
    torch.set_num_threads(threads)


def test_its_rounding_is_measured(case):
    """Against the same weights in float64, whatever functions a family's modules call."""
    source, ids, expected = case
    assert 0 < float32_rounding(source.model, ids) < 3e-5 * max(1.0, np.abs(expected).max())


def test_stock_graph(case, tmp_path):
    source, ids, expected = case
    runner = PortableRunner(build(source, tmp_path, StockAttention()), source.facts(), slots=2, threads=1)
    assert_close(steps(runner, ids), expected)


def test_graph_of_the_op_library(case, tmp_path):
    source, ids, expected = case
    runner = VarlenRunner(build(source, tmp_path, VarlenAttention()), source.facts(), slots=2, threads=1)
    assert_close(steps(runner, ids), expected)


@pytest.mark.parametrize("variant", MIXTURES)
def test_tensorrt_takes_no_experts(variant):
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.0: experts .* --target onnx"):
        build_static_decoder(source_of(make_model(variant)))


def test_the_parser_of_tensorrt_takes_the_graph(static_case, tmp_path):
    trt = pytest.importorskip("tensorrt_rtx")
    save_typed_model(build_static_decoder(static_case[0]), tmp_path / "graph.onnx")
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(tmp_path / "graph.onnx")), parser.get_error(0).desc()
    assert network.num_layers > 50


def test_graph_for_tensorrt(static_case, tmp_path):
    source, ids, expected = static_case
    save_typed_model(build_static_decoder(source, PRECISIONS["float32"]), tmp_path / "graph.onnx")
    executor = OnnxStepExecutor(tmp_path / "graph.onnx", source.facts(), slots=2, threads=1)
    runner = StaticCacheRunner(source.facts(), 2, StepLimits(batch=2, tokens=TOKENS), executor)
    assert_close(steps(runner, ids), expected)
