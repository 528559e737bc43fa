"""A whole model whose linear layers are packed nodes: exact, equal to torch, and taken by NVIDIA's builder."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from sparse_llama import make_sparse_llama

from hebbline.artifacts import CheckError, InputError
from hebbline.artifacts.masks import MASKS_FILE, save_masks
from hebbline.cli import main
from hebbline.export.passes import PassOptions
from hebbline.export.tensorrt import EngineOptions, export_engines, exporter
from hebbline.export.tensorrt.build import RUNTIMES, EngineRequest, build_engine
from hebbline.export.tensorrt.decoder import build_static_decoder, step_profiles
from hebbline.export.tensorrt.decoding import check_packed
from hebbline.export.tensorrt.packed import DOMAIN
from hebbline.export.tensorrt.parity import check_graph
from hebbline.export.tensorrt.typed_graph import PRECISIONS, save_typed_model
from hebbline.runtime.engines import Gpu, is_installed
from hebbline.runtime.static_cache import StepLimits

needs_rtx = pytest.mark.skipif(
    not is_installed("tensorrt_rtx"), reason="TensorRT-RTX is not installed: pip install 'hebbline[gpu-build]'"
)
FORMS = ("gap", "bitmask", "csr", "block", "nm24")


@pytest.fixture(scope="module")
def forms(source):
    """Every form, in turn; the last projection stays dense."""
    names = sorted(source.masks)
    return {name: FORMS[place % len(FORMS)] for place, name in enumerate(names[:-1])}


@pytest.fixture(scope="module", params=["float16", "bfloat16"])
def packed(request, source, forms, tmp_path_factory):
    """The file, and its precision."""
    precision = PRECISIONS[request.param]
    path = tmp_path_factory.mktemp("packed") / "graph.onnx"
    save_typed_model(build_static_decoder(source, precision, forms), path)
    return path, precision


def weights_of(source):
    return {name: source.weight(name) for name in source.masks}


def test_the_file_holds_every_weight_bit_for_bit_and_no_dense_copy(source, forms, packed):
    path, precision = packed
    check_packed(path, weights_of(source), source.masks, forms, precision)
    model = onnx.load(path)
    assert {node.name: node.op_type for node in model.graph.node if node.domain == DOMAIN} == {
        name: f"{form}_linear" for name, form in forms.items()
    }
    stored = {tensor.name for tensor in model.graph.initializer}
    assert not stored & {f"{name}.weight" for name in forms}
    assert {function.name for function in model.functions} == {f"{form}_linear" for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_one_bit_that_differs_is_seen(source, forms, packed, tmp_path, form):
    path, precision = packed
    name = next(name for name, taken in forms.items() if taken == form)
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == f"{name}.values")
    values = onnx.numpy_helper.to_array(tensor).copy()
    flat = values.reshape(-1).view(np.uint16)
    flat[np.flatnonzero(flat)[7]] ^= 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    save_typed_model(model, tmp_path / "graph.onnx")
    with pytest.raises(CheckError, match=f"node '{name}' does not decode to the layer's weight"):
        check_packed(tmp_path / "graph.onnx", weights_of(source), source.masks, forms, precision)


def test_a_layer_that_is_not_packed_is_named(source, packed):
    path, precision = packed
    dense = sorted(source.masks)[-1]
    with pytest.raises(CheckError, match=f"layer '{dense}' is not a csr_linear node"):
        check_packed(path, weights_of(source), source.masks, {dense: "csr"}, precision)


def test_the_functions_of_the_nodes_pass_the_gate(source, forms, packed):
    path, precision = packed
    parity = check_graph(source.model, source, path, precision, lambda stage: None, forms=forms)
    assert parity.float32.greedy_tokens == 64 and parity.float32.full_forward <= parity.float32.logit_tolerance
    assert 0 < parity.in_precision <= 4 * parity.torch_in_precision


@needs_rtx
def test_nvidias_builder_takes_a_model_of_packed_nodes_by_their_functions(source, tmp_path):
    """TensorRT-RTX has no plugins: it parses the functions in place of the nodes, and builds them."""
    names = sorted(source.masks)[: len(FORMS)]
    forms = dict(zip(names, FORMS, strict=True))
    save_typed_model(build_static_decoder(source, forms=forms), tmp_path / "graph.onnx")
    profiles = step_profiles(source.facts(), StepLimits(batch=2, tokens=16))
    request = EngineRequest(
        RUNTIMES["tensorrt-rtx"], tmp_path / "graph.onnx", tmp_path / "a.engine", profiles, ("8.9",)
    )
    build = build_engine(request)
    engine = (tmp_path / "a.engine").read_bytes()
    assert build.network_layers > 1000
    for name in names:
        values = next(
            onnx.numpy_helper.to_array(t)
            for t in onnx.load(tmp_path / "graph.onnx").graph.initializer
            if t.name == f"{name}.values"
        )
        assert values.tobytes() in engine, name


@pytest.fixture
def one_layer_directory(tokenizer, tmp_path):
    """A model of one decoder layer: NVIDIA's builder takes a while for the functions of many packed nodes."""
    model, masks = make_sparse_llama(vocab_size=len(tokenizer), num_hidden_layers=1)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    save_masks(tmp_path / "model" / MASKS_FILE, masks)
    return tmp_path / "model"


@needs_rtx
def test_the_road_of_plugins_with_the_builder_that_is_here(one_layer_directory, tmp_path, monkeypatch):
    """Everything of `--plugins` but TensorRT itself: the choice, the file, both gates, the request, the reports."""
    requests = []

    def build_without_plugins(request):
        requests.append(request)
        return build_engine(replace(request, plugins=False))

    monkeypatch.setitem(RUNTIMES, "tensorrt", replace(RUNTIMES["tensorrt"], module="tensorrt_rtx"))
    monkeypatch.setattr(exporter, "find_gpu", lambda: Gpu("NVIDIA A100-SXM4-80GB", "8.0"))
    monkeypatch.setattr(exporter, "build_engine", build_without_plugins)
    options = EngineOptions(runtime="tensorrt", limits=StepLimits(2, 16), plugins=True)
    passes = PassOptions(permute="2:4")
    onnx_report, report = export_engines(one_layer_directory, tmp_path / "out", options, passes=passes)
    assert [request.plugins for request in requests] == [True]
    assert len(report.stored) == 7 and "gap" in {layer.layout for layer in report.stored}
    assert all(layer.reason for layer in report.stored) and onnx_report.engine_layers == report.stored
    assert {one.name for one in report.layers} == {one.name for one in report.stored if one.layout == "dense"}
    stored = json.loads((tmp_path / "out/report.json").read_text())["engine_layers"]
    assert [layer["reason"] for layer in stored] == [layer.reason for layer in report.stored]
    for page in ("report.html", "engines.html"):
        assert report.stored[0].reason in (tmp_path / "out" / page).read_text()
    assert report.parity.float32.greedy_tokens == 64 and report.quality.cost == pytest.approx(1, abs=0.02)


def test_a_runtime_without_plugins_is_refused_them(tiny_model_directory, tmp_path, capfd):
    with pytest.raises(InputError, match="TensorRT-RTX takes no plugins: export with --target tensorrt"):
        export_engines(tiny_model_directory, tmp_path / "out", EngineOptions(plugins=True))
    code = main(["export", str(tiny_model_directory), "--plugins", "--out", str(tmp_path / "out")])
    error = capfd.readouterr().err
    assert code == 2 and "--plugins is for --target tensorrt; onnx has none" in error
    assert not (tmp_path / "out").exists()
