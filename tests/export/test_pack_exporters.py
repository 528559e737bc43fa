"""Files from real exporters and quantizers, with zeros in their weights."""

import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from pack_models import check_packed, dense, make_model, node, op_types, save, sparse, value

from hebbline.export import pack

WIDTH = 64


class Tokens(torch.nn.Module):
    """Embedding, an encoder layer with attention, and a head."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(50, WIDTH)
        layer = torch.nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = torch.nn.Linear(WIDTH, 50, bias=False)

    def forward(self, ids):
        return self.head(self.encoder(self.embedding(ids)))


def pruned(model, density=0.2):
    """Multiplied by masks, as training does: it leaves a minus zero where a negative weight was."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embedding" not in name:
                parameter.mul_(torch.rand_like(parameter) < density)
    return model.eval()


@pytest.fixture
def tokens_model():
    torch.manual_seed(0)
    return pruned(Tokens())


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return pruned(torch.nn.Sequential(torch.nn.Linear(24, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, 10)))


@pytest.mark.parametrize("opset", [13, 18])
def test_torch_with_tracing(mlp, opset, tmp_path):
    path = tmp_path / "mlp.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"x": {0: "batch"}, "y": {0: "batch"}}
        torch.onnx.export(
            mlp,
            (torch.zeros(2, 24),),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
        )
    x = dense(5, 24)
    report, packed = check_packed(path, tmp_path, {"x": x})
    assert [layer.layout for layer in report.layers] == ["bitmask", "bitmask"]
    assert packed.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    y = onnxruntime.InferenceSession(tmp_path / "packed/model.onnx").run(None, {"x": x})[0]
    np.testing.assert_allclose(y, mlp(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


def test_a_transformer_from_torch_with_tracing(tokens_model, tmp_path):
    path = tmp_path / "tokens.onnx"
    ids = torch.randint(0, 50, (2, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(tokens_model, (ids,), path, dynamo=False, opset_version=17, input_names=["ids"])
    check_transformer(path, tmp_path, ids)


def test_a_transformer_from_torch_dynamo(tokens_model, tmp_path):
    pytest.importorskip("onnxscript", reason="torch.onnx.export(dynamo=True) needs onnxscript")
    path = tmp_path / "tokens.onnx"
    ids = torch.randint(0, 50, (2, 7))
    shapes = {"ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}}
    torch.onnx.export(tokens_model, (ids,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    check_transformer(path, tmp_path, ids)
    assert (tmp_path / "tokens.onnx.data").exists()  # this exporter writes external data, and symbolic dimensions


def check_transformer(path, tmp_path, ids):
    report, _ = check_packed(path, tmp_path, {"ids": ids.numpy()})
    assert len(report.packed_layers) == 5 and report.end_to_end.difference < 1e-5
    assert all("weights of -0" in layer.reason for layer in report.packed_layers)
    assert report.file_bytes < 0.65 * report.original_bytes


class Calibration(CalibrationDataReader):
    def __init__(self):
        self.left = [{"X": dense(8, 48, seed=seed)} for seed in range(4)]

    def get_next(self):
        return self.left.pop() if self.left else None


@pytest.fixture
def float_path(tmp_path):
    nodes = [node("MatMul", ["X", "A"], ["a"]), node("Relu", ["a"], ["r"]), node("Gemm", ["r", "B", "C"], ["Y"])]
    constants = {"A": sparse(48, 64, density=0.1), "B": sparse(64, 32, density=0.1), "C": dense(32)}
    return save(make_model(nodes, [value("X", "n", 48)], [value("Y", "n", 32)], constants, 21), tmp_path)


@pytest.mark.parametrize("activations", [QuantType.QInt8, QuantType.QUInt8])
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantised_and_dequantised_graphs(float_path, per_channel, activations, tmp_path):
    """Activations stay quantised, and weights stay the file's integers, packed or not as time says."""
    path = tmp_path / "qdq.onnx"
    types = {"activation_type": activations, "weight_type": QuantType.QInt8}
    quantize_static(float_path, path, Calibration(), quant_format=QuantFormat.QDQ, per_channel=per_channel, **types)
    # A number that lies between two steps may fall to either side, by the order of sums.
    report, packed = check_packed(path, tmp_path, {"X": dense(5, 48)}, tolerance=2e-2, objective="size")
    assert [layer.values for layer in report.packed_layers] == ["int8", "int8"]
    assert all("DequantizeLinear" in layer.reason for layer in report.layers)
    assert {"QuantizeLinear", "DequantizeLinear"} < set(op_types(packed))


def test_layers_of_dynamically_quantised_graphs_are_listed(float_path, tmp_path):
    """MatMulInteger multiplies integers; it is packed where that is measured to be faster."""
    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(float_path, path)
    report = pack(path, tmp_path / "packed")
    products = [layer for layer in report.layers if layer.op_type == "MatMulInteger"]
    assert len(products) == 2 and all(layer.time_unit == "us measured" for layer in products)
    assert all(layer.packed or layer.reason.startswith("left: it is as fast or faster") for layer in products)
