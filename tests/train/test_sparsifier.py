import copy

import pytest
import torch
from tiny import make_llama
from torch import nn

from hebbline.artifacts import InputError
from hebbline.train import Sparsifier, SparsityConfig
from hebbline.train.dynamics import (
    FractionConfig,
    GroupConfig,
    RegrowthConfig,
    RemovalConfig,
    TopologyConfig,
    UpdateConfig,
    density_schedule,
    model_chains,
    remove_chains,
)

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, momentum=0.9),
}


def make_config(**overrides) -> SparsityConfig:
    settings = {
        "density": 0.2,
        "update": UpdateConfig(every=2, stop=12),
        "fraction": FractionConfig(initial=0.3),
        "exclude": ["head"],
    }
    return SparsityConfig(**({"method": "chtss"} | settings | overrides))


def make_mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.ModuleDict(
        {"net": nn.Sequential(nn.Linear(20, 31), nn.ReLU(), nn.Linear(31, 17)), "head": nn.Linear(17, 3)}
    )


def train(model, sparsifier, optimizer, steps, check=lambda: None):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.randn(8, 20, generator=generator)
        optimizer.zero_grad()
        model["head"](model["net"](x)).square().mean().backward()
        optimizer.step()
        sparsifier.step()
        check()


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("regrowth", ["soft", "top"])
@pytest.mark.parametrize("removal", ["soft", "hard"])
@pytest.mark.parametrize("score", ["magnitude", "RI"])
def test_invariants_hold_after_every_step(optimizer_name, regrowth, removal, score):
    model = make_mlp()
    config = make_config(regrowth=RegrowthConfig(rule=regrowth), removal=RemovalConfig(score=score, rule=removal))
    sparsifier = Sparsifier(model, config)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    sparsifier.attach(optimizer)
    densities = density_schedule("sigmoid", 0.5, 0.2, 6)

    def check():
        update = min(sparsifier.steps // 2, 6)
        for name, mask in sparsifier.masks.items():
            weight = model.get_parameter(f"{name}.weight")
            assert int(mask.sum()) == round(densities[update] * mask.numel())
            assert not weight[~mask].any()
            assert not weight.grad[~mask].any()
            moments = [value for value in optimizer.state[weight].values() if value.shape == weight.shape]
            assert moments and not any(moment[~mask].any() for moment in moments)

    assert set(sparsifier.masks) == {"net.0", "net.2"}
    train(model, sparsifier, optimizer, 16, check)


def test_updates_change_the_graph_and_new_links_start_at_zero():
    model = make_mlp()
    sparsifier = Sparsifier(model, make_config(method="chts"))
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    sparsifier.attach(optimizer)
    before = copy.deepcopy(sparsifier.masks)
    train(model, sparsifier, optimizer, 2)
    for name, mask in sparsifier.masks.items():
        new = mask & ~before[name]
        assert int(new.sum()) > 0
        weight = model.get_parameter(f"{name}.weight")
        assert not weight[new].any()
        assert not optimizer.state[weight]["exp_avg"][new].any()
    train(model, sparsifier, optimizer, 1)
    assert model.get_parameter("net.0.weight")[sparsifier.masks["net.0"] & ~before["net.0"]].any()


def test_methods():
    for method, changes in (("static", False), ("chts", True)):
        model = make_mlp()
        sparsifier = Sparsifier(model, make_config(method=method))
        before = copy.deepcopy(sparsifier.masks)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        sparsifier.attach(optimizer)
        train(model, sparsifier, optimizer, 4)
        assert any(not torch.equal(before[name], mask) for name, mask in sparsifier.masks.items()) == changes
        assert sparsifier.density == pytest.approx(0.2, abs=1e-3)
    assert Sparsifier(make_mlp(), make_config(method="dense")).masks == {}


def test_same_seed_same_bits_and_another_seed_another_graph():
    runs = []
    for seed in (0, 0, 1):
        model = make_mlp()
        sparsifier = Sparsifier(model, make_config(seed=seed))
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        sparsifier.attach(optimizer)
        train(model, sparsifier, optimizer, 13)
        runs.append((model.state_dict(), sparsifier.masks))
    for part in (0, 1):
        assert all(torch.equal(runs[0][part][name], runs[1][part][name]) for name in runs[0][part])
    assert not torch.equal(runs[0][1]["net.0"], runs[2][1]["net.0"])


def test_state_continues_where_it_was():
    whole = make_mlp()
    sparsifier = Sparsifier(whole, make_config())
    optimizer = OPTIMIZERS["sgd"](whole.parameters())
    sparsifier.attach(optimizer)
    train(whole, sparsifier, optimizer, 4)
    resumed = make_mlp(seed=1)
    resumed.load_state_dict(whole.state_dict())
    other = Sparsifier(resumed, make_config(), sparsifier.state_dict())
    other_optimizer = OPTIMIZERS["sgd"](resumed.parameters())
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.attach(other_optimizer)
    train(whole, sparsifier, optimizer, 6)
    train(resumed, other, other_optimizer, 6)
    assert all(torch.equal(whole.state_dict()[name], value) for name, value in resumed.state_dict().items())
    with pytest.raises(InputError, match="another model"):
        other.load_state_dict({"steps": 0, "masks": {}})


def test_chain_removal_in_a_llama_follows_heads_and_rotary_pairs_and_changes_no_logit():
    """6 query heads of 16 share 2 key/value heads; the rotary embedding mixes coordinates d and d + 8 of a head."""
    model = make_llama(64)
    sparsifier = Sparsifier(model, SparsityConfig(method="static", density=0.5))
    masks = dict(sparsifier.masks)
    q, k, v, o = (masks[f"model.layers.0.self_attn.{part}_proj"] for part in "qkvo")
    gate, up, down = (masks[f"model.layers.0.mlp.{part}_proj"] for part in ("gate", "up", "down"))
    k[[1, 9]] = False  # a whole rotary pair of key head 0
    k[3] = False  # half a pair: its queries still act through the other half
    q[[48 + 2, 48 + 10, 64 + 2, 64 + 10, 80 + 2, 80 + 10]] = False  # a pair in every query head that shares key head 1
    v[2] = False
    o[:, [3, 16 + 3, 32 + 3]] = False  # all readers of value node 3
    gate[7] = False
    down[:, 9] = False
    sparsifier.load_state_dict({"steps": 0, "masks": masks})
    ids = torch.arange(20)[None]
    before = model(ids).logits

    remove_chains(masks, model_chains(model, list(masks)))

    def dead(mask, dim):
        return set(torch.nonzero(~mask.any(dim=dim)).flatten().tolist())

    q, k, v, o = (masks[f"model.layers.0.self_attn.{part}_proj"] for part in "qkvo")
    gate, up, down = (masks[f"model.layers.0.mlp.{part}_proj"] for part in ("gate", "up", "down"))
    assert dead(q, 1) == {1, 9, 17, 25, 33, 41, 50, 58, 66, 74, 82, 90}
    assert dead(k, 1) == {1, 9, 3, 16 + 2, 16 + 10}
    assert dead(v, 1) == {2, 3}
    assert dead(o, 0) == {2, 18, 34, 3, 19, 35}
    assert dead(gate, 1) == dead(up, 1) == dead(down, 0) == {7, 9}
    sparsifier.load_state_dict({"steps": 0, "masks": masks})
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=1e-5)


def test_update_with_chain_removal_keeps_the_link_count():
    model = make_llama(64)
    config = make_config(density=0.05, initial_density=0.06, removal=RemovalConfig(chains=True), exclude=["lm_head"])
    sparsifier = Sparsifier(model, config)
    sparsifier.attach(torch.optim.SGD(model.parameters()))
    for _ in range(4):
        sparsifier.step()
    expected = density_schedule("sigmoid", 0.06, 0.05, 6)[2]
    for mask in sparsifier.masks.values():
        assert int(mask.sum()) == round(expected * mask.numel())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparsityConfig(density=0), "sparsity.density 0"),
        (lambda: SparsityConfig(density=1.2), "sparsity.density 1.2"),
        (lambda: SparsityConfig(method="chtss", density=0.5, initial_density=0.4), "initial_density 0.4 is below"),
        (
            lambda: SparsityConfig(density=0.3, initial_density=0.5),
            "initial_density 0.5: chts keeps the density of 0.3",
        ),
        (
            lambda: SparsityConfig(density=0.3, groups=[GroupConfig(["*"], density=0.2, initial_density=0.4)]),
            "groups.initial_density 0.4: chts keeps the density of 0.2",
        ),
        (
            lambda: SparsityConfig(method="chtss", density=0.3, groups=[GroupConfig(["*"], initial_density=0.2)]),
            "groups.initial_density 0.2 is below",
        ),
        (lambda: FractionConfig(initial=1.5), "fraction.initial 1.5"),
        (lambda: UpdateConfig(every=10, stop=5), "update.stop 5"),
        (lambda: TopologyConfig(r=-1), "topology.r -1"),
        (lambda: Sparsifier(make_mlp(), SparsityConfig(include=["nothing*"])), r"include \['nothing\*'\]"),
    ],
)
def test_bad_configurations_name_the_field(make, message):
    with pytest.raises(InputError, match=message):
        make()
