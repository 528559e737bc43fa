"""Layers of links alone do exactly what masked layers do."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from hebbline.artifacts import InputError
from hebbline.train import Sparsifier, SparsityConfig
from hebbline.train.dynamics import PRESETS, RemovalConfig, UpdateConfig
from hebbline.train.sparse_linear import SparseLinear
from hebbline.train.topology import initial_mask


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("shape", [(130, 170), (170, 130)])
def test_outputs_and_gradients_are_those_of_the_masked_layer(density, shape):
    torch.manual_seed(0)
    dense = nn.Linear(shape[1], shape[0])
    mask = initial_mask("er", *shape, density, seed=0)
    dense.weight.data *= mask
    sparse = SparseLinear.from_linear(dense, mask)
    x = torch.randn(3, 5, shape[1], requires_grad=True)
    other = x.detach().clone().requires_grad_()
    grad = torch.randn(3, 5, shape[0])
    expected, found = dense(x), sparse(other)
    expected.backward(grad)
    found.backward(grad)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.grad, x.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sparse.values.grad, dense.weight.grad[mask], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sparse.bias.grad, dense.bias.grad, rtol=1e-5, atol=1e-5)
    assert torch.equal(sparse.dense(), dense.weight.detach())
    assert torch.equal(sparse.to_linear().weight, dense.weight)


@pytest.mark.parametrize("features_first", [False, True])
@pytest.mark.parametrize("tokens", [1, 32, 200])
def test_native_products_agree_with_float64(tokens, features_first):
    torch.manual_seed(0)
    mask = initial_mask("er", 90, 310, 0.1, seed=0)
    mask[7], mask[:, 5] = False, False
    layer = SparseLinear(torch.randn(90, 310), mask, torch.randn(90))
    exact = SparseLinear(layer.dense().double(), mask, layer.bias.double())
    data = torch.randn(310, tokens).T if features_first else torch.randn(tokens, 310)
    x, exact_x = data.clone().requires_grad_(), data.double().requires_grad_()
    y, exact_y = layer(x), exact(exact_x)
    grad = torch.randn(tokens, 90)
    y.backward(grad)
    exact_y.backward(grad.double())
    found = [y, x.grad, layer.values.grad, layer.bias.grad]
    expected = [exact_y, exact_x.grad, exact.values.grad, exact.bias.grad]
    for value, right in zip(found, expected, strict=True):
        torch.testing.assert_close(value.double(), right, rtol=1e-5, atol=1e-5)


def test_native_products_are_the_same_bits_on_any_number_of_threads():
    torch.manual_seed(0)
    layer = SparseLinear(torch.randn(300, 400), initial_mask("er", 300, 400, 0.3, seed=0), torch.randn(300))
    x = torch.randn(2000, 400, requires_grad=True)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        y = layer(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, layer.values, layer.bias])])
    torch.set_num_threads(1)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


def test_gradients_by_finite_differences():
    torch.manual_seed(0)
    mask = initial_mask("er", 6, 9, 0.4, seed=0)
    layer = SparseLinear(torch.randn(6, 9, dtype=torch.float64), mask, torch.randn(6, dtype=torch.float64))
    x = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, values: layer_output(layer, x, values), (x, layer.values))


def layer_output(layer, x, values):
    from hebbline.train.sparse_linear import _Product

    return _Product.apply(x, values, layer.bias, layer)


def make_mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 3))


def make_pair(config):
    """The same network twice, masked and of links, each with its sparsifier."""
    masked, linked = make_mlp(), make_mlp()
    return (masked, Sparsifier(masked, config)), (linked, Sparsifier(linked, replace(config, compute="links")))


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
}


@pytest.mark.parametrize("method", [method for method in PRESETS if method != "dense"])
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("structure", ["unstructured", "2:4"])
def test_training_takes_the_same_course_as_with_masks(method, optimizer_name, structure):
    config = SparsityConfig(
        method=method,
        density=0.25,
        initial_density=None if PRESETS[method].schedule == "constant" else 0.5,
        structure=structure,
        update=UpdateConfig(every=3, stop=9, warmup=2),
        removal=RemovalConfig(rule="hard"),
        exclude=["4"],
    )
    (masked, masked_sparsifier), (linked, link_sparsifier) = pair = make_pair(config)
    optimizers = [OPTIMIZERS[optimizer_name](model.parameters()) for model, _ in pair]
    for (_, sparsifier), optimizer in zip(pair, optimizers, strict=True):
        sparsifier.attach(optimizer)
    generator = torch.Generator().manual_seed(0)
    for _ in range(11):
        batches = torch.randn(2, 8, 24, generator=generator)
        reports = []
        for (model, sparsifier), optimizer in zip(pair, optimizers, strict=True):
            optimizer.zero_grad()
            for x in batches:
                model(x).square().mean().backward()
            optimizer.step()
            reports.append(sparsifier.step())
        if reports[0] is not None:
            assert replace(reports[0], seconds=0.0) == replace(reports[1], seconds=0.0)
        for name, mask in link_sparsifier.masks.items():
            layer = linked.get_submodule(name)
            assert torch.equal(masked_sparsifier.masks[name], mask) and torch.equal(layer.mask, mask)
            torch.testing.assert_close(layer.dense(), masked.get_submodule(name).weight.detach(), rtol=1e-4, atol=1e-6)
    assert masked_sparsifier.stopped == link_sparsifier.stopped
    states = optimizers[1].state[linked.get_submodule("0").values]
    sizes = {value.numel() for value in states.values() if value.ndim}
    assert sizes == {int(link_sparsifier.masks["0"].sum())}, "moments are of the size of the links"
    link_sparsifier.densify()
    assert type(linked[0]) is nn.Linear
    torch.testing.assert_close(linked(x), masked(x), rtol=1e-4, atol=1e-5)


def test_an_optimizer_that_was_made_before_trains_the_links():
    model = make_mlp()
    optimizer = torch.optim.SGD([{"params": [model[0].weight], "lr": 0.5}, {"params": [model[0].bias], "lr": 0.1}])
    Sparsifier(model, SparsityConfig(method="static", compute="links")).attach(optimizer)
    assert optimizer.param_groups[0]["params"][0] is model[0].values
    assert optimizer.param_groups[1]["params"][0] is model[0].bias


def test_a_state_goes_on_in_a_new_model():
    config = SparsityConfig(method="set", density=0.3, update=UpdateConfig(every=1, stop=4), compute="links")
    earlier = make_mlp()
    first = Sparsifier(earlier, config)
    first.attach(torch.optim.SGD(earlier.parameters()))
    first.step()
    model = make_mlp()
    second = Sparsifier(model, config, first.state_dict())
    assert all(torch.equal(mask, second.masks[name]) for name, mask in first.masks.items())
    assert torch.equal(model[0].dense() != 0, first.masks["0"]), "a dense layer's weights at the links"
    second.load_state_dict({"steps": 0, "masks": {name: ~mask for name, mask in first.masks.items()}})
    assert not model[0].dense().any() and torch.equal(model[0].mask, ~first.masks["0"])


def test_products_of_links_stay_in_float32_under_autocast():
    layer = SparseLinear(torch.randn(6, 9), initial_mask("er", 6, 9, 0.4, seed=0))
    x = torch.randn(4, 9)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), expected)
        assert layer(x.bfloat16()).dtype == torch.float32


def test_a_shared_weight_is_refused():
    model = nn.ModuleDict({"first": nn.Linear(5, 9, bias=False), "second": nn.Linear(5, 9, bias=False)})
    model["second"].weight = model["first"].weight
    with pytest.raises(InputError, match="layers first and second share a weight"):
        Sparsifier(model, SparsityConfig(compute="links", exclude=["first"]))


def test_rewiring_carries_weights_and_moments_and_starts_new_links_at_zero():
    mask = torch.tensor([[True, True, False], [False, True, True]])
    layer = SparseLinear(torch.arange(1.0, 7).view(2, 3), mask)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
    layer.values.grad = torch.tensor([10.0, 20.0, 50.0, 60.0])
    optimizer.step()
    kept = mask.clone()
    kept[0, 1] = False
    after = kept.clone()
    after[0, 2] = after[1, 0] = True
    layer.rewire(after, kept, [optimizer])
    assert layer.values.tolist() == [1.0, 0.0, 0.0, 5.0, 6.0]
    assert optimizer.state[layer.values]["momentum_buffer"].tolist() == [10.0, 0.0, 0.0, 50.0, 60.0]
    assert torch.equal(layer.mask, after)
