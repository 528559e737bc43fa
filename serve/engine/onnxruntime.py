"""The runner on ONNX Runtime: stock GroupQueryAttention over a static cache, written in place through IO binding.

Legend: B slots, S tokens a slot, N rows of logits, V vocabulary, H key-value heads, C context length, D head dimension.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ...artifacts import InputError, LanguageModelFacts, read_manifest

MODEL_FILE = "model.onnx"
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


class OnnxRunner:
    """Runs a published ONNX artifact on the CPU; see `Runner` for the contract.

    The cache takes `slots * cache_bytes_per_slot(facts)` bytes; pages are committed as they are first written.

    `OnnxRunner.open` is the way to a published artifact; the constructor takes a graph that is not published yet.

    Args:
        model: the ONNX file.
        facts: sizes of the model's cache and vocabulary.
        slots: the number of sequences that can be held at a time.
        threads: of ONNX Runtime within an operator; None takes one for each physical core.

    Raises:
        InputError: ONNX Runtime cannot load the file.
    """

    def __init__(self, model: Path, facts: LanguageModelFacts, slots: int, threads: int | None = None) -> None:
        if slots < 1:
            raise InputError(f"slots must be at least 1, not {slots}")
        self.facts = facts
        self.slots = slots
        self.context_length = self.facts.context_length
        self.vocab_size = self.facts.vocab_size
        self._session = _load(model, threads)
        shape_BHCD = (slots, self.facts.num_kv_heads, self.facts.context_length, self.facts.head_dim)
        self._caches = {
            f"{layer}.{part}": np.zeros(shape_BHCD, np.float32)
            for layer in range(self.facts.num_layers)
            for part in ("key", "value")
        }
        self._bindings: OrderedDict[tuple[int, int, int, int], _Binding] = OrderedDict()
        self._logits = np.empty(0, np.float32)

    @classmethod
    def open(cls, artifact: Path, slots: int, threads: int | None = None) -> "OnnxRunner":
        """The runner of a published artifact; every file is verified before it is read.

        Raises:
            InputError: the directory is no artifact of a language model, is damaged, or ONNX Runtime cannot load it.
        """
        return cls(artifact / MODEL_FILE, language_model_facts(artifact), slots, threads)

    def prefill(self, slot: int, ids_S: Sequence[int], past: int, rows_N: Sequence[int]) -> NDArray[np.float32]:
        """See `Runner.prefill`."""
        ids_BS = np.asarray(ids_S, np.int64).reshape(1, -1)
        if rows_N and not 0 <= min(rows_N) <= max(rows_N) < ids_BS.shape[1]:
            raise ValueError(f"rows {list(rows_N)} are not within the {ids_BS.shape[1]} tokens of the step")
        return self._step(slot, ids_BS, np.array([past]), np.asarray(rows_N, np.int64))

    def decode(self, first_slot: int, ids_B: Sequence[int], past_B: Sequence[int]) -> NDArray[np.float32]:
        """See `Runner.decode`."""
        ids_BS = np.asarray(ids_B, np.int64).reshape(-1, 1)
        return self._step(first_slot, ids_BS, np.asarray(past_B), np.arange(len(ids_BS)))

    def _step(self, first_slot: int, ids_BS: NDArray, past_B: NDArray, rows_N: NDArray) -> NDArray[np.float32]:
        self._check(first_slot, ids_BS, past_B)
        (batch, length), rows = ids_BS.shape, len(rows_N)
        binding = self._binding(first_slot, batch, length, rows)
        binding.input_ids_BS[:] = ids_BS
        binding.seqlens_k_B[:] = past_B + length - 1
        binding.total_sequence_length[...] = past_B.max() + length
        binding.logit_rows_N[:] = rows_N
        self._session.run_with_iobinding(binding.io)
        return binding.logits_NV

    def _check(self, first_slot: int, ids_BS: NDArray, past_B: NDArray) -> None:
        """Refuse a step that would read or write outside a cache: the operator writes where it is told."""
        batch, length = ids_BS.shape
        if length < 1 or len(past_B) != batch or not 0 <= first_slot < first_slot + batch <= self.slots:
            raise ValueError(f"a step of {batch}x{length} tokens at slot {first_slot} does not fit {self.slots} slots")
        if past_B.min() < 0 or past_B.max() + length > self.context_length:
            raise ValueError(f"{length} tokens after {past_B.max()} exceed the context of {self.context_length} tokens")
        if ids_BS.min() < 0 or ids_BS.max() >= self.vocab_size:
            raise ValueError(f"a token id is outside the vocabulary of {self.vocab_size}")

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
        _bind_input(binding.io, "input_ids", binding.input_ids_BS)
        _bind_input(binding.io, "seqlens_k", binding.seqlens_k_B)
        _bind_input(binding.io, "total_sequence_length", binding.total_sequence_length)
        _bind_input(binding.io, "logit_rows", binding.logit_rows_N)
        _bind_output(binding.io, "logits", binding.logits_NV)
        for name, cache in self._caches.items():
            # Past and present are one buffer: the operator then writes one token instead of copying the cache.
            _bind_input(binding.io, f"past_key_values.{name}", cache[first_slot : first_slot + batch])
            _bind_output(binding.io, f"present.{name}", cache[first_slot : first_slot + batch])
        return binding


def language_model_facts(artifact: Path) -> LanguageModelFacts:
    """The language model's facts from a verified artifact; raises InputError where it is of another kind."""
    manifest = read_manifest(artifact)
    if manifest.kind != "onnx" or manifest.language_model is None:
        raise InputError(
            f"{artifact} is of kind '{manifest.kind}', not an exported language model: run hebbline export"
        )
    return manifest.language_model


def cache_bytes_per_slot(facts: LanguageModelFacts) -> int:
    """Bytes of float32 keys and values that one slot takes."""
    return 2 * 4 * facts.num_layers * facts.num_kv_heads * facts.context_length * facts.head_dim


def _load(path: Path, threads: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    # "session.set_denormal_as_zero" is left alone: it would change the floating-point mode of the calling thread for
    # good.
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise InputError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: {error}") from error


def _bind_input(io: onnxruntime.IOBinding, name: str, array: NDArray) -> None:
    io.bind_input(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)


def _bind_output(io: onnxruntime.IOBinding, name: str, array: NDArray) -> None:
    io.bind_output(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)
