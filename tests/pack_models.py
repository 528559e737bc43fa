"""Small ONNX models with zeros in their weights, and what every packed model must do."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hebbline.artifacts import InputError, read_manifest
from hebbline.export import pack
from hebbline.kernels import library_path

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
node = helper.make_node
K, N = 24, 16
"""In and out features of the one layer of most models."""
SIZE = 4 * K * N
SECRET = b"not for the model"


def sparse(*shape, density=0.2, seed=0):
    """A weight with some zeros."""
    rng = np.random.default_rng((seed, *shape))
    return np.where(rng.random(shape) < density, rng.standard_normal(shape), 0).astype(np.float32)


def dense(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def value(name, *shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def make_model(nodes, inputs, outputs, initializers=None, opset=18, functions=(), domains=(), ir_version=8):
    tensors = [
        tensor if isinstance(tensor, TensorProto) else numpy_helper.from_array(tensor, name)
        for name, tensor in (initializers or {}).items()
    ]
    graph = helper.make_graph(nodes, "main", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    if opset >= 19:
        ir_version = max(ir_version, 10)
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=list(functions))


def save(model, tmp_path, **options):
    path = tmp_path / "foreign.onnx"
    onnx.save(model, path, **options)
    return path


def exact_session(path):
    """The original without ONNX Runtime's fusions, some of which multiply quantised weights in integers."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def sessions(path, reference):
    """The packed file in plain ONNX Runtime, in ONNX's reference evaluator, and with the op library where it is."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    yield "ONNX Runtime", onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run
    if reference:
        yield "reference", ReferenceEvaluator(str(path)).run
    try:
        options.register_custom_ops_library(str(library_path()))
    except InputError:
        return
    yield "op library", onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run


def check_packed(model, tmp_path, feeds, tolerance=1e-5, reference=True, **options):
    """Pack, and hold the published file to the original: same results everywhere, same interface, valid ONNX."""
    path = model if not isinstance(model, onnx.ModelProto) else save(model, tmp_path)
    before = path.read_bytes()
    report = pack(path, tmp_path / "packed", **options)
    assert path.read_bytes() == before
    assert read_manifest(tmp_path / "packed").kind == "onnx"
    packed_path = tmp_path / "packed/model.onnx"
    onnx.checker.check_model(str(packed_path), full_check=True)
    original, packed = onnx.load(path), onnx.load(packed_path)
    assert original.graph.input == packed.graph.input and original.graph.output == packed.graph.output
    assert original.metadata_props == packed.metadata_props
    expected = exact_session(path).run(None, feeds)
    for name, run in sessions(packed_path, reference):
        # The reference evaluator is held to itself: its Loop differs from ONNX Runtime's.
        own = ReferenceEvaluator(str(path)).run(None, feeds) if name == "reference" else expected
        for actual, wanted in zip(run(None, feeds), own, strict=True):
            assert np.asarray(actual).shape == wanted.shape, name
            scale = max(1.0, float(np.abs(wanted).max(initial=0)))
            np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * scale, err_msg=name)
    return report, packed


def op_types(model):
    return [item.op_type for item in model.graph.node]


def initializer_names(model):
    return {tensor.name for tensor in model.graph.initializer}


def external_tensor(location, offset=None, length=None, dims=(K, N), **more):
    tensor = TensorProto(name="W", data_type=FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    entries = {"location": location, "offset": offset, "length": length} | more
    for key, entry in entries.items():
        if entry is not None:
            tensor.external_data.add(key=key, value=str(entry))
    return tensor


def one_layer(weight, nodes=None):
    nodes = nodes or [node("MatMul", ["X", "W"], ["Y"])]
    return make_model(nodes, [value("X", "n", K)], [value("Y", "n", N)], {} if weight is None else {"W": weight})


def hostile_directory(tmp_path):
    """A directory with sound weights, and a secret of the right size beside it."""
    directory = tmp_path / "models"
    directory.mkdir()
    (directory / "weights.bin").write_bytes(sparse(K, N).tobytes())
    (tmp_path / "secret.bin").write_bytes(SECRET.ljust(SIZE, b"!"))
    return directory


def refused(directory, model, match):
    """Exit code 2 with one line that names the file; nothing is published; the secret is nowhere."""
    path = directory / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    with pytest.raises(InputError, match=match) as caught:
        pack(path, directory / "out")
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 1000
    assert not (directory / "out").exists()
    assert [item.name for item in directory.iterdir() if item.name.startswith(".")] == []


def layer_model(nodes, weight, x_shape=("n", K), y_shape=("n", N), **extra):
    """Nodes from X to Y with one weight W."""
    return make_model(nodes, [value("X", *x_shape)], [value("Y", *y_shape)], {"W": weight, **extra})


def run(path, feeds, library=False, name="Y"):
    """One output of a file, without ONNX Runtime's fusions."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if library:
        options.register_custom_ops_library(str(library_path()))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run([name], feeds)[0]
