"""The runner on the op library: any sequences with any numbers of tokens in one step, over caches bound once.

Legend: Q segments, T tokens of all of them, N rows of logits, V vocabulary.
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...artifacts import KvFormat, LanguageModelFacts
from .onnxruntime import OnnxRunner, cache_shape, check_rows
from .runner import Segment
from .session import aligned_zeros, bind_input, bind_output, load_session


class VarlenRunner(OnnxRunner):
    """Runs `model.hebbline.onnx`; see `MixedRunner` for the contract.

    `OnnxRunner.open` is the way to a published artifact; the constructor takes a graph that is not published yet.

    Args:
        model: the ONNX file.
        facts: sizes of the model's cache and vocabulary.
        slots: the number of sequences that can be held at a time.
        threads: of ONNX Runtime within an operator; None takes one for each physical core.
        kv: how keys and values are kept; see `OnnxRunner.open`.

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
        shape = cache_shape(facts, slots, kv)
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
        bounds = [0, *accumulate(lengths)]
        rows_N = [first + row for first, segment in zip(bounds, segments, strict=False) for row in segment.rows_N]
        for length, segment in zip(lengths, segments, strict=True):
            check_rows(segment.rows_N, length)
        for name, values, dtype in (
            ("input_ids", ids_T, np.int64),
            ("cu_seqlens", bounds, np.int32),
            ("slots", slots, np.int32),
            ("past", past, np.int32),
            ("logit_rows", rows_N, np.int64),
        ):
            self._array(name, (len(values),), dtype)[:] = values
        logits_NV = self._array("logits", (len(rows_N), self.vocab_size), np.float32)
        self._session.run_with_iobinding(self._io)
        return logits_NV

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
