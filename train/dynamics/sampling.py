"""Weighted sampling without replacement, of any size, reproducible from a seed.

Legend: C entries of a chunk.

Everything is drawn on the CPU, whose generator gives the same numbers everywhere, in chunks that stay in its cache.
"""

import hashlib
from collections.abc import Hashable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Generator = np.random.SFC64
_CHUNK = 2**15
_SAMPLED = 64


def seed_for(*identity: Hashable) -> int:
    """A 63-bit seed for what it is to be used for, such as (seed, layer, update, "regrowth").

    A draw then depends on nothing that was drawn before: not on the order of layers, not on a restart.
    """
    digest = hashlib.sha256("/".join(map(str, identity)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator_for(*identity: Hashable) -> Generator:
    """A generator seeded with `seed_for(*identity)`; its stream is the same in all versions of NumPy."""
    return np.random.SFC64(seed_for(*identity))


def race_keys(scores: Tensor, generator: Generator, temperature: float = 1.0, excluded: Tensor | None = None) -> Tensor:
    """Keys whose `count` smallest are `count` draws, one after another, with probability prop. to score^temperature.

    The exponential race does this: Exp(1) / score^temperature; in logarithms, where high powers would underflow.

    Args:
        scores: of any shape, at least 0.
        generator: where random numbers come from.
        temperature: the exponent.
        excluded: bool like `scores`, entries that are not to be drawn.

    Returns:
        float32 like `scores`, on the CPU; inf or nan where the score is 0 or the entry excluded.
    """
    flat = scores.detach().to("cpu", torch.float32).reshape(-1).numpy()
    drawn = None if excluded is None else ~excluded.cpu().reshape(-1).numpy()
    keys = np.empty_like(flat)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        for start in range(0, len(flat), _CHUNK):
            part = slice(start, start + _CHUNK)
            weights_C = flat[part] if drawn is None else flat[part] * drawn[part]
            race_C = _exponentials(len(weights_C), generator)
            if temperature == 1:
                np.divide(race_C, weights_C, out=keys[part])
            else:
                np.subtract(np.log(race_C), np.float32(temperature) * np.log(weights_C), out=keys[part])
    return torch.from_numpy(keys).view(scores.shape)


def smallest(keys: Tensor, count: int) -> Tensor:
    """bool like `keys`: the `count` smallest, of equal ones those that come first; all finite ones, if they are fewer.

    Args:
        keys: float32 on the CPU.
        count: at most as many as there are keys.
    """
    flat = keys.reshape(-1).numpy()
    if count == 0:
        return torch.zeros_like(keys, dtype=torch.bool)
    largest = _kth_smallest(flat, count)
    if not np.isfinite(largest):
        return torch.isfinite(keys)
    chosen = flat <= largest
    if surplus := np.count_nonzero(chosen) - count:
        chosen[np.flatnonzero(flat == largest)[-surplus:]] = False
    return torch.from_numpy(chosen).view(keys.shape)


def _kth_smallest(keys: NDArray[np.float32], count: int) -> np.float32:
    """By a look at every 64th: where that tells a bound that few keys are below, the others need not be ordered."""
    looked_at = keys[::_SAMPLED]
    expected = count / _SAMPLED
    rank = int(expected + 4 * expected**0.5) + 1
    if rank < len(looked_at):
        below = keys[keys <= np.partition(looked_at, rank)[rank]]
        if len(below) >= count:
            keys = below
    return np.partition(keys, count - 1)[count - 1]


def _exponentials(count: int, generator: Generator) -> NDArray[np.float32]:
    """Exp(1) [count], from 32 random bits each: the small ones, which decide, are finely resolved.

    A uniform number in float32 would have 24 bits, and ties among millions of candidates.
    """
    negated = generator.random_raw(-(-count // 2)).view(np.uint32)[:count].astype(np.float32)
    negated *= np.float32(-(2.0**-32))
    negated -= np.float32(2.0**-33)
    np.maximum(negated, np.float32(2.0**-24 - 1), out=negated)
    np.log1p(negated, out=negated)
    return np.negative(negated, out=negated)
