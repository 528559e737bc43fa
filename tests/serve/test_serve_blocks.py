"""The pool of blocks: what sequences share, what is given back, and what goes first."""

import numpy as np
import pytest

from hebbline.runtime.runner import BLOCK_TOKENS
from hebbline.serve.blocks import BlockPool, Table


def fill(pool, tokens, past=None):
    """A sequence that has read its tokens; as the batch does it."""
    table = Table()
    held = pool.reuse(table, tokens)
    assert pool.grow(table, len(tokens))
    pool.register(table, tokens, len(tokens) if past is None else past)
    return table, held


def test_a_sequence_takes_over_the_full_blocks_of_one_that_begins_alike():
    pool = BlockPool(8)
    first, held = fill(pool, range(40))
    assert held == 0
    second, held = fill(pool, [*range(32), 99, 98])
    assert held == 32
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]
    assert pool.available == 8 - 4
    pool.release(first)
    assert pool.available == 8 - 3  # the two that the second still uses are kept
    pool.release(second)
    assert pool.available == 8


def test_the_last_token_is_always_read():
    pool = BlockPool(8)
    fill(pool, range(32))
    assert fill(pool, range(32))[1] == 16
    assert fill(pool, range(33))[1] == 32


def test_a_block_is_the_same_only_where_all_before_it_is():
    pool = BlockPool(8)
    fill(pool, range(33))
    assert fill(pool, [5, *range(1, 33)])[1] == 0


def test_only_blocks_that_are_full_are_known():
    pool = BlockPool(8)
    fill(pool, range(40), past=17)
    assert fill(pool, range(40))[1] == 16


def test_the_longest_unused_goes_first_and_its_end_before_its_beginning():
    pool = BlockPool(4)
    old, _ = fill(pool, range(32))
    new, _ = fill(pool, range(100, 132))
    pool.release(old)
    pool.release(new)
    other = Table()
    assert pool.grow(other, 16)
    assert pool.reuse(Table(), range(33)) == 16  # the end of the older one is gone
    assert pool.reuse(Table(), range(100, 133)) == 32
    assert pool.counts.evicted == 1


def test_a_table_that_cannot_grow_stays_as_it_is():
    pool = BlockPool(3)
    table, _ = fill(pool, range(20))
    other = Table()
    assert not pool.grow(other, 17)
    assert other.blocks == [] and len(table.blocks) == 2
    assert pool.grow(other, 16)
    assert pool.available == 0


def test_shortage_counts_blocks_that_are_shared_with_running_sequences_only():
    pool = BlockPool(4)
    first, _ = fill(pool, range(48))
    assert pool.shortage([*range(48), 1]) == 0
    assert pool.shortage([7] * 17) == 1
    pool.release(first)
    assert pool.shortage([7] * 64) == 0


def test_a_reserved_block_is_given_back_for_a_known_one():
    pool = BlockPool(8)
    waiting = Table()
    assert pool.grow(waiting, 40)
    first, _ = fill(pool, range(40))
    assert pool.reuse(waiting, range(40)) == 32
    assert waiting.blocks[:2] == first.blocks[:2]
    assert pool.available == 8 - 4


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_sequences_keeps_the_books(seed):
    generator = np.random.default_rng(seed)
    pool, running = BlockPool(12), []
    for _ in range(400):
        if running and generator.random() < 0.5:
            pool.release(running.pop(generator.integers(len(running)))[0])
        else:
            tokens = generator.integers(0, 2, generator.integers(1, 60)).tolist()
            if pool.shortage(tokens) <= 0:
                running.append((fill(pool, tokens)[0], tokens))
        used = {block for table, _ in running for block in table.blocks}
        assert pool.available == 12 - len(used)
        contents = {}
        for table, tokens in running:
            for place, block in enumerate(table.blocks):
                content = tuple(tokens[: (place + 1) * BLOCK_TOKENS])
                assert contents.setdefault(block, content) == content
