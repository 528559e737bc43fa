"""Weighted sampling without replacement, of any size, reproducible from a seed.

Legend: C entries of a chunk.

Everything is drawn on the CPU, whose generator gives the same numbers everywhere, in chunks that stay in its cache.
"""

import hashlib
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Generator = np.random.SFC64
_CHUNK = 2**15
_SAMPLED = 64


@contextmanager
def one_thread() -> Iterator[None]:
    """Leave the other threads of torch asleep while the block lasts.

    What is drawn takes one; the others would be woken for the small steps between, and keep a core busy for
    milliseconds after each, which the scores of links need.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
    """By a look at every 64th, which tells bounds that it is between: the keys outside need not be ordered."""
    looked_at = keys[::_SAMPLED]
    expected = count / _SAMPLED
    spread = 4 * expected**0.5
    low, high = max(0, int(expected - spread) - 1), int(expected + spread) + 1
    if high < len(looked_at):
        ordered = np.partition(looked_at, [low, high])
        inside = keys <= ordered[high]
        below = 0
        if low > 0:
            under = keys < ordered[low]
            below = np.count_nonzero(under)
            inside &= ~under
        if below < count <= below + np.count_nonzero(inside):
            keys, count = keys[inside], count - below
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
