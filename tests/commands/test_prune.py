"""`hebbline prune`: from a dense directory and a text to a sparse one that every later stage takes."""

import json

import pytest
import torch
from tiny import make_llama, make_text
from transformers import AutoModelForCausalLM

from hebbline.artifacts import InputError, read_manifest
from hebbline.artifacts.model_directory import open_model_directory
from hebbline.cli import main
from hebbline.data import train_tokenizer
from hebbline.train.prune.config import PruneConfig
from hebbline.train.prune.publish import Texts, prune_directory

OPTIONS = ["--density", "0.5", "--sequences", "6", "--sequence-length", "32", "--windows", "4", "--passes", "1"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A dense Llama with its tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("dense")
    tokenizer = train_tokenizer(make_text(50), 320)
    make_llama(len(tokenizer), dtype="float32").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "text.txt").write_text("\n\n".join(make_text(200)))
    return folder


def run(dense, out, *options):
    text = str(dense / "text.txt")
    return main(["prune", str(dense / "model"), "--calibration", text, "--out", str(out), *OPTIONS, *options])


def test_the_directory_holds_masks_report_and_goes_through_export(dense, tmp_path, capsys):
    out = tmp_path / "sparse"
    assert run(dense, out, "--values", "int4", "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report == json.loads((out / "report.json").read_text())
    assert report["density"] == pytest.approx(0.5, abs=1e-3) and len(report["blocks"]) == 2
    [cost] = report["perplexity"]
    assert cost["ratio"] == cost["after"] / cost["before"] and cost["tokens"] == 4 * 31
    assert "blocks done" in captured.err and "weights of other linear layers of the blocks stay dense" in captured.err
    html = (out / "report.html").read_text()
    assert "model.layers.1.mlp.down_proj" in html and "data:image/png;base64," in html
    directory = open_model_directory(out)
    assert read_manifest(out).method == "alps" and len(directory.masks) == 14
    model = AutoModelForCausalLM.from_pretrained(out)
    for name, mask in directory.masks.items():
        weight = model.get_submodule(name).weight.detach().numpy()
        assert (weight[mask] != 0).all() and not weight[~mask].any()
    assert not out.with_name("sparse.run").exists()
    assert main(["export", str(out), "--out", str(tmp_path / "artifact"), "--values", "int4", "--json"]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["pruning"] == [{name: cost[name] for name in ("source", "before", "after", "tokens")}]
    assert f"{cost['before']:.2f} dense, {cost['after']:.2f} pruned" in (tmp_path / "artifact/report.html").read_text()
    assert main(["eval", str(out), "--source", str(dense / "text.txt"), "--window", "32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["value"] == pytest.approx(cost["after"], rel=0.5)
    assert {layer["links"] for layer in exported["layers"]} == {
        layer["links"] for block in report["blocks"] for layer in block["layers"]
    }


def test_a_model_with_fewer_links_than_are_to_stay_is_said_to_have_them(tmp_path, dense, tiny_model_directory, capsys):
    options = ["--calibration", str(dense / "text.txt"), *OPTIONS, "--method", "magnitude", "--passes", "0"]
    assert main(["prune", str(tiny_model_directory), *options, "--out", str(tmp_path / "more")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "of their possible links already, and --density 0.5 keeps more" in said
    assert (
        main(["prune", str(tiny_model_directory), *options, "--density", "0.2", "--out", str(tmp_path / "less")]) == 0
    )
    assert "already" not in capsys.readouterr().err


def test_a_run_that_was_cut_goes_on_to_the_same_bits(dense, tmp_path):
    texts = Texts(str(dense / "text.txt"), sequences=6, sequence_length=32, windows=2)
    config, said = PruneConfig(passes=1), []

    def cut(what, done, of):
        if done == 1:
            raise KeyboardInterrupt

    source, out = str(dense / "model"), tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        prune_directory(source, texts, config, out, cut, said.append)
    assert not out.exists() and not said
    first = out.with_name("cut.run") / "prune/block-0000.safetensors"
    written = first.stat().st_mtime_ns
    seen = []
    report = prune_directory(
        source, texts, config, out, lambda *told: seen.append(first.stat().st_mtime_ns), said.append
    )
    assert said == ["going on with a run that was cut: 1 blocks are done"] and set(seen[:-1]) == {written}
    whole = prune_directory(source, texts, config, tmp_path / "whole", lambda *_: None, said.append)
    assert report.costs == whole.costs
    with pytest.raises(KeyboardInterrupt):
        prune_directory(source, texts, config, tmp_path / "again", cut, said.append)
    [remembered] = (tmp_path / "again.run/prune").glob("dense-*.json")
    remembered.write_text(json.dumps(json.loads(remembered.read_text()) | {"value": 7.0}))
    assert prune_directory(source, texts, config, tmp_path / "again", lambda *_: None, said.append).costs[0].before == 7
    states = [AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("cut", "whole")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert report.pruned.layers == whole.pruned.layers


def test_another_run_does_not_go_on_with_blocks_of_this_one(dense, tmp_path):
    texts = Texts(str(dense / "text.txt"), sequences=6, sequence_length=32, windows=2)

    def cut(what, done, of):
        if done == 1:
            raise KeyboardInterrupt

    said = []
    with pytest.raises(KeyboardInterrupt):
        prune_directory(str(dense / "model"), texts, PruneConfig(passes=0), tmp_path / "out", cut, said.append)
    other = PruneConfig(passes=0, density=0.25)
    report = prune_directory(str(dense / "model"), texts, other, tmp_path / "out", lambda *_: None, said.append)
    assert not said and {round(layer.density, 2) for layer in report.pruned.layers} == {0.25}
    blocks = [tmp_path / "out.run/prune/block-0000.safetensors"]
    with pytest.raises(KeyboardInterrupt):
        prune_directory(str(dense / "model"), texts, PruneConfig(passes=0), tmp_path / "out", cut, said.append)
    blocks[0].write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"block-0000\.safetensors is damaged .*delete it"):
        prune_directory(str(dense / "model"), texts, PruneConfig(passes=0), tmp_path / "out", cut, said.append)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--density", "1.5"], "density 1.5 is outside (0, 1]"),
        (["--structure", "2:4", "--density", "0.7"], "a density of 0.7 is infeasible"),
        (["--sequence-length", "129"], "sequence_length 129 is above the context"),
        (["--include", "*.nothing"], "include '*.nothing' matches no linear layer"),
        (["--calibration", "nowhere.txt"], "data.source 'nowhere.txt' is neither"),
        (["--method", "magic"], "magic"),
    ],
)
def test_bad_input_is_one_line(dense, tmp_path, capsys, options, message):
    assert run(dense, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_text_shorter_than_a_sequence_is_refused(dense, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("\n\n".join(f"a word {number}" for number in range(60)))
    options = ["--calibration", str(tmp_path / "short.txt"), "--sequence-length", "128", "--evaluate", "python"]
    (tmp_path / "one.txt").write_text("alone")
    assert run(dense, tmp_path / "out", *options[2:], "--calibration", str(tmp_path / "one.txt")) == 2
    assert "too few to hold out" in capsys.readouterr().err
    (tmp_path / "short.txt").write_text("\n\n".join(f"{number}" for number in range(30)))
    assert run(dense, tmp_path / "out", *options) == 2
    assert "fewer than one block of 128" in capsys.readouterr().err
