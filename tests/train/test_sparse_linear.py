"""Layers of links alone do exactly what masked layers do."""

import copy

import pytest
import torch
from torch import nn

from hebbline.artifacts import InputError
from hebbline.train import Sparsifier, SparsityConfig
from hebbline.train.dynamics import RemovalConfig, UpdateConfig
from hebbline.train.sparse_linear import LinkSparsifier, SparseLinear
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


def test_gradients_by_finite_differences():
    torch.manual_seed(0)
    mask = initial_mask("er", 6, 9, 0.4, seed=0)
    layer = SparseLinear(torch.randn(6, 9, dtype=torch.float64), mask)
    x = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, values: layer_output(layer, x, values), (x, layer.values))


def layer_output(layer, x, values):
    from hebbline.train.sparse_linear import _Product

    return _Product.apply(x, values, layer)


def make_mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("method", ["set", "chts", "chtss", "static", "cht"])
@pytest.mark.parametrize("make", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)])
def test_training_takes_the_same_course_as_with_masks(method, make):
    config = SparsityConfig(method=method, density=0.25, update=UpdateConfig(every=3, stop=9, warmup=2), exclude=["4"])
    config = SparsityConfig(**(vars(config) | {"removal": RemovalConfig(rule="hard")}))
    masked, linked = make_mlp(), make_mlp()
    sparsifiers = [Sparsifier(masked, config), LinkSparsifier(linked, config)]
    optimizers = [make(model.parameters()) for model in (masked, linked)]
    for sparsifier, optimizer in zip(sparsifiers, optimizers, strict=True):
        sparsifier.attach(optimizer)
    generator = torch.Generator().manual_seed(0)
    for _ in range(11):
        x = torch.randn(8, 24, generator=generator)
        for model, optimizer, sparsifier in zip((masked, linked), optimizers, sparsifiers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            sparsifier.step()
        for name, layer in sparsifiers[1].layers.items():
            assert torch.equal(sparsifiers[0].masks[name], layer.mask)
            torch.testing.assert_close(layer.dense(), masked.get_submodule(name).weight.detach(), rtol=1e-4, atol=1e-6)
    assert sparsifiers[0].stopped == sparsifiers[1].stopped
    states = optimizers[1].state[sparsifiers[1].layers["0"].values]
    sizes = {value.numel() for value in states.values() if value.ndim}
    assert sizes == {int(sparsifiers[1].masks["0"].sum())}, "moments are of the size of the links"
    dense = sparsifiers[1].densify(copy.deepcopy(linked))
    torch.testing.assert_close(dense(x), masked(x), rtol=1e-4, atol=1e-5)


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


def test_methods_that_look_at_absent_links_are_refused():
    with pytest.raises(InputError, match="use Sparsifier"):
        LinkSparsifier(make_mlp(), SparsityConfig(method="rigl", exclude=["4"]))
