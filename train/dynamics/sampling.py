"""Weighted sampling without replacement, of any size, reproducible from a seed.

Everything is drawn on the CPU, whose numbers are the same on every machine and with any number of threads.
"""

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..native import draws
from ..threads import native_threads


def seed_for(*identity: Hashable) -> int:
    """A 63-bit seed for what it is to be used for, such as (seed, layer, update, "regrowth").

    A draw then depends on nothing that was drawn before: not on the order of layers, not on a restart.
    """
    digest = hashlib.sha256("/".join(map(str, identity)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass
class Generator:
    """A stream of random numbers: `place` is where it goes on."""

    seed: int
    place: int = 0

    def take(self, count: int) -> int:
        """The place of the first of `count` numbers, which are then used up."""
        first, self.place = self.place, self.place + count
        return first


def generator_for(*identity: Hashable) -> Generator:
    """A generator seeded with `seed_for(*identity)`."""
    return Generator(seed_for(*identity))


def race_keys(scores: Tensor, generator: Generator, temperature: float = 1.0, excluded: Tensor | None = None) -> Tensor:
    """Keys whose `count` smallest are `count` draws, one after another, with probability prop. to score^temperature.

    The exponential race does this: Exp(1) / score^temperature; in logarithms, where high powers would underflow.

    Args:
        scores: of any shape, at least 0.
        generator: where random numbers come from.
        temperature: the exponent.
        excluded: bool like `scores`, entries that are not to be drawn.

    Returns:
        float32 like `scores`, on the CPU; infinite where the score is 0 or the entry excluded.
    """
    keys = draws.race_keys(
        scores.detach().to("cpu", torch.float32).numpy(),
        None if excluded is None else excluded.cpu().numpy(),
        seed=generator.seed,
        place=generator.take(scores.numel()),
        temperature=temperature,
        threads=native_threads(),
    )
    return torch.from_numpy(keys)


def smallest(keys: Tensor, count: int) -> Tensor:
    """bool like `keys`: the `count` smallest, of equal ones those that come first; all finite ones, if they are fewer.

    Args:
        keys: float32 on the CPU.
        count: at most as many as there are keys.
    """
    return torch.from_numpy(draws.smallest(keys.numpy(), count, threads=native_threads()))
