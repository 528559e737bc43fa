"""Every family of decoders as an engine of TensorRT-RTX, whose bytes hold the weights of the graph."""

import pytest
from families import FAMILIES, MIXTURES, make_model
from family_graphs import source_of
from onnx import TensorProto, numpy_helper

from hebbline.export.tensorrt.build import RUNTIMES, EngineRequest, build_engine
from hebbline.export.tensorrt.decoder import build_static_decoder, step_profiles
from hebbline.export.tensorrt.typed_graph import PRECISIONS, save_typed_model
from hebbline.export.tensorrt.unchanged import unchanged_layers
from hebbline.runtime.engines import is_installed
from hebbline.runtime.static_cache import StepLimits

pytestmark = pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="pip install 'hebbline[gpu-build]'")


def matrices(model):
    """The weights of the graph's products, [N, K]."""
    constants = (tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16)
    return {tensor.name: numpy_helper.to_array(tensor).T for tensor in constants if len(tensor.dims) == 2}


ONE_OF_EACH = [name for name in FAMILIES if ":" not in name and name not in MIXTURES]


@pytest.mark.parametrize("family", [*ONE_OF_EACH, "opt: heads of 8"])
def test_the_engine_holds_every_weight(family, tmp_path):
    """Byte for byte: also where no rotation lies between a query and its product, of heads whose scale rounds."""
    source = source_of(make_model(family))
    model = build_static_decoder(source, PRECISIONS["float16"])
    weights = {name: weight for name, weight in matrices(model).items() if min(weight.shape) > 8}
    save_typed_model(model, tmp_path / "graph.onnx")  # from here on the weights are in a file
    profiles = step_profiles(source.facts(), StepLimits(2, 16))
    request = EngineRequest(
        RUNTIMES["tensorrt-rtx"], tmp_path / "graph.onnx", tmp_path / "a.engine", profiles, ("8.6",)
    )
    build_engine(request)
    engine = (tmp_path / "a.engine").read_bytes()
    missing = set(weights) - set(unchanged_layers(engine, weights))
    assert len(weights) > 8 and not missing
