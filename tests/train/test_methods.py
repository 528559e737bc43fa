"""Every method, structure and group by its invariants, on a small network that really trains."""

import copy

import pytest
import torch
from tiny import make_llama
from torch import nn

from hebbline.artifacts import InputError
from hebbline.train import Sparsifier, SparsityConfig
from hebbline.train.dynamics import (
    PRESETS,
    FractionConfig,
    GroupConfig,
    RegrowthConfig,
    RemovalConfig,
    TopologyConfig,
    UpdateConfig,
    erk_densities,
    model_chains,
)

SPARSE_METHODS = [method for method in PRESETS if method != "dense"]
STRUCTURES = [("unstructured", 16), ("2:4", 16), ("block", 4)]


def make_mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 3))


def make_config(**overrides) -> SparsityConfig:
    settings = {"density": 0.25, "update": UpdateConfig(every=2, stop=8), "exclude": ["4"]}
    return SparsityConfig(**(settings | overrides))


def train(model, sparsifier, optimizer, steps, check=lambda report: None, micro_batches=1):
    generator = torch.Generator().manual_seed(0)
    reports = []
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(micro_batches):
            x = torch.randn(8, 24, generator=generator)
            model(x).square().mean().backward()
        optimizer.step()
        report = sparsifier.step()
        check(report)
        reports += [] if report is None else [report]
    return reports


@pytest.mark.parametrize("method", SPARSE_METHODS)
@pytest.mark.parametrize(("structure", "block_size"), STRUCTURES)
def test_links_are_counted_and_legal_after_every_step(method, structure, block_size):
    initial = 0.5 if structure == "2:4" and method == "gmp" else None
    config = make_config(method=method, structure=structure, block_size=block_size, initial_density=initial)
    model = make_mlp()
    sparsifier = Sparsifier(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    sparsifier.attach(optimizer)

    def check(_):
        update = min(sparsifier.steps // 2, 4) if config.changes else 0
        for name, mask in sparsifier.masks.items():
            plan, weight = sparsifier.plans[name], model.get_parameter(f"{name}.weight")
            assert int(mask.sum()) == plan.links(update)
            assert plan.structure.is_legal(mask)
            assert not weight[~mask].any() and not weight.grad[~mask].any()
            assert not any(moment[~mask].any() for moment in optimizer.state[weight].values() if moment.ndim == 2)

    train(model, sparsifier, optimizer, 10, check)
    total = sum(mask.numel() for mask in sparsifier.masks.values())
    assert sparsifier.density == pytest.approx(0.25, abs=16 / total if structure == "block" else 2 / total)


@pytest.mark.parametrize("method", SPARSE_METHODS)
def test_reports_tell_what_changed(method):
    model = make_mlp()
    sparsifier = Sparsifier(model, make_config(method=method))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    before = copy.deepcopy(sparsifier.masks)
    reports = train(model, sparsifier, optimizer, 2)
    if method == "static":
        assert reports == [] and all(torch.equal(before[name], mask) for name, mask in sparsifier.masks.items())
        return
    (report,) = reports
    links_before = sum(int(mask.sum()) for mask in before.values())
    links_after = sum(int(mask.sum()) for mask in sparsifier.masks.values())
    assert links_after == links_before - report.removed + report.regrown
    assert (report.regrown == 0) == (method == "gmp") and report.removed > 0
    assert report.itop >= report.density and 0 <= report.overlap <= 1
    ever = {name: before[name] | mask for name, mask in sparsifier.masks.items()}
    assert report.itop == pytest.approx(sum(int(mask.sum()) for mask in ever.values()) / (24 * 40 + 40 * 16))


def test_gradient_regrowth_takes_the_largest_dense_gradients_of_all_micro_batches():
    model, twin = make_mlp(), make_mlp()
    config = make_config(method="rigl", update=UpdateConfig(every=1, stop=4), distribution="uniform")
    sparsifier = Sparsifier(model, config)
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        twin(torch.randn(8, 24, generator=generator)).square().mean().backward()
    before = sparsifier.masks["0"].clone()
    train(model, sparsifier, optimizer, 1, micro_batches=3)
    after = sparsifier.masks["0"]
    kept = before & after
    gradient = twin[0].weight.grad.abs().masked_fill(before, -1)
    new = after & ~before
    candidates = gradient[~before & ~after]
    assert new.any() and float(gradient[new].min()) >= float(candidates.max())
    assert kept.any()


def test_mest_removes_by_magnitude_and_gradient():
    model, twin = make_mlp(), make_mlp()
    config = make_config(method="mest", update=UpdateConfig(every=1, stop=4), fraction=FractionConfig("constant", 0.5))
    sparsifier = Sparsifier(model, config)
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsifier.attach(optimizer)
    x = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))
    (1e4 * twin(x).square().mean()).backward()
    before = sparsifier.masks["0"].clone()
    (1e4 * model(x).square().mean()).backward()
    optimizer.step()
    sparsifier.step()
    score = (twin[0].weight.detach().abs() + 0.01 * twin[0].weight.grad.abs())[before]
    kept = (model[0].weight != 0)[before]
    assert float(score[kept].min()) >= float(score[~kept].max())
    by_magnitude = twin[0].weight.abs()[before].topk(int(kept.sum())).indices
    assert not kept[by_magnitude].all(), "the gradient decides too"


def test_a_method_that_looks_at_gradients_says_when_there_is_none():
    model = make_mlp()
    sparsifier = Sparsifier(model, make_config(method="rigl"))
    sparsifier.attach(torch.optim.SGD(model.parameters()))
    sparsifier.step()
    with pytest.raises(Exception, match="layer '0' had no gradient"):
        sparsifier.step()


def test_early_stop_leaves_a_layer_alone():
    """A layer of one output and full but for one link: what is removed is all that can come back."""
    model = nn.Sequential(nn.Linear(20, 1), nn.Linear(1, 1))
    update = UpdateConfig(every=1, stop=6, early_stop=0.9)
    config = SparsityConfig(
        method="set", density=1.0, exclude=["1"], update=update, fraction=FractionConfig(initial=0.2)
    )
    optimizer = torch.optim.SGD(model.parameters())
    sparsifier = Sparsifier(model, config)
    sparsifier.attach(optimizer)
    first = sparsifier.step()
    assert first.overlap == 1 and first.stopped == 1 and first.removed == 4
    assert sparsifier.step().removed == 0
    resumed = Sparsifier(model, config, sparsifier.state_dict())
    resumed.attach(optimizer)
    assert resumed.stopped == {"0"} and resumed.step().removed == 0


def test_learning_rates_warm_up_after_an_update_and_come_back():
    model = make_mlp()
    sparsifier = Sparsifier(model, make_config(update=UpdateConfig(every=4, stop=4, warmup=3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.8)
    sparsifier.attach(optimizer)
    bias = model[4].bias
    moves = []
    for _ in range(9):
        before = bias.detach().clone()
        optimizer.zero_grad()
        bias.grad = torch.ones_like(bias)
        optimizer.step()
        sparsifier.step()
        moves.append(float((before - bias)[0].detach()))
        assert optimizer.param_groups[0]["lr"] == 0.8
    assert moves == pytest.approx([0.8] * 4 + [0.8 / 3, 1.6 / 3, 0.8, 0.8, 0.8], rel=1e-4)


def test_groups_have_their_own_settings():
    group = GroupConfig(
        ["2"], density=0.5, topology=TopologyConfig("er"), regrowth=RegrowthConfig("random"), structure="2:4"
    )
    config = make_config(method="chts", groups=[group])
    sparsifier = Sparsifier(make_mlp(), config)
    first, second = sparsifier.plans["0"], sparsifier.plans["2"]
    assert (first.topology, second.topology) == ("brf", "er")
    assert (first.regrowth_score, second.regrowth_score) == ("CH2_L3n", "random")
    assert (first.removal_rule, second.removal_rule) == ("soft", "soft")
    assert int(sparsifier.masks["0"].sum()) == 240 and int(sparsifier.masks["2"].sum()) == 320
    assert second.structure.is_legal(sparsifier.masks["2"])


def test_heads_are_graphs_of_their_own():
    model = make_llama(64)
    update = UpdateConfig(every=1, stop=4)
    config = SparsityConfig(
        method="chts", density=0.25, per_head=True, update=update, removal=RemovalConfig(rule="hard")
    )
    sparsifier = Sparsifier(model, config)
    sparsifier.attach(torch.optim.SGD(model.parameters()))
    assert sparsifier.plans["model.layers.0.self_attn.q_proj"].parts == 6
    assert sparsifier.plans["model.layers.0.self_attn.k_proj"].parts == 2
    assert sparsifier.plans["model.layers.0.mlp.up_proj"].parts == 1
    for _ in range(3):
        sparsifier.step()
        for part, heads in (("q_proj", 6), ("k_proj", 2), ("v_proj", 2)):
            mask = sparsifier.masks[f"model.layers.1.self_attn.{part}"]
            assert mask.view(heads, -1).sum(dim=1).tolist() == [16 * 96 // 4] * heads
    assert sparsifier.masks["model.layers.1.mlp.up_proj"].sum() == 104 * 96 // 4


def test_erk_gives_small_layers_more_and_keeps_the_sum():
    shapes = {"a": (100, 100), "b": (10, 20), "c": (400, 300)}
    densities = erk_densities(shapes, 0.1, dict.fromkeys(shapes, 1.0))
    links = sum(densities[name] * rows * columns for name, (rows, columns) in shapes.items())
    assert links == pytest.approx(0.1 * sum(rows * columns for rows, columns in shapes.values()))
    assert densities["b"] == 1.0 and densities["b"] > densities["a"] > densities["c"]
    assert densities["a"] / densities["c"] == pytest.approx((200 / 10000) / (700 / 120000))
    capped = erk_densities(shapes, 0.1, {"a": 1.0, "b": 0.5, "c": 1.0})
    assert capped["b"] == 0.5
    with pytest.raises(InputError, match="infeasible"):
        erk_densities(shapes, 0.9, dict.fromkeys(shapes, 0.5))


def test_chains_of_a_stack_follow_its_layers():
    names = [(chain.first.layer, chain.second.layer) for chain in model_chains(make_mlp(), ["0", "2", "4"])]
    assert names == [("0", "2"), ("2", "4")]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "magic"}, "sparsity.method 'magic'"),
        ({"structure": "2:4", "density": 0.6}, "2:4.*layer '0' .40x24.*0.6 is infeasible"),
        ({"method": "chtss", "structure": "2:4", "initial_density": 0.7}, "0.7 is infeasible"),
        ({"structure": "block", "block_size": 5}, "layer '0' .40x24.*not a multiple of sparsity.block_size 5"),
        ({"structure": "block", "block_size": 0}, "block_size must be at least 1"),
        ({"groups": [GroupConfig(["layers.*"])]}, r"sparsity.groups\[0\].layers: 'layers.\*' matches no sparse layer"),
        ({"topology": TopologyConfig("csti")}, "csti.*layer '0' needs the data"),
        ({"regrowth": RegrowthConfig("none")}, "regrowth.score 'none'"),
        ({"density": 0.9, "distribution": "erk", "structure": "2:4"}, "infeasible"),
    ],
)
def test_what_cannot_be_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        Sparsifier(make_mlp(), make_config(**config))


def test_per_head_blocks_must_fit_the_heads():
    config = SparsityConfig(method="chts", structure="block", block_size=16, per_head=True, include=["*k_proj"])
    Sparsifier(make_llama(64), config)
    with pytest.raises(InputError, match=r"heads of layer .*q_proj.* are not whole blocks"):
        model = make_llama(64, num_attention_heads=12, num_key_value_heads=12)
        Sparsifier(model, SparsityConfig(structure="block", block_size=16, per_head=True, include=["*q_proj"]))
