"""A run that was cut and went on ends in the same bits as one that was not."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import make_llama, make_text
from transformers import TrainerCallback

from hebbline.artifacts import DamagedArtifactError, InputError
from hebbline.train import training as runs
from hebbline.train.checkpoint import CheckpointFacts, checkpoints, open_checkpoint, open_latest, write_checkpoint
from hebbline.train.dynamics import PRESETS
from hebbline.train.settings import CheckpointConfig, RunSettings
from hebbline.train.state import load_optimizer_state, load_random_state, optimizer_state, random_state
from hebbline.train.tasks import read_recipe, train_language_model
from hebbline.train.tasks.reading import recipe_digest
from hebbline.train.training import check_run

STEPS = 12


@pytest.fixture(scope="module")
def recipe_of(tmp_path_factory):
    """A tiny recipe of a method; dropout off, as Llama has none."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("\n\n".join(make_text(40)))

    def make(method, *overrides):
        shape = {"hidden_size": 32, "intermediate_size": 48, "layers": 1, "heads": 2, "kv_heads": 1}
        shape |= {"context_length": 64, "vocab_size": 300}
        options = [f"--model.{name}={value}" for name, value in shape.items()]
        options += [f"--data.source={text}", "--data.sequence_length=16", "--data.validation_share=0.2"]
        options += [f"--optimization.steps={STEPS}", "--optimization.batch_size=4", "--optimization.warmup_steps=2"]
        options += ["--optimization.log_every=2", "--sparsity.update.every=2", "--sparsity.update.stop=10"]
        options += [f"--sparsity.method={method}", "--sparsity.update.warmup=1", "--checkpoint.every=3"]
        return read_recipe(str(SMALL), [*options, *overrides])[0]

    global SMALL
    SMALL = text.with_name("recipe.yaml")
    SMALL.write_text("task: language-model\n")
    return make


class StopAt(TrainerCallback):
    """Ends a run as if it had been cut after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step


def run(recipe, out, *, resume=False, stop=None, monkeypatch=None):
    settings = RunSettings(out, recipe_digest(recipe), recipe.checkpoint, recipe.logging, resume)
    with pytest.MonkeyPatch.context() as patch:
        if stop is not None:
            made = runs._callbacks
            patch.setattr(runs, "_callbacks", lambda *arguments: [*made(*arguments), StopAt(stop)])
        return train_language_model(recipe, settings), settings


def final_state(settings):
    checkpoint = open_checkpoint(checkpoints(settings.checkpoints)[-1])
    parts = ("model", "optimizer", "random", "masks", "ever", "grown")
    return checkpoint.facts, {part: checkpoint.tensors(part) for part in parts if checkpoint.has(part)}


@pytest.mark.parametrize(
    ("method", "compute"), [(method, "masked") for method in PRESETS] + [(method, "links") for method in PRESETS]
)
def test_resumed_equals_whole_in_every_bit(recipe_of, tmp_path, method, compute):
    recipe = recipe_of(method, f"--sparsity.compute={compute}")
    whole, whole_settings = run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "cut", stop=6)
    resumed, settings = run(recipe, tmp_path / "cut", resume=True)
    facts, state = final_state(whole_settings)
    resumed_facts, resumed_state = final_state(settings)
    assert facts.step == resumed_facts.step == STEPS
    assert state.keys() == resumed_state.keys() and ("masks" in state) == (method != "dense")
    for part, tensors in state.items():
        assert tensors.keys() == resumed_state[part].keys()
        assert all(torch.equal(value, resumed_state[part][name]) for name, value in tensors.items()), part
    assert facts.values["scheduler"] == resumed_facts.values["scheduler"]
    assert [report.regrown for report in whole.updates] == [report.regrown for report in resumed.updates]
    assert all(torch.equal(mask, resumed.masks[name]) for name, mask in whole.masks.items())
    assert all(torch.equal(value, resumed.model.state_dict()[name]) for name, value in whole.model.state_dict().items())
    losses = [[record["loss"] for record in result.log if "loss" in record] for result in (whole, resumed)]
    assert losses[0] == losses[1]


def test_data_order_goes_on_across_epochs(recipe_of, tmp_path):
    """An epoch has 6 steps here: the cut is at the border of the second one, or within it."""
    recipe = recipe_of("chts", "--optimization.batch_size=36", "--checkpoint.every=1")
    whole, _ = run(recipe, tmp_path / "whole")
    for stop in (6, 8):
        run(recipe, tmp_path / f"cut{stop}", stop=stop)
        resumed, _ = run(recipe, tmp_path / f"cut{stop}", resume=True)
        states = (whole.model.state_dict(), resumed.model.state_dict())
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items()), stop


def test_what_cannot_be_resumed_is_refused_and_nothing_is_written(recipe_of, tmp_path, monkeypatch):
    recipe = recipe_of("chts")
    out = tmp_path / "model"
    with pytest.raises(InputError, match="holds no checkpoint to resume from"):
        run(recipe, out, resume=True)
    assert not list(tmp_path.iterdir())
    run(recipe, out, stop=6)
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(InputError, match="of another recipe"):
        run(recipe_of("chts", "--sparsity.density=0.2"), out, resume=True)
    with pytest.raises(InputError, match="holds checkpoints of a run that did not end"):
        run(recipe, out)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="was written by 1 processes, and 2 would go on"):
        run(recipe, out, resume=True)
    with pytest.raises(InputError, match="compute 'links' trains on one process"):
        check_run(RunSettings(tmp_path / "other"), recipe_of("chts", "--sparsity.compute=links").sparsity)
    monkeypatch.undo()
    assert sorted(path for path in tmp_path.rglob("*")) == before
    dense = recipe_of("dense")
    run(dense, tmp_path / "dense", stop=6)
    folder = tmp_path / "dense.run/checkpoints"
    with pytest.raises(InputError, match="holds no masks"):
        open_latest(folder, recipe_digest=recipe_digest(dense), world_size=1, masks=True)


def test_a_changed_checkpoint_is_named(tmp_path):
    save(tmp_path, 1)
    (path,) = checkpoints(tmp_path)
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(DamagedArtifactError, match=r"step-000000001/model.safetensors is missing or not the file"):
        open_checkpoint(path)


def test_checkpoints_hold_no_pickle(recipe_of, tmp_path):
    _, settings = run(recipe_of("chtss"), tmp_path / "model")
    files = [path for path in settings.folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl"}
    assert len(checkpoints(settings.checkpoints)) == 2
    for path in files:
        assert b"\x80\x04" not in path.read_bytes()[:4] and b"PK\x03\x04" not in path.read_bytes()[:4]


def save(folder, step):
    with write_checkpoint(folder, CheckpointFacts(step, "digest", 1), keep=2) as writer:
        writer.tensors("model", {"weight": torch.full((64, 64), float(step))})
        writer.tensors("random", random_state())


KILLED = """
import os, random, signal, sys, time
from pathlib import Path

import torch

from hebbline.train.checkpoint import CheckpointFacts, write_checkpoint

def save(folder, step):
    with write_checkpoint(folder, CheckpointFacts(step, "digest", 1), keep=2) as writer:
        writer.tensors("model", {"weight": torch.full((64, 64), float(step))})
        writer.tensors("random", {"state": torch.arange(5000)})

random.seed(0)
folder = Path(sys.argv[1])
started = time.perf_counter()
save(folder, 0)
seconds = time.perf_counter() - started
for number in range(50):
    child = os.fork()
    if child == 0:
        for step in range(1000 * number + 1, 1000 * number + 1000):
            save(folder, step)
    time.sleep(3 * seconds * random.random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(number, flush=True)
    sys.stdin.readline()
"""


def test_a_kill_at_any_moment_leaves_a_loadable_latest_checkpoint(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    newest, leftovers = [], set()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for number in range(50):
            assert process.stdout.readline().strip() == str(number)
            checkpoint = open_checkpoint(checkpoints(tmp_path)[-1])
            step = checkpoint.facts.step
            assert torch.equal(checkpoint.tensors("model")["weight"], torch.full((64, 64), float(step)))
            newest.append(step)
            leftovers |= {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
            process.stdin.write("\n")
            process.stdin.flush()
    assert newest == sorted(newest) and len(set(newest)) > 10, "children came to save, and were killed"
    assert leftovers, "some were killed while saving or removing"
    save(tmp_path, 10**6)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_random_numbers_go_on():
    torch.rand(3), np.random.rand(3), random.random(), np.random.randn(), random.gauss(0, 1)
    state = random_state()
    first = (torch.rand(4).tolist(), np.random.randn(3).tolist(), random.random())
    load_random_state(state)
    assert first == (torch.rand(4).tolist(), np.random.randn(3).tolist(), random.random())


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_optimizer_state_survives_json(make):
    models = [make_llama(64), make_llama(64)]
    optimizers = [
        make(model.parameters(), lr=0.1, **({"momentum": 0.9} if make is torch.optim.SGD else {})) for model in models
    ]
    models[0](torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
    optimizers[0].step()
    tensors, values = optimizer_state(models[0], optimizers[0])
    load_optimizer_state(models[1], optimizers[1], tensors, json.loads(json.dumps(values)))
    again, _ = optimizer_state(models[1], optimizers[1])
    assert tensors.keys() == again.keys() and all(torch.equal(value, again[name]) for name, value in tensors.items())
    other = make(list(models[0].parameters())[:-1], lr=0.1)
    with pytest.raises(InputError, match="other parameter groups"):
        load_optimizer_state(models[0], other, tensors, values)


def test_checkpoint_settings():
    assert CheckpointConfig(every=5).keep == 2
    for bad in ({"every": -1}, {"keep": 0}):
        with pytest.raises(InputError, match=r"checkpoint\.every"):
            CheckpointConfig(**bad)
