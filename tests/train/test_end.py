"""Training ends with the links that were asked for, or says before it starts, or where it is published, that not."""

from dataclasses import replace

import pytest
import torch
from tiny import make_llama, make_text
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

from hebbline.artifacts import CheckError, InputError, read_manifest
from hebbline.train import Sparsifier, SparsityConfig
from hebbline.train.dynamics import PRESETS, GroupConfig, RemovalConfig, TopologyConfig, UpdateConfig
from hebbline.train.save import save_model_directory
from hebbline.train.tasks import read_recipe, train_language_model

DECAYING = [method for method, preset in PRESETS.items() if preset.schedule != "constant"]
LAYER = "model.layers.0.mlp.up_proj"


def config_of(method, **changes) -> SparsityConfig:
    return SparsityConfig(**({"method": method, "update": {"every": 10}} | changes))


def run(model, config, steps, attach=True):
    sparsifier = Sparsifier(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if attach:
        sparsifier.attach(optimizer)
    ids = torch.arange(12)[None]
    for _ in range(steps):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        sparsifier.step()
    return sparsifier


# The last update and the steps of a run.


@pytest.mark.parametrize("steps", [10, 12, 49, 100, 105])
@pytest.mark.parametrize("method", ["set", *DECAYING])
def test_left_out_the_last_update_is_within_the_run(method, steps):
    config = config_of(method).for_run(steps)
    assert 10 <= config.update.last <= steps and config.update.stop == config.update.last
    assert config.update.stop == max(10, steps * 3 // 4 // 10 * 10)
    assert config.for_run(steps) == config


@pytest.mark.parametrize("method", [*DECAYING, "chts", "rigl", "mest"])
def test_a_last_update_past_the_end_is_refused(method):
    config = config_of(method, update={"every": 10, "stop": 60})
    assert config.for_run(60) is config
    assert config_of(method, update={"every": 10, "stop": 69}).for_run(60).update.last == 60
    with pytest.raises(InputError, match=r"sparsity\.update\.stop 60 is past the last step, 59: .*at most 59"):
        config.for_run(59)


def test_what_depends_on_no_end_may_go_on_past_it_and_what_would_never_update_may_not():
    config_of("set", update={"every": 10, "stop": 8000}).for_run(50)
    config_of("static", update={"every": 10, "stop": 8000}).for_run(5)
    config_of("dense").for_run(5)
    for method in ("set", "chts"):
        with pytest.raises(InputError, match=f"update.every 10 is past the last step, 9: {method} would not update"):
            config_of(method).for_run(9)
    soft = GroupConfig(["*"], removal=RemovalConfig(rule="soft"))
    with pytest.raises(InputError, match="its fraction or temperature would not come to its end"):
        config_of("set", update={"every": 10, "stop": 8000}, groups=[soft]).for_run(50)


@pytest.mark.parametrize("method", DECAYING)
def test_a_loop_must_say_when_a_falling_density_is_reached(method):
    with pytest.raises(InputError, match=f"update.stop is left out, and {method} lowers the density until then"):
        Sparsifier(make_llama(64), config_of(method))
    assert Sparsifier(make_llama(64), config_of("chts")).config.update.stop == 8000


@pytest.mark.parametrize("method", DECAYING)
def test_a_model_is_not_published_before_it_has_its_density(method, tmp_path):
    model, config = make_llama(64), config_of(method, update={"every": 2, "stop": 8}, distribution="uniform")
    sparsifier = run(model, config, steps=5)
    with pytest.raises(CheckError, match=r"has a density of 0\.\d+, not the 0\.3\d* .* until the update at step 8"):
        save_model_directory(tmp_path / "a", model, None, sparsifier.masks, method=method)
    assert not list(tmp_path.iterdir())
    save_model_directory(tmp_path / "a", model, None, sparsifier.masks, method=method, unfinished=True)
    finished = run(model := make_llama(64), config, steps=8)
    save_model_directory(tmp_path / "b", model, None, finished.masks, method=method)
    assert {round(layer.density, 2) for layer in read_manifest(tmp_path / "b").layers} == {0.3}


def test_a_part_of_a_model_keeps_its_promise_too(tmp_path):
    model = make_llama(64)
    sparsifier = Sparsifier(model.model, config_of("chtss", update={"every": 2, "stop": 8}))
    masks = {f"model.{name}": mask for name, mask in sparsifier.masks.items()}
    with pytest.raises(CheckError, match=r"has a density of 0\.5, not the 0\.3"):
        save_model_directory(tmp_path / "a", model, None, masks, method="chtss")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_training_that_diverged_is_not_published(tmp_path, value):
    model = make_llama(64)
    model.get_parameter("model.norm.weight").data[3] = value
    with pytest.raises(CheckError, match=r"'model\.norm\.weight' has values that are NaN or infinite: the training"):
        save_model_directory(tmp_path / "a", model, None, {}, method="dense")
    assert not list(tmp_path.iterdir())


def test_weights_off_their_masks_are_not_published(tmp_path):
    model = make_llama(64)
    sparsifier = Sparsifier(model, config_of("static"))
    model.get_parameter(f"{LAYER}.weight").data[~sparsifier.masks[LAYER]] = 1
    with pytest.raises(CheckError, match=rf"layer '{LAYER}' has \d+ weights off its mask"):
        save_model_directory(tmp_path / "a", model, None, sparsifier.masks, method="static")
    model = make_llama(64)
    sparsifier = Sparsifier(model, config_of("static", compute="links"))
    with pytest.raises(CheckError, match=r"holds its links alone: call Sparsifier\.densify"):
        save_model_directory(tmp_path / "a", model, None, sparsifier.masks, method="static")
    assert not list(tmp_path.iterdir())


TINY = ["--model.hidden_size=32", "--model.intermediate_size=48", "--model.layers=1", "--model.heads=2"]
TINY += ["--model.kv_heads=1", "--model.context_length=64", "--model.vocab_size=300", "--data.sequence_length=16"]
TINY += ["--data.validation_share=0.2", "--optimization.batch_size=2", "--optimization.warmup_steps=2"]


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(make_text(40)))
    return path


@pytest.mark.parametrize("method", DECAYING)
def test_a_recipe_that_names_no_last_update_ends_at_its_density(text_file, method):
    options = [*TINY, f"--data.source={text_file}", f"--sparsity.method={method}", "--optimization.steps=23"]
    options += ["--sparsity.update.every=5", "--sparsity.topology.kind=er", "--sparsity.distribution=uniform"]
    recipe, _ = read_recipe("demo", options)
    result = train_language_model(recipe)
    assert [report.step for report in result.updates] == [5, 10, 15]
    assert all(int(mask.sum()) == round(0.3 * mask.numel()) for mask in result.masks.values())
    late = replace(recipe, sparsity=replace(recipe.sparsity, update=UpdateConfig(every=5, stop=25)))
    with pytest.raises(InputError, match=r"update\.stop 25 is past the last step, 23: the density would end at"):
        train_language_model(late)


def test_a_density_that_has_fallen_by_the_last_step_is_not_what_is_missed():
    config = SparsityConfig(method="chtss", decay_share=0.5, update={"every": 5, "stop": 25})
    with pytest.raises(InputError, match="its fraction or temperature would not come to its end"):
        config.for_run(23)


@pytest.mark.parametrize(
    ("name", "stop"), [("demo", 600), ("llama-60m", 7500), ("translation-multi30k", 15000), ("translation-small", 1100)]
)
def test_shipped_recipes_update_in_the_first_three_quarters(name, stop):
    recipe = read_recipe(name)[0]
    assert recipe.sparsity.for_run(recipe.optimization.steps).update.stop == stop


# Layers that cannot have a graph of their own.


def test_layers_that_share_a_weight_are_named():
    model = nn.ModuleDict({"a": nn.Linear(20, 20), "b": nn.Linear(20, 20)})
    model["b"].weight = model["a"].weight
    with pytest.raises(InputError, match=r"layers 'a' and 'b' share a weight.*sparsity\.exclude"):
        Sparsifier(model, SparsityConfig(density=0.2))
    sparsifier = Sparsifier(model, SparsityConfig(density=0.2, exclude=["b"]))
    assert set(sparsifier.masks) == {"a"}
    assert int(model["b"].weight.count_nonzero()) == int(sparsifier.masks["a"].sum()) == 80


@pytest.mark.parametrize("compute", ["masked", "links"])
def test_frozen_and_computed_weights_are_named(compute):
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    model[1].weight.requires_grad_(False)
    with pytest.raises(InputError, match=r"layer '1' is frozen \(requires_grad is False\)"):
        Sparsifier(model, SparsityConfig(compute=compute))
    assert set(Sparsifier(model, SparsityConfig(compute=compute, exclude=["1"])).masks) == {"0"}
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(20, 20)))
    with pytest.raises(InputError, match=r"layer '0' computes its weight .*weight_norm"):
        Sparsifier(model, SparsityConfig(compute=compute))


# Optimizers.


@pytest.mark.parametrize("compute", ["masked", "links"])
@pytest.mark.parametrize("method", ["static", "set"])
def test_a_step_without_the_optimizer_that_trains_the_layers_is_refused(method, compute):
    model = make_llama(64)
    with pytest.raises(InputError, match=r"no attached optimizer holds the weight of layer .*q_proj.*attach"):
        run(model, config_of(method, compute=compute), steps=1, attach=False)
    model = make_llama(64)
    sparsifier = Sparsifier(model, config_of(method, compute=compute))
    sparsifier.attach(torch.optim.SGD([model.get_parameter("model.embed_tokens.weight")]))
    with pytest.raises(InputError, match="no attached optimizer holds the weight"):
        sparsifier.step()
    assert sparsifier.steps == 0
    Sparsifier(make_llama(64), SparsityConfig(method="dense")).step()


@pytest.mark.parametrize("compute", ["masked", "links"])
def test_an_optimizer_that_comes_late_has_nothing_left_off_the_masks(compute):
    """Its moments are of all weights; with weight decay and momentum they would move those that are masked."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(torch.randn(8, 20)).square().mean().backward()
    optimizer.step()
    moments = optimizer.state[model[0].weight]["exp_avg"].clone()
    sparsifier = Sparsifier(model, config_of("set", compute=compute, exclude=["1"], update={"every": 1, "stop": 3}))
    mask = sparsifier.masks["0"].clone()
    sparsifier.attach(optimizer)
    sparsifier.attach(optimizer)
    found = optimizer.state[sparsifier.weights.parameter("0")]["exp_avg"]
    assert torch.equal(found if compute == "links" else found[mask], moments[mask])
    assert compute == "links" or not found[~mask].any()
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
        sparsifier.step()
    sparsifier.densify()
    assert not model[0].weight[~sparsifier.masks["0"]].any()


def test_a_second_sparsifier_takes_the_place_of_the_first():
    """The masks of both would leave only the links that are in both, and let no other one learn."""
    model = make_llama(64)
    run(model, config_of("static", topology={"kind": "er"}), steps=2)
    second = run(model, config_of("static", topology={"kind": "er"}, seed=1), steps=4)
    mask = second.masks[LAYER]
    assert int(model.get_parameter(f"{LAYER}.weight").count_nonzero()) == int(mask.sum())


# Weights that are not fresh.


@pytest.fixture
def trained(tmp_path):
    """The directory of a Llama that was trained dense."""
    make_llama(64).save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def kinds(model, **changes):
    sparsifier = Sparsifier(model, config_of("chts", **changes))
    return {plan.topology for plan in sparsifier.plans.values()}, sparsifier.masks


def test_loaded_weights_keep_their_largest_unless_another_graph_is_named(trained):
    weight = LlamaForCausalLM.from_pretrained(trained).get_parameter(f"{LAYER}.weight").detach().abs()
    found, masks = kinds(LlamaForCausalLM.from_pretrained(trained))
    assert found == {"magnitude"}
    assert float(weight[masks[LAYER]].min()) >= float(weight[~masks[LAYER]].max())
    assert kinds(LlamaForCausalLM.from_pretrained(trained), topology={"kind": "brf"})[0] == {"brf"}
    group = {"layers": ["*.mlp.*"], "topology": {"kind": "er"}}
    assert kinds(LlamaForCausalLM.from_pretrained(trained), groups=[group])[0] == {"magnitude", "er"}
    assert kinds(make_llama(64))[0] == {"brf"}
    assert kinds(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(trained)))[0] == {"brf"}


def test_a_layer_that_was_not_in_the_checkpoint_is_fresh(trained):
    headless = LlamaModel.from_pretrained(trained)
    headless.save_pretrained(trained.with_name("headless"))
    model = LlamaForCausalLM.from_pretrained(trained.with_name("headless"), tie_word_embeddings=False)
    sparsifier = Sparsifier(model, config_of("chts", include=["*", "lm_head"], exclude=[]))
    assert (sparsifier.plans["lm_head"].topology, sparsifier.plans[LAYER].topology) == ("brf", "magnitude")


def test_the_links_of_a_sparse_model_stay():
    model = make_llama(64)
    first = Sparsifier(model, config_of("set"))
    again = make_llama(64)
    again.load_state_dict(model.state_dict())
    second = Sparsifier(again, config_of("chts", distribution="erk"))
    assert all(torch.equal(mask, second.masks[name]) for name, mask in first.masks.items())


def test_a_recipe_over_a_dense_model_keeps_its_largest_weights(tmp_path, tokenizer, capsys):
    dense = make_llama(len(tokenizer))
    dense.save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text("\n\n".join(make_text(40)))
    options = [f"--model.pretrained={tmp_path / 'dense'}", f"--data.source={tmp_path / 'text.txt'}"]
    options += ["--data.validation_share=0.2", "--data.sequence_length=16", "--optimization.steps=1"]
    (tmp_path / "recipe.yaml").write_text("sparsity: {method: static}")
    recipe, yaml = read_recipe(str(tmp_path / "recipe.yaml"), options)
    assert recipe.sparsity.topology == TopologyConfig("magnitude", 0.25, "fixed", 0.25) and "kind: magnitude" in yaml
    mask = train_language_model(recipe).masks[LAYER]
    weight = dense.get_parameter(f"{LAYER}.weight").detach().abs()
    assert float(weight[mask].min()) >= float(weight[~mask].max())
    assert "the initial graphs are" not in capsys.readouterr().err
    random, _ = read_recipe(str(tmp_path / "recipe.yaml"), [*options, "--sparsity.topology.kind=er"])
    train_language_model(random)
    assert "the initial graphs are 'er', drawn without a look at the weights" in " ".join(
        capsys.readouterr().err.split()
    )
