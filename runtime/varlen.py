"""The runner on the op library: any sequences with any numbers of tokens in one step, over caches bound once.

Legend: Q segments, T tokens of all of them, N rows of logits, V vocabulary.
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..artifacts import InputError, KvFormat, LanguageModelFacts
from .onnxruntime import OnnxRunner, cache_shape, check_rows
from .runner import BLOCK_TOKENS, Segment
from .session import aligned_zeros, bind_input, bind_output, load_session

TABLE_STEP = 8
"""Tables have a multiple of so many entries."""


class VarlenRunner(OnnxRunner):
    """Runs `model.hebbline.onnx`; see `MixedRunner` for the contract, and `PagedVarlenRunner` for a pool of blocks.

    `open_onnx` is the way to a published artifact; the constructor takes a graph that is not published yet.

    Args:
        model: the ONNX file.
        facts: sizes of the model's cache and vocabulary.
        slots: the number of sequences that can be held at a time.
        threads: of ONNX Runtime within an operator; None takes one for each physical core.
        kv: how keys and values are kept; see `open_onnx`.

    Raises:
        InputError: ONNX Runtime cannot load the file or the op library; an unknown `kv`.
    """

    def __init__(
        self,
        model: Path,
        facts: LanguageModelFacts,
        slots: int,
        threads: int | None = None,
        kv: KvFormat = "float32",
    ) -> None:
        super().__init__(facts, slots)
        shape = self._cache_shape(kv)
        self._session = load_session(model, threads, kernels=True)
        self._io = self._session.io_binding()
        self._caches = [aligned_zeros(shape, np.uint8) for _ in range(facts.num_layers)]
        for layer, cache in enumerate(self._caches):
            # In and out are one buffer: the op then writes the new tokens instead of copying the cache.
            bind_input(self._io, f"cache.{layer}", cache)
            bind_output(self._io, f"cache_out.{layer}", cache)
        self._buffers: dict[str, NDArray] = {}
        self._bound: dict[str, NDArray] = {}

    def prefill(self, slot: int, ids_S: Sequence[int], past: int, rows_N: Sequence[int]) -> NDArray[np.float32]:
        """See `Runner.prefill`."""
        return self.step([Segment(slot, ids_S, past, rows_N)])

    def decode(self, first_slot: int, ids_B: Sequence[int], past_B: Sequence[int]) -> NDArray[np.float32]:
        """See `Runner.decode`."""
        pairs = zip(ids_B, past_B, strict=True)
        return self.step([Segment(first_slot + i, (token,), past, (0,)) for i, (token, past) in enumerate(pairs)])

    def step(self, segments: Sequence[Segment]) -> NDArray[np.float32]:
        """See `MixedRunner.step`."""
        lengths = [len(segment.ids_S) for segment in segments]
        slots, past = [segment.slot for segment in segments], [segment.past for segment in segments]
        ids_T = np.fromiter((token for segment in segments for token in segment.ids_S), np.int64, sum(lengths))
        self._check_step(slots, lengths, past, ids_T)
        tables = self._tables(segments)
        bounds = [0, *accumulate(lengths)]
        rows_N = [first + row for first, segment in zip(bounds, segments, strict=False) for row in segment.rows_N]
        for length, segment in zip(lengths, segments, strict=True):
            check_rows(segment.rows_N, length)
        for name, values, dtype in (
            ("input_ids", ids_T, np.int64),
            ("cu_seqlens", bounds, np.int32),
            ("slots", tables, np.int32),
            ("past", past, np.int32),
            ("logit_rows", rows_N, np.int64),
        ):
            self._array(name, (len(values),), dtype)[:] = values
        logits_NV = self._array("logits", (len(rows_N), self.vocab_size), np.float32)
        self._session.run_with_iobinding(self._io)
        return logits_NV

    def _cache_shape(self, kv: KvFormat) -> tuple[int, int, int, int]:
        return cache_shape(self.facts, self.slots, kv)

    def _tables(self, segments: Sequence[Segment]) -> Sequence[int] | NDArray[np.int32]:
        """The cache's slots that the op is given for each sequence, as many for each."""
        return [segment.slot for segment in segments]

    def _array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
        """The array that is bound under a name, rebound to a part of its buffer where the shape is a new one."""
        bound = self._bound.get(name)
        if bound is not None and bound.shape == shape:
            return bound
        size = int(np.prod(shape))
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers[name] = np.empty(size, dtype)
        array = self._buffers[name][:size].reshape(shape)
        self._bound[name] = array
        (bind_output if name == "logits" else bind_input)(self._io, name, array)
        return array


class PagedVarlenRunner(VarlenRunner):
    """The same over a pool of blocks; see `PagedRunner` for the contract.

    To the op, each block is a slot of 16 tokens, and a sequence has as many of them as it needs.

    Args:
        model, facts, slots, threads, kv: as for `VarlenRunner`.
        num_blocks: of the pool; at least as many as the whole context takes.

    Raises:
        InputError: as `VarlenRunner`; or the pool is smaller than a context.
    """

    def __init__(
        self,
        model: Path,
        facts: LanguageModelFacts,
        slots: int,
        threads: int | None = None,
        kv: KvFormat = "float32",
        *,
        num_blocks: int,
    ) -> None:
        self.num_blocks = num_blocks
        self._blocks_of_context = -(-facts.context_length // BLOCK_TOKENS)
        if num_blocks < self._blocks_of_context:
            raise InputError(
                f"a cache of {num_blocks} blocks does not hold the context of {facts.context_length} tokens, which "
                f"takes {self._blocks_of_context}"
            )
        super().__init__(model, facts, slots, threads, kv)

    def _cache_shape(self, kv: KvFormat) -> tuple[int, int, int, int]:
        _, heads, _, block_bytes = cache_shape(self.facts, 1, kv)
        return self.num_blocks, heads, 1, block_bytes

    def _tables(self, segments: Sequence[Segment]) -> NDArray[np.int32]:
        used = [-(-(segment.past + len(segment.ids_S)) // BLOCK_TOKENS) for segment in segments]
        # Wider in steps, so that the array need not be bound again whenever a sequence has a block more.
        width = -(-max(used) // TABLE_STEP) * TABLE_STEP
        tables = np.zeros((len(segments), width), np.int32)
        for row, segment, count in zip(tables, segments, used, strict=True):
            row[:count] = (segment.table or self._own_blocks(segment.slot))[:count]
        return tables.reshape(-1)

    def _own_blocks(self, slot: int) -> range:
        """The blocks of a slot for which none were given: those of one context after those of the slot before."""
        first = slot * self._blocks_of_context
        if first + self._blocks_of_context > self.num_blocks:
            raise ValueError(f"slot {slot} has no blocks of its own among {self.num_blocks}")
        return range(first, first + self._blocks_of_context)
