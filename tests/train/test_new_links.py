"""What optimizers keep of links that grow: counts of steps by link, young links, links that come back at once."""

import copy

import pytest
import torch
from torch import nn

from hebbline.artifacts import InputError
from hebbline.train import LinkAdamW, Sparsifier, SparsityConfig
from hebbline.train.dynamics import NewLinksConfig


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 8))


def train(model, optimizer, steps, sparsifier=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 24, generator=generator).to(dtype)).square().mean().backward()
        optimizer.step()
        if sparsifier is not None:
            sparsifier.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_new_links_it_is_adamw(dtype):
    """float64 takes torch's operations, float32 the native library's."""
    models = [make_model().to(dtype), make_model().to(dtype)]
    options = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
    train(models[0], torch.optim.AdamW(models[0].parameters(), **options), 30, dtype=dtype)
    train(models[1], LinkAdamW(models[1].parameters(), **options), 30, dtype=dtype)
    for expected, found in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compute", ["masked", "links"])
def test_a_new_link_takes_the_steps_of_a_fresh_optimizer(compute):
    model = make_model()
    config = {"method": "set", "density": 0.3, "compute": compute, "seed": 3, "fraction": {"initial": 0.5}}
    config |= {"update": {"every": 20, "stop": 20}, "new_links": {"own_steps": True}}
    sparsifier = Sparsifier(model, SparsityConfig(**config))
    optimizer = LinkAdamW(model.parameters(), lr=0.01, betas=(0.9, 0.999), weight_decay=0.0)
    sparsifier.attach(optimizer)
    before = sparsifier.masks["0"].clone()
    train(model, optimizer, 20, sparsifier)
    weight = model[0].values if compute == "links" else model[0].weight
    age = optimizer.state[weight]["age"]
    new = sparsifier.masks["0"] & ~before
    is_new = new[sparsifier.masks["0"]] if compute == "links" else new
    assert is_new.any() and not age[is_new].any() and int(age.max()) == 20
    fresh = nn.Parameter(weight.detach()[is_new].clone())
    other = LinkAdamW([fresh], lr=0.01, betas=(0.9, 0.999), weight_decay=0.0)
    for _ in range(3):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
        fresh.grad = weight.grad[is_new].clone()
        optimizer.step()
        other.step()
        torch.testing.assert_close(weight.detach()[is_new], fresh.detach(), rtol=1e-6, atol=1e-8)
    largest = float(fresh.detach().abs().max())
    assert largest <= 0.031, "three steps of at most the rate each: one count for all would take longer ones"


def test_young_links_move_by_a_part_of_the_step():
    weights = [nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))]
    optimizers = [
        LinkAdamW([weight], lr=0.01, weight_decay=0.0, young_steps=young)
        for weight, young in zip(weights, (0, 4), strict=True)
    ]
    shares = []
    for _ in range(6):
        before = [weight.detach().clone() for weight in weights]
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = torch.full((5,), 0.3)
            optimizer.step()
        moved = [float((old - weight.detach())[0]) for old, weight in zip(before, weights, strict=True)]
        shares.append(moved[1] / moved[0])
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1], rel=1e-4)


def test_ages_live_through_a_state_dict():
    weight = nn.Parameter(torch.ones(7, dtype=torch.bfloat16))
    optimizer = LinkAdamW([weight])
    for _ in range(300):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    other = LinkAdamW([nn.Parameter(torch.ones(7, dtype=torch.bfloat16))])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    age = next(iter(other.state.values()))["age"]
    assert age.dtype == torch.int32 and age.tolist() == [300] * 7, "bfloat16 would make 300 of other numbers too"


@pytest.mark.parametrize("compute", ["masked", "links"])
@pytest.mark.parametrize("keep", [False, True])
def test_a_link_that_comes_back_at_once(keep, compute):
    """All links of a layer are removed and grown again: with as many links as there are places, none else can come."""
    model = make_model()
    config = SparsityConfig(
        method="set",
        density=1.0,
        fraction={"kind": "constant", "initial": 1.0},
        update={"every": 2, "stop": 2},
        new_links=NewLinksConfig(keep=keep),
        include=["0"],
        compute=compute,
    )
    sparsifier = Sparsifier(model, config)
    optimizer = torch.optim.AdamW(model.parameters())
    sparsifier.attach(optimizer)
    train(model, optimizer, 2, sparsifier)
    weight = model[0].values if compute == "links" else model[0].weight
    assert bool(weight.detach().any()) == keep
    assert bool(optimizer.state[weight]["exp_avg"].any()) == keep
    assert sparsifier.density == 1


def test_another_optimizer_than_the_one_that_counts_is_refused():
    model = make_model()
    sparsifier = Sparsifier(model, SparsityConfig(method="static", new_links={"own_steps": True}))
    optimizer = torch.optim.AdamW(model.parameters())
    sparsifier.attach(optimizer)
    with pytest.raises(InputError, match=r"new_links.own_steps: layer '0' is trained by another optimizer"):
        train(model, optimizer, 1, sparsifier)
    with pytest.raises(InputError, match="set own_steps to true"):
        SparsityConfig(new_links={"young_steps": 5})
