"""SparsityCallback under a real Trainer: ends at its density, and a resumed run in the bits of one that was not cut."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_llama
from transformers import Trainer, TrainerCallback, TrainingArguments

from hebbline.artifacts import DamagedArtifactError, InputError
from hebbline.train import SparsityCallback, SparsityConfig
from hebbline.train.dynamics.exported import import_graphs

STEPS = 12


class Stop(TrainerCallback):
    """Ends a run after a step, as if it had been cut."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step


def make_trainer(out, config, stop=None, model=None, **arguments):
    """A Trainer of a tiny Llama that saves every 4 steps, and its callback."""
    rows = torch.randint(0, 64, (40, 8), generator=torch.Generator().manual_seed(0))
    settings = {"max_steps": STEPS, "save_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
    settings |= {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 4}
    callback = SparsityCallback(config)
    trainer = Trainer(
        model=model or make_llama(64, attention_dropout=0.1),
        args=TrainingArguments(output_dir=str(out), **(settings | arguments)),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        eval_dataset=[{"input_ids": row, "labels": row} for row in rows[:4]],
        callbacks=[callback, *([] if stop is None else [Stop(stop)])],
    )
    return trainer, callback


def train_cut(out, config, **arguments):
    """Train, and be cut after step 5; the last checkpoint is that of step 4."""
    trainer, callback = make_trainer(out, config, stop=5, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        trainer.train()
    return trainer, callback


CONFIGS = {
    "gmp": {"method": "gmp", "update": {"every": 2}},
    "granet": {"method": "granet", "update": {"every": 2, "stop": 10, "warmup": 2}},
    "chtss": {"method": "chtss", "topology": {"kind": "er"}, "update": {"every": 2}},
    "cht": {"method": "cht", "update": {"every": 1, "stop": 12, "early_stop": 0.3}},
}


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_resumed_run_ends_in_the_bits_of_a_whole_one(name, restore, tmp_path):
    config = SparsityConfig(**CONFIGS[name])
    trainer, whole = make_trainer(tmp_path / "whole", config)
    trainer.train()
    assert whole.sparsifier.config.update.stop == CONFIGS[name]["update"].get("stop", 8)
    assert whole.sparsifier.density == pytest.approx(0.3, abs=1e-3)
    train_cut(tmp_path / "cut", config)
    other, resumed = make_trainer(tmp_path / "cut", config, restore_callback_states_from_checkpoint=restore)
    other.train(resume_from_checkpoint=str(tmp_path / "cut/checkpoint-4"))
    # With this option the Trainer makes callbacks anew, from their state.
    resumed = next(found for found in other.callback_handler.callbacks if isinstance(found, SparsityCallback))
    assert all(torch.equal(mask, resumed.sparsifier.masks[name]) for name, mask in whole.sparsifier.masks.items())
    assert all(torch.equal(mask, resumed.sparsifier.ever[name]) for name, mask in whole.sparsifier.ever.items())
    assert resumed.sparsifier.stopped == whole.sparsifier.stopped
    reports = [[(report.step, report.regrown, report.itop) for report in found.updates] for found in (whole, resumed)]
    assert reports[0] == reports[1] and len(reports[0]) == whole.sparsifier.config.update.count
    weights = [load_file(tmp_path / run / f"checkpoint-{STEPS}/model.safetensors") for run in ("whole", "cut")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    moments = [trainer.optimizer.state_dict()["state"] for trainer in (trainer, other)]
    for index, state in moments[0].items():
        assert all(torch.equal(value, moments[1][index][key]) for key, value in state.items())


def test_the_same_trainer_goes_on_from_its_checkpoint(tmp_path):
    config = SparsityConfig(**CONFIGS["granet"])
    trainer, whole = make_trainer(tmp_path / "whole", config)
    trainer.train()
    other, callback = train_cut(tmp_path / "cut", config)
    other.callback_handler.pop_callback(Stop)
    other.train(resume_from_checkpoint=True)
    assert callback.sparsifier.steps == STEPS and len(callback.updates) == 5
    assert all(torch.equal(mask, callback.sparsifier.masks[name]) for name, mask in whole.sparsifier.masks.items())
    assert all(torch.equal(value, other.model.state_dict()[name]) for name, value in trainer.model.state_dict().items())


def test_a_longer_run_keeps_to_the_last_update_that_it_began_with(tmp_path):
    train_cut(tmp_path, SparsityConfig(**CONFIGS["gmp"]))
    trainer, callback = make_trainer(tmp_path, SparsityConfig(**CONFIGS["gmp"]), max_steps=16)
    trainer.train(resume_from_checkpoint=True)
    assert callback.sparsifier.config.update.stop == 8 and callback.sparsifier.steps == 16
    assert callback.sparsifier.density == pytest.approx(0.3, abs=1e-3)
    shorter, _ = make_trainer(tmp_path, SparsityConfig(**CONFIGS["gmp"]), max_steps=6)
    with pytest.raises(InputError, match=r"update\.stop 8 is past the last step, 6"):
        shorter.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_what_would_end_elsewhere_is_refused_when_training_begins(tmp_path):
    late = SparsityConfig(method="chtss", update={"every": 2, "stop": 8000})
    trainer, _ = make_trainer(tmp_path, late)
    with pytest.raises(InputError, match=r"update\.stop 8000 is past the last step, 12: the density would end at 0\.5"):
        trainer.train()
    trainer, _ = make_trainer(
        tmp_path, SparsityConfig(**CONFIGS["gmp"]), load_best_model_at_end=True, eval_strategy="steps", eval_steps=4
    )
    with pytest.raises(InputError, match="load_best_model_at_end would put the weights of an earlier step"):
        trainer.train()
    trainer, _ = make_trainer(tmp_path, SparsityConfig(**CONFIGS["gmp"]))
    trainer.train()
    with pytest.raises(InputError, match="has trained the model for 12 steps, and training would begin again"):
        trainer.train()


def test_a_checkpoint_that_cannot_be_gone_on_from_is_refused(tmp_path):
    config = SparsityConfig(**CONFIGS["gmp"])
    dense, callback = make_trainer(tmp_path / "dense", config, stop=5)
    dense.remove_callback(callback)
    dense.train()
    trainer, _ = make_trainer(tmp_path / "dense", config)
    with pytest.raises(InputError, match="checkpoint of step 4 holds no graphs to go on with"):
        trainer.train(resume_from_checkpoint=True)
    links = SparsityConfig(method="set", update={"every": 2}, compute="links")
    train_cut(tmp_path / "links", links)
    trainer, _ = make_trainer(tmp_path / "links", links)
    with pytest.raises(InputError, match="compute 'links': the Trainer's checkpoints hold no dense weights"):
        trainer.train(resume_from_checkpoint=True)
    train_cut(tmp_path / "damaged", config)
    path = Path(tmp_path / "damaged/checkpoint-4/trainer_state.json")
    state = json.loads(path.read_text())
    masks = state["stateful_callbacks"]["SparsityCallback"]["graphs"]["masks"]
    masks["model.layers.0.mlp.up_proj"]["links"] = "bm9uc2Vuc2U="
    path.write_text(json.dumps(state))
    trainer, _ = make_trainer(tmp_path / "damaged", config)
    with pytest.raises(DamagedArtifactError, match=r"graphs, in trainer_state\.json, are damaged"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(DamagedArtifactError, match="damaged"):
        import_graphs({"steps": 4})


def test_a_run_that_is_stopped_before_its_density_says_so(tmp_path):
    trainer, callback = make_trainer(tmp_path, SparsityConfig(**CONFIGS["gmp"]), stop=5)
    with pytest.warns(UserWarning, match=r"ended at step 5: layer .* not the 0\.3\d* that was asked for.*at step 8"):
        trainer.train()
    assert callback.sparsifier.density > 0.35
    trainer, _ = make_trainer(tmp_path / "whole", SparsityConfig(**CONFIGS["gmp"]))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*training has ended")
        trainer.train()


def test_a_search_begins_every_trial_with_graphs_of_its_own(tmp_path):
    """As Trainer.hyperparameter_search does: the model is made anew for each training, the callback is not."""
    trainer, callback = make_trainer(tmp_path, SparsityConfig(**CONFIGS["chtss"]))
    trainer.model_init = lambda: make_llama(64)
    trainer.train()
    first = callback.sparsifier
    trainer.train()
    assert callback.sparsifier is not first and callback.sparsifier.steps == STEPS
    weight = trainer.model.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert not weight[~callback.sparsifier.masks["model.layers.0.mlp.up_proj"]].any()
    assert len(callback.updates) == 4
