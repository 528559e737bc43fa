"""Weighted sampling without replacement, of any size, reproducible from a seed."""

import hashlib
from collections.abc import Hashable

import torch
from torch import Tensor


def seed_for(*identity: Hashable) -> int:
    """A 63-bit seed for what it is to be used for, such as (seed, layer, update, "regrowth").

    A draw then depends on nothing that was drawn before: not on the order of layers, not on a restart.
    """
    digest = hashlib.sha256("/".join(map(str, identity)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator_for(*identity: Hashable) -> torch.Generator:
    """A CPU generator seeded with `seed_for(*identity)`."""
    return torch.Generator().manual_seed(seed_for(*identity))


def sample_without_replacement(log_weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` distinct indices one after another with probability proportional to exp(log_weights).

    The exponential race does this: the `count` smallest of Exp(1) / weight, here in logarithms, so that weights to a
    high power do not underflow, and in float64, so that there are enough distinct keys for any number of candidates.
    Entries of weight zero (-inf) are drawn, uniformly, only when the others are used up.

    Args:
        log_weights: float [candidates].
        count: 0 to candidates.
        generator: a CPU generator.

    Returns:
        int64 [count], in no order, on the device of `log_weights`.
    """
    log_weights = log_weights.double()
    race = torch.empty(log_weights.shape, dtype=torch.float64).exponential_(generator=generator)
    race = race.log_().to(log_weights.device)
    possible = torch.isfinite(log_weights)
    positive = int(possible.sum())
    if positive == log_weights.numel() or count <= positive:
        return _smallest(race.sub_(log_weights), count)
    impossible = torch.nonzero(~possible).flatten()
    filling = _smallest(race[impossible], count - positive)
    return torch.cat([torch.nonzero(possible).flatten(), impossible[filling]])


def _smallest(keys: Tensor, count: int) -> Tensor:
    """The indices of the `count` smallest keys, in no order; found through the others where those are fewer."""
    if 2 * count <= keys.numel():
        return torch.topk(keys, count, largest=False, sorted=False).indices
    chosen = torch.ones(keys.numel(), dtype=torch.bool, device=keys.device)
    chosen[torch.topk(keys, keys.numel() - count, sorted=False).indices] = False
    return torch.nonzero(chosen).flatten()
