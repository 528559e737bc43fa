"""From the command line to the model repository of a machine with a GPU."""

import json
import re

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from hebbline.cli import main
from hebbline.serve.engine.engines import is_installed, read_engines
from hebbline.serve.triton.repository import check_model, fill_repository
from hebbline.serve.triton.settings import Settings

KINDS = model_config_pb2.ModelInstanceGroup


def kind_of(repository):
    config = text_format.Parse((repository / "llm/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    return {group.kind for group in config.instance_group}


def test_a_repository_for_another_machine_asks_for_a_gpu_and_holds_the_engine(engine_artifact, tmp_path):
    repository = tmp_path / "repository"
    fill_repository(engine_artifact, repository, Settings(slots=2), copy=True)
    assert kind_of(repository) == {KINDS.KIND_GPU}
    check_model(repository / "llm")
    copied = repository / "llm/1/artifact"
    (engine,) = read_engines(copied)
    assert (copied / engine.file).read_bytes() == (engine_artifact / engine.file).read_bytes()


def test_a_repository_for_this_machine_and_one_without_engines_do_not(engine_artifact, tiny_artifact, tmp_path):
    fill_repository(engine_artifact, tmp_path / "here", Settings(slots=2))
    fill_repository(tiny_artifact, tmp_path / "plain", Settings(slots=2), copy=True)
    assert kind_of(tmp_path / "here") == kind_of(tmp_path / "plain") == {KINDS.KIND_CPU}


@pytest.mark.skipif(is_installed("tensorrt"), reason="TensorRT is installed here")
def test_the_command_without_tensorrt_says_how_to_get_it(tiny_model_directory, tmp_path, capfd):
    code = main(["export", str(tiny_model_directory), "--target", "tensorrt", "--out", str(tmp_path / "out")])
    error = capfd.readouterr().err
    assert code == 2 and error.startswith("hebbline: error: TensorRT is not installed") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="pip install 'hebbline[gpu-build]'")
def test_the_command_builds_publishes_and_says_what_was_not_run(tiny_model_directory, tmp_path, capfd):
    out = tmp_path / "out"
    options = ["--target", "tensorrt-rtx", "--precision", "bfloat16", "--permute", "2:4"]
    assert main(["export", str(tiny_model_directory), *options, "--out", str(out)]) == 0
    said = capfd.readouterr().err
    (engine,) = read_engines(out)
    assert engine.precision == "bfloat16" and engine.compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
    assert engine.file in said and "built and not run" in said
    for line in (
        r"permute 2:4: .* fit before, .* after",
        r"parity with torch: logits within .* \(allowed .*\), 64 of 64 greedy tokens identical",
        r"parity of its graph with torch: logits within .* \(allowed .*\), 64 of 64 greedy tokens identical in float32",
        r"perplexity of held-out English text: .* in float32, .* by its graph in bfloat16 \([+-].*%\)",
    ):
        assert re.search(line, " ".join(said.split())), line
    report = json.loads((out / "report.json").read_text())
    assert len(report["engine_layers"]) == 14
    assert all("takes no plugins" in layer["reason"] for layer in report["engine_layers"])


@pytest.mark.skipif(is_installed("tensorrt"), reason="TensorRT is installed here")
def test_the_command_for_the_gpu_check_fails_in_one_line(capfd):
    code = main(["gpu-check"])
    error = capfd.readouterr().err
    assert code == 2 and error.startswith("hebbline: error: no NVIDIA GPU can be used here") and error.count("\n") == 1
