"""The runner on stock ops: GroupQueryAttention over a static cache, written in place through IO binding.

Legend: B slots, S tokens a slot, N rows of logits, V vocabulary, H key-value heads, C context length, D head dimension.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ..artifacts import LanguageModelFacts
from .onnxruntime import OnnxRunner, check_rows
from .session import bind_input, bind_output, load_session

BINDINGS_KEPT = 64


@dataclass(frozen=True)
class _Binding:
    """An IO binding for one shape of step, and the arrays that it reads and writes."""

    io: onnxruntime.IOBinding
    input_ids_BS: NDArray[np.int64]
    seqlens_k_B: NDArray[np.int32]
    total_sequence_length: NDArray[np.int32]
    logit_rows_N: NDArray[np.int64]
    logits_NV: NDArray[np.float32]


class PortableRunner(OnnxRunner):
    """Runs `model.onnx` with nothing registered; see `Runner` for the contract.

    `open_onnx` is the way to a published artifact; the constructor takes a graph that is not published yet.

    Args:
        model: the ONNX file.
        facts: sizes of the model's cache and vocabulary.
        slots: the number of sequences that can be held at a time.
        threads: of ONNX Runtime within an operator; None takes one for each physical core.

    Raises:
        InputError: ONNX Runtime cannot load the file.
    """

    def __init__(self, model: Path, facts: LanguageModelFacts, slots: int, threads: int | None = None) -> None:
        super().__init__(facts, slots)
        self._session = load_session(model, threads, kernels=False)
        shape_BHCD = (slots, facts.num_kv_heads, facts.context_length, facts.head_dim)
        self._caches = {
            f"{layer}.{part}": np.zeros(shape_BHCD, np.float32)
            for layer in range(facts.num_layers)
            for part in ("key", "value")
        }
        self._bindings: OrderedDict[tuple[int, int, int, int], _Binding] = OrderedDict()
        self._logits = np.empty(0, np.float32)

    def prefill(self, slot: int, ids_S: Sequence[int], past: int, rows_N: Sequence[int]) -> NDArray[np.float32]:
        """See `Runner.prefill`."""
        ids_BS = np.asarray(ids_S, np.int64).reshape(1, -1)
        check_rows(rows_N, ids_BS.shape[1])
        return self._step(slot, ids_BS, np.array([past]), np.asarray(rows_N, np.int64))

    def decode(self, first_slot: int, ids_B: Sequence[int], past_B: Sequence[int]) -> NDArray[np.float32]:
        """See `Runner.decode`."""
        ids_BS = np.asarray(ids_B, np.int64).reshape(-1, 1)
        return self._step(first_slot, ids_BS, np.asarray(past_B), np.arange(len(ids_BS)))

    def _step(self, first_slot: int, ids_BS: NDArray, past_B: NDArray, rows_N: NDArray) -> NDArray[np.float32]:
        (batch, length), rows = ids_BS.shape, len(rows_N)
        # The operator writes where it is told.
        self._check_step(range(first_slot, first_slot + batch), [length] * batch, past_B.tolist(), ids_BS)
        binding = self._binding(first_slot, batch, length, rows)
        binding.input_ids_BS[:] = ids_BS
        binding.seqlens_k_B[:] = past_B + length - 1
        binding.total_sequence_length[...] = past_B.max() + length
        binding.logit_rows_N[:] = rows_N
        self._session.run_with_iobinding(binding.io)
        return binding.logits_NV

    def _binding(self, first_slot: int, batch: int, length: int, rows: int) -> _Binding:
        """The binding of this shape. Making one costs more than a small step, so the latest are kept."""
        self._reserve_logits(rows)
        key = (first_slot, batch, length, rows)
        if key not in self._bindings:
            self._bindings[key] = self._make_binding(*key)
        self._bindings.move_to_end(key)
        if len(self._bindings) > BINDINGS_KEPT:
            self._bindings.popitem(last=False)
        return self._bindings[key]

    def _reserve_logits(self, rows: int) -> None:
        """All bindings share one buffer of logits; a larger one makes those bound to the old one void."""
        if rows * self.vocab_size > self._logits.size:
            self._bindings.clear()
            self._logits = np.empty(rows * self.vocab_size, np.float32)

    def _make_binding(self, first_slot: int, batch: int, length: int, rows: int) -> _Binding:
        logits = self._logits[: rows * self.vocab_size].reshape(rows, self.vocab_size)
        binding = _Binding(
            io=self._session.io_binding(),
            input_ids_BS=np.empty((batch, length), np.int64),
            seqlens_k_B=np.empty(batch, np.int32),
            total_sequence_length=np.empty((), np.int32),
            logit_rows_N=np.empty(rows, np.int64),
            logits_NV=logits,
        )
        bind_input(binding.io, "input_ids", binding.input_ids_BS)
        bind_input(binding.io, "seqlens_k", binding.seqlens_k_B)
        bind_input(binding.io, "total_sequence_length", binding.total_sequence_length)
        bind_input(binding.io, "logit_rows", binding.logit_rows_N)
        bind_output(binding.io, "logits", binding.logits_NV)
        for name, cache in self._caches.items():
            # Past and present are one buffer: the operator then writes one token instead of copying the cache.
            bind_input(binding.io, f"past_key_values.{name}", cache[first_slot : first_slot + batch])
            bind_output(binding.io, f"present.{name}", cache[first_slot : first_slot + batch])
        return binding
