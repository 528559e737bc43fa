"""A pool of blocks of the key-value cache, which sequences share where they begin with the same tokens.

A block holds the keys and values of 16 tokens in all layers. A full one is known by its tokens and by the block before
it, that is by all tokens up to its end; a later sequence that begins with them takes it over and reads it only. A block
that no sequence uses keeps its content until the pool needs it; the one that was given up first goes first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..runtime.runner import BLOCK_TOKENS

_Name = tuple[int, tuple[int, ...]]
"""What a full block is known by: the key of the block before it, and its tokens."""
_FIRST = 0
"""The key of what is before a sequence's first block."""


@dataclass
class Table:
    """The blocks of one sequence, in order.

    Attributes:
        blocks: numbers in the pool; the last ones may be empty still.
        keys: of the full blocks at the beginning that the pool knows, one each.
    """

    blocks: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)

    @property
    def known_tokens(self) -> int:
        """The tokens at the beginning that lie in known blocks."""
        return BLOCK_TOKENS * len(self.keys)


@dataclass
class PoolCounts:
    """What has happened since the pool was made, in tokens that were looked up and found, and in blocks evicted."""

    looked_up: int = 0
    found: int = 0
    evicted: int = 0


class BlockPool:
    """Gives out blocks and takes them back; used by one thread.

    Args:
        size: blocks of the pool, numbered from 0.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.counts = PoolCounts()
        self._users = [0] * size
        self._empty = list(range(size - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # known blocks without users, the first to go first
        self._known: dict[_Name, tuple[int, int]] = {}  # name -> block and key
        self._names: dict[int, _Name] = {}  # block -> name
        self._last_key = _FIRST

    @property
    def available(self) -> int:
        """Blocks that no sequence uses."""
        return len(self._empty) + len(self._idle)

    @property
    def kept(self) -> int:
        """Blocks that no sequence uses and that hold what a later one may share."""
        return len(self._idle)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // BLOCK_TOKENS)

    def shortage(self, tokens: Sequence[int]) -> int:
        """Blocks that are missing for a new sequence of these tokens; 0 or less where it fits."""
        shared = 0
        for block in self._find(Table(), tokens):
            shared += self._users[block] > 0
        return self.blocks_for(len(tokens)) - shared - self.available

    def reuse(self, table: Table, tokens: Sequence[int]) -> int:
        """Put known blocks with a sequence's further tokens into its table; returns the tokens that it then holds.

        The last token is left out: its logits are needed. Blocks that the table had in these places are given back.
        """
        for block in self._find(table, tokens):
            place = len(table.keys)
            self._take(block)
            table.keys.append(self._known[self._names[block]][1])
            if place < len(table.blocks):
                self._give_back(table.blocks[place])
                table.blocks[place] = block
            else:
                table.blocks.append(block)
        return table.known_tokens

    def grow(self, table: Table, tokens: int) -> bool:
        """Let a table hold so many tokens; False, and nothing changed, where there are too few blocks."""
        missing = self.blocks_for(tokens) - len(table.blocks)
        if missing > self.available:
            return False
        for _ in range(missing):
            block = self._empty.pop() if self._empty else self._evict()
            self._users[block] = 1
            table.blocks.append(block)
        return True

    def register(self, table: Table, tokens: Sequence[int], past: int) -> None:
        """Make the blocks known that the first `past` of a sequence's tokens have filled."""
        while table.known_tokens + BLOCK_TOKENS <= past:
            name = self.next_name(table, tokens)
            block = table.blocks[len(table.keys)]
            if name not in self._known:
                self._last_key += 1
                self._known[name] = (block, self._last_key)
                self._names[block] = name
            # Where another block of the same tokens is known already, what follows is known after that one.
            table.keys.append(self._known[name][1])

    def next_name(self, table: Table, tokens: Sequence[int]) -> _Name:
        """By what the first block of a sequence that is not known yet will be known, once it is full."""
        parent = table.keys[-1] if table.keys else _FIRST
        return parent, tuple(tokens[table.known_tokens : table.known_tokens + BLOCK_TOKENS])

    def release(self, table: Table) -> None:
        """Give all blocks of a sequence back; its last ones are the first to go, as others follow from the first."""
        for block in reversed(table.blocks):
            self._give_back(block)
        table.blocks.clear()
        table.keys.clear()

    def _find(self, table: Table, tokens: Sequence[int]) -> list[int]:
        """The known blocks that continue a table by a sequence's tokens, short of its last token."""
        found: list[int] = []
        parent, start = (table.keys[-1] if table.keys else _FIRST), table.known_tokens
        while start + BLOCK_TOKENS < len(tokens):
            entry = self._known.get((parent, tuple(tokens[start : start + BLOCK_TOKENS])))
            if entry is None:
                break
            block, parent = entry
            found.append(block)
            start += BLOCK_TOKENS
        return found

    def _take(self, block: int) -> None:
        self._users[block] += 1
        self._idle.pop(block, None)

    def _give_back(self, block: int) -> None:
        self._users[block] -= 1
        if self._users[block] > 0:
            return
        if block in self._names:
            self._idle[block] = None
        else:
            self._empty.append(block)

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._known[self._names.pop(block)]
        self.counts.evicted += 1
        return block
