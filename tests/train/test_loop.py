"""The loop over examples in memory: steps as torch takes them, and a cut run ends in the bits of a whole one."""

from dataclasses import replace

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from hebbline.data.rows import Rows, as_is
from hebbline.train import Sparsifier
from hebbline.train import training as runs
from hebbline.train.checkpoint import checkpoints, open_checkpoint
from hebbline.train.dynamics import SparsityConfig, UpdateConfig
from hebbline.train.settings import CheckpointConfig, LoopPlan, RunSettings
from hebbline.train.tasks.mlp import Mlp, MlpConfig
from hebbline.train.training import Training, run_training

STEPS = 20


class Watch(TrainerCallback):
    """Notes the rate after each step, and ends a run after one of them."""

    def __init__(self, stop=None):
        self.stop, self.rates = stop, []

    def on_step_end(self, args, state, control, optimizer=None, **_):
        self.rates.append(optimizer.param_groups[0]["lr"])
        control.should_training_stop = state.global_step == self.stop


def make_training(compute="links", **loop_options):
    torch.manual_seed(0)
    model = Mlp(MlpConfig(20, (32, 32), 4))
    # 7 steps an epoch, the last of them smaller.
    pixels = torch.randn(50, 20)
    labels = pixels[:, :4].argmax(dim=1)
    options = {"steps": STEPS, "batch_size": 4, "accumulate": 2, "log_every": 5, "max_grad_norm": 1.0} | loop_options
    return Training(
        model=model,
        dataset=Rows({"pixels": pixels, "labels": labels}),
        collate=as_is,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        schedule=lambda optimizer: LambdaLR(optimizer, lambda step: 1 - step / STEPS),
        sparsity=SparsityConfig(
            method="chts", density=0.3, compute=compute, update=UpdateConfig(every=4), exclude=["head"]
        ),
        loop=LoopPlan(**options),
        unit="images",
        units_a_step=8,
        in_memory=True,
    )


def run(training, out, *, stop=None, resume=False):
    settings = RunSettings(out, "digest", CheckpointConfig(every=3), resume=resume)
    watch = Watch(stop)
    with pytest.MonkeyPatch.context() as patch:
        made = runs._callbacks
        patch.setattr(runs, "_callbacks", lambda *arguments: [*made(*arguments), watch])
        return run_training(training, settings), watch, settings


@pytest.mark.parametrize("compute", ["masked", "links"])
def test_resumed_equals_whole_in_every_bit(compute, tmp_path):
    whole, resumed = make_training(compute), make_training(compute)
    one, watch, settings = run(whole, tmp_path / "whole")
    run(make_training(compute), tmp_path / "cut", stop=10)
    two, rest, _ = run(resumed, tmp_path / "cut", resume=True)
    assert rest.rates == watch.rates[9:] and len(watch.rates) == STEPS
    states = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert all(torch.equal(mask, two.masks[name]) for name, mask in one.masks.items())
    assert [report.regrown for report in one.updates] == [report.regrown for report in two.updates]
    assert open_checkpoint(checkpoints(settings.checkpoints)[-1]).facts.step == 18
    steps = [[record["step"] for record in found.log if "loss" in record] for found in (one, two)]
    assert steps == [[5, 10, 15, 20]] * 2


def test_steps_are_those_of_a_plain_loop(tmp_path):
    training, plain = make_training(max_grad_norm=0.0), make_training()
    trained, _, _ = run(training, tmp_path / "model")
    sparsifier = Sparsifier(plain.model, training.sparsity.for_run(STEPS))
    sparsifier.attach(plain.optimizer)
    schedule = plain.schedule(plain.optimizer)
    step = 0
    for epoch in range(3):
        order = torch.randperm(50, generator=torch.Generator().manual_seed(epoch))
        for examples in order.split(8):
            if step == STEPS:
                break
            parts = examples.split(4)
            for part in parts:
                rows = {name: values[part] for name, values in plain.dataset.fields.items()}
                (plain.model(**rows).loss / len(parts)).backward()
            plain.optimizer.step()
            schedule.step()
            plain.optimizer.zero_grad()
            sparsifier.step()
            step += 1
    sparsifier.densify()
    assert all(torch.equal(mask, trained.masks[name]) for name, mask in sparsifier.masks.items())
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, training.model.state_dict()[name]), name


def test_gradients_are_clipped_and_their_norm_is_in_the_log(tmp_path):
    clipped, _, _ = run(make_training(max_grad_norm=1e-3), tmp_path / "clipped")
    free, _, _ = run(make_training(max_grad_norm=0.0), tmp_path / "free")
    assert all(record["grad_norm"] > 0 for record in free.log if "loss" in record)
    first = [next(record["loss"] for record in found.log[::-1] if "loss" in record) for found in (clipped, free)]
    assert first[0] > 1.2 * first[1], "so small steps learn little"


@pytest.mark.parametrize("in_memory", [True, False])
def test_where_the_output_is_no_terminal_lines_say_how_far_it_is(in_memory, monkeypatch, capsys):
    monkeypatch.setattr(runs, "LINE_SECONDS", 0.0)
    run_training(replace(make_training("masked"), in_memory=in_memory), None)
    lines = [line for line in capsys.readouterr().err.splitlines() if "of 20 steps" in line]
    assert [int(line.split()[2]) for line in lines] == list(range(1, STEPS + 1))
    assert lines[0].endswith("s: 1 of 20 steps") and "density 0.30" in lines[-1]
