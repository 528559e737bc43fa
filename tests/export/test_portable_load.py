"""What it takes to load a packed file without the op library: decoded bit for bit, once for each weight, in little
memory."""

import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from layout_models import make_model
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hebbline.export.foreign.packed_weight import Target, pack_weight
from hebbline.export.layouts import DOMAIN, DOMAIN_VERSION, IR_VERSION, LAYOUTS, NM24_LAYOUTS

ALL = LAYOUTS | NM24_LAYOUTS
EXACT = [layout for layout in ALL.values() if layout.values.name == "float32"]
OPSETS = (13, 16, 18, 24)


def make_layer(layout, rows, columns, density, seed=0):
    """A weight that fits the layout: whole blocks of 16, two links of four, or links anywhere."""
    rng = np.random.default_rng(seed)
    if layout.needs_blocks:
        coarse = rng.random((-(-rows // 16), -(-columns // 16))) < density
        mask = np.kron(coarse, np.ones((16, 16), bool))[:rows, :columns].astype(bool)
    elif layout.name.startswith("nm24"):
        rank = rng.random((rows, -(-columns // 4), 4)).argsort(axis=2)
        mask = ((rank < 2) & (rng.random(rank.shape) < 2 * density)).reshape(rows, -1)[:, :columns]
    else:
        mask = rng.random((rows, columns)) < density
    return np.where(mask, rng.standard_normal(mask.shape), 0).astype(np.float32), mask


def chain(layout, weights, opset=24):
    """A model of square layers one after another, each from the weight of its number in `weights`."""
    packed = {}
    for number, (weight, mask) in enumerate(weights):
        packed.setdefault(id(weight), (f"w{number}", pack_weight("", "", layout, weight, mask, Target(opset))))
    nodes, initializers, x = [], [], "X"
    for name, one in packed.values():
        initializers += [numpy_helper.from_array(array, f"{name}.{part}") for part, array in one.encode().items()]
    for number, (weight, _) in enumerate(weights):
        name, one = packed[id(weight)]
        tensors = [f"{name}.{part}" for part in layout.tensor_names]
        nodes.append(
            helper.make_node(one.op_type, [x, *tensors, ""], [f"y{number}"], domain=DOMAIN, in_features=weight.shape[1])
        )
        nodes.append(helper.make_node("Tanh", [f"y{number}"], [f"t{number}"]))
        x = f"t{number}"
    columns = weights[0][0].shape[1]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["T", columns])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["T", columns])],
        initializers,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    functions = [one.function for _, one in packed.values()][:1]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, functions=functions)


def optimized(model, tmp_path):
    """What ONNX Runtime makes of a model at load, before it chooses forms for this processor."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(tmp_path / "optimized.onnx").graph


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("layout", ALL.values(), ids=list(ALL))
def test_a_weight_of_many_nodes_is_decoded_once(layout, opset, tmp_path):
    shared, other = make_layer(layout, 64, 64, 0.2), make_layer(layout, 64, 64, 0.2, seed=1)
    graph = optimized(chain(layout, [shared, other, shared, shared], opset), tmp_path)
    matrices = [tensor for tensor in graph.initializer if list(tensor.dims) == [64, 64]]
    products = [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]
    assert len(matrices) == 2 and len(products) == 4
    assert len({node.input[1] for node in products}) == 2


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (17, 33), (40, 200), (2, 70_000)])
@pytest.mark.parametrize("layout", EXACT, ids=lambda layout: layout.name)
def test_weights_are_decoded_bit_for_bit(layout, shape, opset):
    """Infinities, numbers that are none, and both zeros among the links; in ONNX Runtime and the reference."""
    weight, mask = make_layer(layout, *shape, 0.4)
    special = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-45, np.nan], np.float32)
    places = np.argwhere(mask)[: len(special)]
    weight[tuple(places.T)] = special[: len(places)]
    model = make_model(layout, layout.encode(weight, mask), shape[1], function=False)
    function = pack_weight("", "", layout, weight, mask, Target(opset)).function
    function.output[0] = "weight_NK"
    model.functions.append(function)
    model.opset_import[0].version = opset
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for run in (session.run, ReferenceEvaluator(model).run):
        (decoded,) = run(None, {"X": np.zeros((1, 1, shape[1]), np.float32)})
        # Some bodies pad rows, and X with them.
        assert len(decoded) == shape[0] and not decoded[:, shape[1] :].any()
        assert decoded[:, : shape[1]].tobytes() == weight.tobytes()


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("layout", ALL.values(), ids=list(ALL))
def test_no_node_leaves_out_an_output(layout, opset):
    """ONNX Runtime 1.23 fails at load where such a node is folded."""
    (function,) = chain(layout, [make_layer(layout, 8, 8, 0.3)], opset).functions
    assert all(output for node in function.node for output in node.output)


LOAD = """
import sys, onnxruntime
def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
before = kilobytes("VmRSS")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print(1024 * (kilobytes("VmHWM") - before))
"""


def bytes_to_load(model, tmp_path):
    """How much more memory a fresh process takes at most while it loads a model."""
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.data")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "model.onnx")]
    environment = os.environ | FREED_AT_ONCE
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
"""glibc then gives each large tensor memory of its own, and returns it as soon as it is freed. By default it keeps some
for later, and how much of that is of use varies from run to run: by up to a sixth of what is measured here."""
BYTES_PER_CELL = 22
"""Of a layer of so many bytes a weight, linked or not, where a dense one takes 4 to 8: a round of folding has two
tensors as large as a float32 weight and makes one. All of the decoding in one round would take 24 to
64 for bitmasks and coded values."""
LAYOUTS_OF_FILES = (
    "bitmask",
    "coded",
    "csr",
    "block",
    "bitmask-bfloat16",
    "coded-bfloat16",
    "bitmask-int8",
    "bitmask-int4",
    "block-int4",
)
DENSITIES = {"csr": 0.05, "block": 0.2}


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the most memory that a process had is read from /proc"
)
@pytest.mark.parametrize("name", LAYOUTS_OF_FILES)
def test_loading_takes_little_memory(name, tmp_path):
    size, layers = 1024, 6
    density = DENSITIES.get(name, 0.3)
    weights = [make_layer(ALL[name], size, size, density, seed) for seed in range(layers)]
    nothing = bytes_to_load(chain(ALL[name], [make_layer(ALL[name], 8, 8, density)]), tmp_path)
    taken = bytes_to_load(chain(ALL[name], weights), tmp_path) - nothing
    assert taken <= BYTES_PER_CELL * layers * size**2


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the most memory that a process had is read from /proc"
)
def test_a_weight_of_forty_nodes_takes_the_memory_of_one(tmp_path):
    size, layout = 1024, LAYOUTS["bitmask"]
    shared = make_layer(layout, size, size, 0.15)
    nothing = bytes_to_load(chain(layout, [make_layer(layout, 8, 8, 0.15)]), tmp_path)
    taken = bytes_to_load(chain(layout, [shared] * 40), tmp_path) - nothing
    assert taken <= 80 * size**2  # each node decoding its own took 1,850 bytes a weight
