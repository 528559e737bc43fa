"""Small Llamas with masks, for tests of passes."""

import numpy as np
import pytest
import torch
from tiny import make_llama

VOCABULARY = 40


@pytest.fixture(scope="module")
def one_thread():
    """Models this small are computed faster by one thread, and far faster on a machine that does other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_sparse_llama(density=0.3, seed=0, mask_of=None, vocab_size=VOCABULARY, **overrides):
    """A Llama and its masks by layer. `mask_of(name, mask, rng)` may change a mask in place.

    Biases, where there are any, are 0 in about half of the rows.
    """
    model = make_llama(vocab_size, seed=seed, **overrides)
    rng, masks = np.random.default_rng(seed), {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and layer.weight is not model.model.embed_tokens.weight:
            masks[name] = rng.random(layer.weight.shape) < density
            if mask_of is not None:
                mask_of(name, masks[name], rng)
            layer.weight.data *= torch.from_numpy(masks[name])
            if layer.bias is not None:
                layer.bias.data.normal_()
                layer.bias.data *= torch.from_numpy(rng.random(len(layer.bias)) < 0.5)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)  # as made they are all 1, and no order of them would be wrong
    return model, masks


def logits(model):
    """Logits [T, V] of a fixed text of every token."""
    ids = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(5))[None]
    with torch.no_grad():
        return model(ids).logits[0]


def assert_masks_fit(passed):
    """The masks of what a pass returned are those of its weights."""
    for name, mask in passed.masks.items():
        weight = passed.model.get_parameter(f"{name}.weight").detach().numpy()
        assert mask.shape == weight.shape and not weight[~mask].any()
    linears = [layer for layer in passed.model.modules() if isinstance(layer, torch.nn.Linear)]
    assert all(tuple(layer.weight.shape) == (layer.out_features, layer.in_features) for layer in linears)


def assert_same_function(model, changed, tolerance=2e-5):
    """Logits agree within `tolerance` of their largest magnitude: a few roundings of float32."""
    expected, actual = logits(model), logits(changed)
    assert (actual - expected).abs().max().item() <= tolerance * expected.abs().max().item()
