"""From the command line to the model repository of a machine with a GPU."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from hebbline.cli import main
from hebbline.runtime.engines import EngineFacts, is_installed, read_engines
from hebbline.runtime.static_cache import StepLimits
from hebbline.serve.triton.production import production_commands
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


def test_the_printed_command_has_what_the_engine_needs(engine_artifact, tmp_path, capfd):
    repository = tmp_path / "repository"
    assert main(["serve", str(engine_artifact), "--repository", str(repository), "--copy", "--fill-only"]) == 0
    said = capfd.readouterr().err
    words = shlex.split(said[said.index("docker run") : said.index("\nInference, health")])
    (engine,) = read_engines(engine_artifact)
    assert words[words.index("--gpus") + 1] == "all"
    assert "nvcr.io/nvidia/tritonserver:26.02-py3" in words
    assert f'"numpy<2" tensorrt-rtx-cu13=={engine.version} &&' in words[-1]
    for generation in engine.compute_capabilities:
        assert generation in said
    for option in ("--grpc-restricted-protocol=", "--http-restricted-api="):
        assert f"{option}model-repository,shared-memory,trace,logging:no:body=$key" in words[-1]


def facts_of(runtime, version, generation="8.6"):
    return EngineFacts("a.engine", runtime, version, (generation,), "float16", StepLimits(1, 1))


@pytest.mark.parametrize(
    ("runtime", "version", "requirement", "tag"),
    [
        ("tensorrt-rtx", "1.7.1.116", "tensorrt-rtx-cu13==1.7.1.116", "26.02-py3"),
        ("tensorrt", "11.4.0.106", "tensorrt-cu13==11.4.0.106", "26.02-py3"),
        ("tensorrt", "10.9.0.34", "tensorrt-cu12==10.9.0.34", "25.06-py3"),
    ],
)
def test_each_runtime_has_its_image_and_the_page_says_so(runtime, version, requirement, tag, tmp_path):
    (production,) = production_commands(tmp_path, [facts_of(runtime, version)])
    assert f":{tag}" in production.command and f" {requirement} &&" in production.command
    page = (Path(__file__).parents[2] / "docs/deploy-gpu.md").read_text()
    package = requirement.partition("=")[0]
    assert re.search(rf"^\| `{runtime}`.*`{package}==`.*`{tag}`", page, re.M)


def test_engines_of_several_runtimes_have_a_command_each(tmp_path):
    """As a container has one of them; engines of one runtime share it."""
    engines = [facts_of("tensorrt", "10.9.0.34", "8.0"), facts_of("tensorrt", "10.9.0.34", "9.0")]
    first, second = production_commands(tmp_path, [*engines, facts_of("tensorrt-rtx", "1.7.1.116", "12.0")])
    assert "8.0, 9.0" in first.machine and "12.0" not in first.machine and "tensorrt-rtx" not in first.command
    assert "12.0" in second.machine and "tensorrt-cu12" not in second.command


def test_a_version_that_would_be_a_command_is_only_a_word(tmp_path):
    """Artifacts come from anyone."""
    version = "1.7; touch '/tmp/a file'"
    (production,) = production_commands(tmp_path, [facts_of("tensorrt-rtx", version)])
    assert f"tensorrt-rtx-cu13=={version}" in shlex.split(shlex.split(production.command)[-1])


@pytest.mark.parametrize(("runtime", "version"), [("tensorrt", "9.3.0"), ("tensorrt", ""), ("openvino", "11.0")])
def test_a_runtime_without_a_known_image_is_named_and_nothing_is_filled(
    engine_artifact, tmp_path, runtime, version, capfd
):
    artifact = tmp_path / "artifact"
    shutil.copytree(engine_artifact, artifact)
    content = json.loads((artifact / "engines.json").read_text())
    content["engines"][0] |= {"runtime": runtime, "version": version}
    (artifact / "engines.json").write_text(json.dumps(content))
    assert main(["serve", str(artifact), "--repository", str(tmp_path / "models"), "--copy", "--fill-only"]) == 2
    assert f"is of {runtime} {version}, for which no container is known" in capfd.readouterr().err
    assert not (tmp_path / "models").exists()


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
