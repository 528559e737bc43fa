"""Bad input gets exit code 2 and one clear line, and writes nothing."""

import json
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from hebbline.cli import main
from hebbline.serve.triton.process import free_ports


@pytest.fixture
def refuse(capsys):
    """Run a command that must fail with exit code 2 and one line on stderr; returns the line."""

    def run(*arguments) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        last = captured.err.strip().splitlines()[-1]
        assert last.startswith("hebbline: error: ")
        return last

    return run


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("modle: {layers: 2}", "there is no field 'modle'"),
        ("modle: {}", "there is no field 'modle'"),
        ("sparsity: {topology: {kind: brf, q: 3}}", "there is no field 'sparsity.topology.q'"),
        ("model: 3", "model must be a mapping"),
        ("model: {layers: two}", "model.layers"),
        ("sparsity: {density: 0}", "sparsity.density 0.0 is outside (0, 1]"),
        ("sparsity: {density: 1.5}", "sparsity.density 1.5 is outside (0, 1]"),
        ("sparsity: {density: .nan}", "sparsity.density nan is outside (0, 1]"),
        ("sparsity: {method: magic}", "sparsity.method"),
        ("{{", "is not YAML"),
    ],
)
def test_recipes(refuse, tmp_path, recipe, message):
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert message in refuse("train", tmp_path / "recipe.yaml", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_help_of_train_lists_the_recipes(capsys):
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().err
    assert "  demo                  A 4.7-million-parameter Llama" in said and "  translation-small " in said
    assert "usage: hebbline train RECIPE [options]" in said and "those of the task 'language-model' are" in said
    assert main(["train", "mnist-mlp", "--help"]) == 0
    assert "those of the task 'image' are" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["prune", "export", "pack", "serve", "gateway", "query", "eval", "bench model"])
def test_help_has_no_words_of_python(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "usage: hebbline" in said
    assert not {word for word in ("<class", "null", "default: False", "default: []", "()") if word in said}


def test_train_options(refuse, tmp_path):
    assert "name a recipe" in refuse("train")
    assert "neither a file nor a shipped recipe" in refuse("train", "nothing")
    assert "--sparsity.densty" in refuse("train", "demo", "--sparsity.densty", "0.3")
    (tmp_path / "somebody.txt").write_text("precious")
    assert "was not published by hebbline" in refuse("train", "demo", "--out", tmp_path)


def test_a_directory_that_is_not_there_is_told_from_one_without_a_manifest(refuse, tmp_path):
    assert f"{tmp_path / 'no'} is not a directory" in refuse("inspect", tmp_path / "no")
    assert "is not a published directory" in refuse("inspect", tmp_path)


def test_model_directories(refuse, tiny_model_directory, tmp_path):
    out = tmp_path / "artifact"
    assert "is not a directory" in refuse("export", tmp_path / "nothing", "--out", out)
    model = tmp_path / "model"
    shutil.copytree(tiny_model_directory, model)
    (model / "tokenizer.json").unlink()
    (model / "hebbline.json").unlink()
    assert "has no tokenizer.json" in refuse("export", model, "--out", out)
    shutil.copyfile(tiny_model_directory / "tokenizer.json", model / "tokenizer.json")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    assert "layer 'model.layers.1.mlp.up_proj.weight' has 1 weights that are NaN" in refuse(
        "export", model, "--out", out
    )
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps(config | {"architectures": ["BloomForCausalLM"], "model_type": "bloom"})
    )
    assert "BloomForCausalLM" in refuse("export", model, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("command", ["serve", "eval", "inspect"])
def test_a_damaged_artifact_is_named(refuse, tiny_artifact, tmp_path, command):
    damaged = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, damaged)
    (damaged / "tokenizer.json").write_text("{}")
    assert f"{damaged / 'tokenizer.json'} is damaged" in refuse(command, damaged)


def test_serve_options(refuse, tiny_artifact, tiny_model_directory):
    assert "of kind 'model'" in refuse("serve", tiny_model_directory)
    assert "grpc port 99999 is not between" in refuse("serve", tiny_artifact, "--grpc-port", "99999")
    assert "slots must be an integer from 1" in refuse("serve", tiny_artifact, "--slots", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"grpc port {port}: Address already in use" in refuse("serve", tiny_artifact, "--grpc-port", port)


def test_queries(refuse):
    nobody = f"127.0.0.1:{free_ports().grpc}"
    assert "no server answers" in refuse("query", "hello", "--url", nobody)
    assert "the prompt is empty" in refuse("query", "", "--url", nobody)
    assert "max_tokens must be between" in refuse("query", "hello", "--max-tokens", "-1", "--url", nobody)
    assert "top_p must be above 0" in refuse("query", "hello", "--top-p", "0", "--url", nobody)


def test_evaluation(refuse, tiny_artifact, tiny_model_directory):
    nobody = f"grpc://127.0.0.1:{free_ports().grpc}"
    assert "give --tokenizer" in refuse("eval", nobody)
    assert "no server answers" in refuse("eval", nobody, "--tokenizer", tiny_model_directory)
    assert "neither 'python', 'brown', a hub:// name, nor a file" in refuse(
        "eval", tiny_artifact, "--source", "nothing"
    )
    assert "--window 500 is outside [2, 128]" in refuse("eval", tiny_artifact, "--window", "500")


def test_unknown_commands(refuse, capsys):
    assert "there is no command 'trian'" in refuse("trian")
    assert main([]) == 2
    assert "hebbline COMMAND" in capsys.readouterr().out
