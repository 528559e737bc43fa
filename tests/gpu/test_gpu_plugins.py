"""The plugins in the real registry of TensorRT's lean runtime, and the functions that stand in for them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from hebbline.export.tensorrt.build import RUNTIMES, EngineRequest, build_engine
from hebbline.export.tensorrt.packed import add_packed_linear
from hebbline.export.tensorrt.typed_graph import PRECISIONS, TypedGraph, save_typed_model
from hebbline.kernels.gpu.packing import FORMS, PACKERS, ROUNDING_PACKERS, GpuWeight, pack_csr
from hebbline.kernels.gpu.unpacking import unpack_words
from hebbline.runtime.engines import is_installed

plugins = pytest.importorskip("hebbline.kernels.gpu.plugins", reason="pip install 'hebbline[gpu-build]'")

PHASES = dict.fromkeys(("bitmask", "csr", "block", "nm24"), ("decode", "prefill"))
PHASES |= dict.fromkeys(("gap", "gap8"), ("decode", "decode", "decode", "decode", "prefill", "prefill"))


@pytest.fixture(scope="module")
def registered():
    """What a process finds that registers the plugins; without the interpreter, as it compiles kernels."""
    if not is_installed("tensorrt_lean"):
        pytest.skip("TensorRT's lean runtime is not installed: pip install 'hebbline[dev]'")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("lean_plugins.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_plugin_is_in_the_registry(registered):
    attributes = ["in_features", "out_features", "block_size"]
    assert registered["version"].startswith("11.")
    assert registered["creators"] == [[f"{form}_linear", "hebbline", "1", attributes] for form in FORMS]


@pytest.mark.parametrize("form", FORMS)
def test_a_plugin_describes_its_output_and_offers_its_kernels(registered, form):
    plugin = registered["plugins"][f"hebbline::{form}_linear"]
    assert plugin["output"] == [2, 35, 130] and plugin["types"] == 2
    assert [kernel["name"] for kernel in plugin["kernels"]] == [f"{form}_{phase}" for phase in PHASES[form]]
    tokens = (1, 2, 4, 8, 32, 128) if form.startswith("gap") else (1, 32)
    assert [kernel["grid"][1:] for kernel in plugin["kernels"]] == [[-(-70 // step), 1] for step in tokens]
    gap = (4, 4, 4, 4, 32, 32)
    rows = {"bitmask": (8, 32), "csr": (1, 1), "block": (32, 32), "nm24": (8, 32), "gap": gap, "gap8": gap}[form]
    assert [kernel["grid"][0] for kernel in plugin["kernels"]] == [-(-130 // step) for step in rows]
    for kernel in plugin["kernels"]:
        assert kernel["scalars"] == [70, 130, 70] and kernel["threads"] in (64, 128)
        assert kernel["entry"] and kernel["assembles"]
        assert kernel["parameters"] == len(plugins.TENSOR_TYPES[form]) + 5


def packed_graph(form, shape, density, folder, precision="float16"):
    rng = np.random.default_rng(0)
    mask = rng.random(shape) < density
    mask[0] = mask[-1] = False
    weight = np.where(mask, rng.standard_normal(shape), 0).astype(PRECISIONS[precision].numpy)
    packed = (PACKERS | ROUNDING_PACKERS)[form](weight, mask)
    if form in ROUNDING_PACKERS:
        weight = unpack_words(form, *shape, packed.tensors).astype(weight.dtype)
    graph = TypedGraph(PRECISIONS[precision])
    graph.input("x", ["tokens", shape[1]])
    graph.output("y", ["tokens", shape[0]])
    add_packed_linear(graph, "x", "layer", packed, "y")
    save_typed_model(graph.model("packed"), folder / "packed.onnx")
    return weight, folder / "packed.onnx"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("shape", "density"), [((40, 70), 0.3), ((33, 129), 0.0), ((5, 260), 0.6)])
def test_the_function_of_the_same_name_decodes_and_multiplies(form, shape, density, tmp_path):
    weight, path = packed_graph(form, shape, density, tmp_path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    # The identity times W^T is the decoded weight itself, exactly.
    np.testing.assert_array_equal(session.run(None, {"x": np.eye(shape[1], dtype=np.float16)})[0], weight.T)


@pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="pip install 'hebbline[gpu-build]'")
@pytest.mark.parametrize(
    ("form", "precision"),
    [
        ("bitmask", "bfloat16"),
        ("csr", "float16"),
        ("block", "float16"),
        ("nm24", "float16"),
        ("gap", "float16"),
        ("gap8", "bfloat16"),
    ],
)
def test_without_the_plugin_nvidias_builder_takes_the_function(form, precision, tmp_path):
    _, path = packed_graph(form, (40, 70), 0.3, tmp_path, precision)
    profile = {"x": ((1, 70), (1, 70), (8, 70))}
    request = EngineRequest(RUNTIMES["tensorrt-rtx"], path, tmp_path / "a.engine", [profile], ("8.6",))
    assert build_engine(request).network_layers > 50 and (tmp_path / "a.engine").stat().st_size > 0


def test_integers_are_passed_as_words_of_the_same_bytes():
    packed = pack_csr(np.ones((3, 5), np.float16), np.ones((3, 5), bool))
    tensors = plugins.plugin_tensors(packed)
    assert tensors["values"] is packed.tensors["values"]
    words = tensors["columns"]
    assert words.dtype == np.int32 and words.tobytes() == packed.tensors["columns"].tobytes() + b"\0\0"
    assert plugins.as_words(np.zeros(0, np.uint16)).tolist() == [0]


def test_a_kernel_that_needs_its_scratch_memory_is_refused():
    head = ".visible .entry k(\n\t.param .u64 k_param_0,\n\t.param .u64 k_param_1\n)\n{\n"
    assert "k_param_1" not in plugins.without_scratch(head + "ret;\n}", 1)
    with pytest.raises(ValueError, match="uses its scratch memory, k_param_1"):
        plugins.without_scratch(head + "ld.param.u64 %rd1, [k_param_1];\n}", 1)
    with pytest.raises(ValueError, match="has 2 parameters, not 3"):
        plugins.without_scratch(head + "}", 3)


def test_a_layer_that_the_plugin_cannot_take_is_refused():
    graph = TypedGraph(PRECISIONS["float16"])
    wide = GpuWeight("csr", 4, 70_000, pack_csr(np.zeros((4, 8), np.float16), np.zeros((4, 8), bool)).tensors)
    with pytest.raises(ValueError, match="layer 'up' is 4 by 70000"):
        add_packed_linear(graph, "x", "up", wide, "y")
    half = pack_csr(np.zeros((4, 8), np.float16), np.zeros((4, 8), bool))
    with pytest.raises(ValueError, match="values are float16 in a graph of bfloat16"):
        add_packed_linear(TypedGraph(PRECISIONS["bfloat16"]), "x", "up", half, "y")
