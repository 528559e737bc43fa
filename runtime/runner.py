"""What the scheduler asks of a runtime: steps over the slots of a static KV cache.

Legend: B slots in a decode batch, S tokens of one sequence in a step, N rows of logits asked for, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

BLOCK_TOKENS = 16
"""Tokens of a block of the op library's cache, and of a `PagedRunner`'s."""


class Runner(Protocol):
    """A language model with `slots` independent caches of `context_length` tokens each.

    A runner keeps no lengths: the caller says how many tokens (`past`) a slot holds, and a step writes the tokens it is
    given at positions `past`, `past + 1`, … What a slot holds beyond `past` is never read.

    The logits that a step returns are valid until the next step: copy what is kept. A runner is used by one thread.
    """

    slots: int
    context_length: int
    vocab_size: int

    def prefill(self, slot: int, ids_S: Sequence[int], past: int, rows_N: Sequence[int]) -> NDArray[np.float32]:
        """Append S tokens to one slot; returns the logits [N, V] after the tokens with the indices `rows_N` in `ids_S`.

        Raises:
            ValueError: the slot does not exist, or `past + S` exceeds the context.
        """
        ...

    def decode(self, first_slot: int, ids_B: Sequence[int], past_B: Sequence[int]) -> NDArray[np.float32]:
        """Append one token to each of the slots `first_slot` … `first_slot + B - 1`; returns the logits [B, V].

        Raises:
            ValueError: a slot does not exist, or a length after the step exceeds the context.
        """
        ...


@dataclass(frozen=True)
class Segment:
    """What a step does for one sequence: it appends S tokens to a slot that holds `past`.

    `rows_N` are the indices in `ids_S` after which logits are wanted; they may be none. For a `PagedRunner`, `table` is
    the blocks of the sequence in order, enough for all its tokens after the step; a block that any of the S tokens goes
    to is in no other segment's table. An empty one stands for blocks of the slot's own.
    """

    slot: int
    ids_S: Sequence[int]
    past: int
    rows_N: Sequence[int]
    table: Sequence[int] = ()


@runtime_checkable
class MixedRunner(Runner, Protocol):
    """A runner that takes prompts and single tokens of any sequences in one step."""

    def step(self, segments: Sequence[Segment]) -> NDArray[np.float32]:
        """Take all segments, no two of one slot; returns the logits [N, V] of their rows, one segment after the other.

        What a segment gets does not depend on the others.

        Raises:
            ValueError: there is no segment, or one that `prefill` would refuse, or two of one slot.
        """
        ...


@runtime_checkable
class PagedRunner(MixedRunner, Protocol):
    """A mixed runner whose cache is `num_blocks` blocks of `BLOCK_TOKENS`, which the caller gives to sequences.

    Where a sequence's blocks lie changes none of its logits; sequences may share blocks that a step only reads.
    """

    num_blocks: int
