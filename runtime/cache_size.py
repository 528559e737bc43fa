"""How much memory the key-value cache takes, and in what: a pool of blocks where the runner can page, else slots."""

import math
from pathlib import Path

from ..artifacts import InputError, KvFormat, LanguageModelFacts
from .onnxruntime import cache_bytes_per_slot, cache_shape
from .runner import BLOCK_TOKENS, PagedRunner, Runner

SHARE_OF_MEMORY = 4
"""Where the size is left to us, the pool takes at most one in so many bytes of the memory that is free."""


def bytes_per_block(facts: LanguageModelFacts, kv: KvFormat | None = None) -> int:
    """Bytes of a block of 16 tokens in all layers; None: keys and values as the artifact was exported."""
    _, heads, _, block_bytes = cache_shape(facts, 1, kv or facts.kv_cache)
    return facts.num_layers * heads * block_bytes


def pool_blocks(facts: LanguageModelFacts, slots: int, cache_bytes: int, kv: KvFormat | None = None) -> int:
    """Blocks of a pool.

    Args:
        facts: of the model.
        slots: sequences that are generated at a time.
        cache_bytes: the most that the pool may take; 0: as much as all slots with a whole context, but no more than a
            quarter of the free memory, and one context in any case.
        kv: how keys and values are kept; None: as the artifact was exported.

    Raises:
        InputError: a whole context does not fit.
    """
    context = math.ceil(facts.context_length / BLOCK_TOKENS)
    block = bytes_per_block(facts, kv)
    if cache_bytes == 0:
        free = available_bytes()
        affordable = slots * context if free is None else free // SHARE_OF_MEMORY // block
        return max(context, min(slots * context, affordable))
    if cache_bytes < context * block:
        raise InputError(
            f"cache_bytes {cache_bytes} is too little for the context of {facts.context_length} tokens, which takes "
            f"{context * block} bytes"
        )
    return cache_bytes // block


def describe_cache(runner: Runner, facts: LanguageModelFacts, kv: KvFormat | None = None) -> str:
    """What the cache of a runner is, in a sentence for the operator."""
    if isinstance(runner, PagedRunner):
        size = runner.num_blocks * bytes_per_block(facts, kv)
        return (
            f"keys and values take up to {size / 1e6:,.0f} MB: {runner.num_blocks:,} blocks of {BLOCK_TOKENS} tokens, "
            "which requests that begin alike share"
        )
    size = runner.slots * cache_bytes_per_slot(facts, kv)
    return (
        f"keys and values take up to {size / 1e6:,.0f} MB: {runner.slots} slots of {runner.context_length:,} tokens "
        "each, as this runner cannot share blocks"
    )


def available_bytes() -> int | None:
    """Memory that can be taken without swapping; None where the system does not tell."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
