"""NVIDIA's own parser and builder, and what becomes of their refusals, deaths and delays."""

import os
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hebbline.artifacts import CheckError, InputError, UnsupportedModelError
from hebbline.export.tensorrt import EngineOptions, export_engines
from hebbline.export.tensorrt.build import RUNTIMES, EngineRequest, build_engine
from hebbline.export.tensorrt.decoder import build_static_decoder, step_profiles
from hebbline.export.tensorrt.typed_graph import PRECISIONS, save_typed_model
from hebbline.export.tensorrt.unchanged import unchanged_layers
from hebbline.runtime.engines import Gpu, is_installed
from hebbline.runtime.static_cache import StepLimits

RTX = RUNTIMES["tensorrt-rtx"]
needs_rtx = pytest.mark.skipif(
    not is_installed("tensorrt_rtx"),
    reason="TensorRT-RTX is not installed: pip install 'hebbline[gpu-build]'",
)


def one_node(folder, node, tensors=()):
    """A file with one node from x [2, 8] to y."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, [2, 8]) for name in "xy")
    graph = helper.make_graph([node], "one", [x], [y], list(tensors))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("elsewhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "one.onnx")
    return EngineRequest(RTX, folder / "one.onnx", folder / "one.engine", [], ("8.6",))


def weights_of(source, precision):
    names = [*source.masks, "model.embed_tokens"]
    return {name: source.weight(name).astype(PRECISIONS[precision].numpy) for name in names}


@needs_rtx
def test_the_float16_engine_carries_every_weight_byte_for_byte(engine_export, source):
    artifact, report = engine_export
    engine = (artifact / report.engine.file).read_bytes()
    weights = weights_of(source, "float16")
    assert sorted(unchanged_layers(engine, weights)) == sorted(weights) == sorted(report.unchanged)
    assert report.engine.compute_capabilities == ("7.5", "8.0", "8.6", "8.9", "12.0")


@needs_rtx
def test_the_bfloat16_engine_carries_them_too_and_has_two_profiles(source, tmp_path):
    save_typed_model(build_static_decoder(source, PRECISIONS["bfloat16"]), tmp_path / "graph.onnx")
    request = EngineRequest(
        RTX,
        tmp_path / "graph.onnx",
        tmp_path / "tiny.engine",
        step_profiles(source.facts(), StepLimits(batch=2, tokens=16)),
        ("8.0", "8.9"),
        timing_cache=tmp_path / "timing.cache",
    )
    build = build_engine(request)
    engine = (tmp_path / "tiny.engine").read_bytes()
    weights = weights_of(source, "bfloat16")
    assert sorted(unchanged_layers(engine, weights)) == sorted(weights)
    assert build.version.startswith("1.7.") and build.network_layers > 100 and "[I]" in build.log
    assert (tmp_path / "timing.cache").stat().st_size > 0


@needs_rtx
def test_a_weight_that_differs_in_its_last_bit_is_not_found(engine_export, source):
    artifact, report = engine_export
    weights = weights_of(source, "float16")
    for weight in weights.values():
        weight.view(np.uint16)[-1, -1] ^= 1
    assert unchanged_layers((artifact / report.engine.file).read_bytes(), weights) == []


def test_a_matrix_is_found_plain_transposed_and_beside_another():
    rng = np.random.default_rng(0)
    left_KN, right_KN = rng.standard_normal((9, 4)).astype(np.float16), rng.standard_normal((9, 7)).astype(np.float16)
    left_KN[:, 1], left_KN[0] = 0, 0
    fused = np.concatenate([left_KN, right_KN], axis=1)
    weights = {"left": left_KN.T, "right": right_KN.T}
    for content in (fused.tobytes(), left_KN.T.tobytes() + b"x" + right_KN.tobytes()):
        assert unchanged_layers(b"head" + content + b"tail", weights) == ["left", "right"]
    assert unchanged_layers(left_KN.tobytes()[:-1], weights) == []
    nothing = {"zero": np.zeros((3, 4), np.float16), "row": np.ones((1, 4), np.float16)}
    assert unchanged_layers(bytes(100_000), nothing) == []
    assert unchanged_layers(b"x" + nothing["row"].tobytes(), nothing) == ["row"]


@needs_rtx
def test_a_refused_node_is_named_with_the_parsers_own_words(tmp_path):
    request = one_node(tmp_path, helper.make_node("Mystery", ["x"], ["y"], name="layer.3.mystery", domain="elsewhere"))
    with pytest.raises(UnsupportedModelError, match=r"refuses node 'layer\.3\.mystery' \(Mystery\).*Plugin not found"):
        build_engine(request)
    assert not (tmp_path / "one.engine").exists()


@needs_rtx
def test_a_node_that_the_parser_does_not_name_is_found_in_its_log(tmp_path):
    places = onnx.numpy_helper.from_array(np.zeros((2, 8), np.int64), "places")
    node = helper.make_node("ScatterElements", ["x", "places", "x"], ["y"], name="adds", axis=1, reduction="add")
    with pytest.raises(UnsupportedModelError, match=r"node 'adds' \(ScatterElements\): Unsupported reduction type"):
        build_engine(one_node(tmp_path, node, [places]))


@needs_rtx
def test_a_graph_that_parses_and_cannot_be_built_is_refused(tmp_path, source):
    save_typed_model(build_static_decoder(source), tmp_path / "graph.onnx")
    request = EngineRequest(RTX, tmp_path / "graph.onnx", tmp_path / "a.engine", [], ("8.6",))
    with pytest.raises(CheckError, match=r"cannot build the engine.*no optimization profile"):
        build_engine(request)


@needs_rtx
def test_a_build_that_takes_too_long_is_ended(tmp_path):
    request = one_node(tmp_path, helper.make_node("Relu", ["x"], ["y"], name="relu"))
    with pytest.raises(CheckError, match=r"did not finish within 0\.05 s"):
        build_engine(replace(request, seconds=0.05))


@needs_rtx
def test_the_road_of_tensorrt_with_the_builder_that_is_here(tiny_model_directory, tmp_path, monkeypatch):
    """Everything but TensorRT's own module: one generation, that of the GPU; a timing cache; the log in the report."""
    monkeypatch.setitem(RUNTIMES, "tensorrt", replace(RUNTIMES["tensorrt"], module="tensorrt_rtx"))
    monkeypatch.setattr("hebbline.export.tensorrt.exporter.find_gpu", lambda: Gpu("stand-in", "8.6"))
    options = EngineOptions(runtime="tensorrt", limits=StepLimits(2, 16), timing_cache=tmp_path / "timing.cache")
    _, report = export_engines(tiny_model_directory, tmp_path / "out", options)
    assert report.engine.file == "tensorrt-sm86-float16.engine" and report.engine.compute_capabilities == ("8.6",)
    assert (tmp_path / "timing.cache").stat().st_size > 0
    assert {layer.two_four for layer in report.layers} == {False} and report.parity.in_precision > 0


def test_a_runtime_that_dies_takes_only_its_own_process_with_it(tmp_path, monkeypatch):
    (tmp_path / "dying_runtime.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)
    request = one_node(tmp_path, helper.make_node("Relu", ["x"], ["y"]))
    with pytest.raises(CheckError, match="TensorRT-RTX died of SIGABRT"):
        build_engine(replace(request, runtime=replace(RTX, module="dying_runtime")))


@pytest.mark.skipif(is_installed("tensorrt"), reason="TensorRT is installed here")
def test_without_tensorrt_the_message_says_how_to_get_it(tiny_model_directory, tmp_path):
    with pytest.raises(InputError, match=r"TensorRT is not installed: .*tensorrt-rtx builds without a GPU") as caught:
        export_engines(tiny_model_directory, tmp_path / "out", EngineOptions(runtime="tensorrt"))
    assert caught.value.exit_code == 2 and not (tmp_path / "out").exists()
