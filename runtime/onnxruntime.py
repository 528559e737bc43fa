"""What the two runners on ONNX Runtime share.

An artifact has two graphs over one file of weights: `model.onnx` of stock ops, which any ONNX Runtime runs, and
`model.hebbline.onnx` with the ops that only the op library has, which is faster and takes prompts and single tokens in
one step. An artifact of before there was the second one has only the first.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..artifacts import InputError, KvFormat, LanguageModelFacts, read_manifest
from .runner import BLOCK_TOKENS

MODEL_FILE = "model.onnx"
KERNELS_MODEL_FILE = "model.hebbline.onnx"


class OnnxRunner(ABC):
    """A published ONNX artifact on the CPU; see `Runner` for the contract, and `open_onnx` for the way to one.

    The cache takes up to `slots * cache_bytes_per_slot(facts)` bytes, allocated once; pages are committed as they are
    first written.

    Args:
        facts: sizes of the model's cache and vocabulary.
        slots: the number of sequences that can be held at a time.

    Raises:
        InputError: there is no slot.
    """

    def __init__(self, facts: LanguageModelFacts, slots: int) -> None:
        if slots < 1:
            raise InputError(f"slots must be at least 1, not {slots}")
        self.facts = facts
        self.slots = slots
        self.context_length = facts.context_length
        self.vocab_size = facts.vocab_size

    @abstractmethod
    def prefill(self, slot: int, ids_S: Sequence[int], past: int, rows_N: Sequence[int]) -> NDArray[np.float32]:
        """See `Runner.prefill`."""

    @abstractmethod
    def decode(self, first_slot: int, ids_B: Sequence[int], past_B: Sequence[int]) -> NDArray[np.float32]:
        """See `Runner.decode`."""

    def _check_step(self, slots: Sequence[int], lengths: Sequence[int], past: Sequence[int], ids_T: NDArray) -> None:
        """Refuse a step that would reach outside a slot or the vocabulary; raises ValueError."""
        fits = len(slots) > 0 and min(lengths) > 0 and min(slots) >= 0 and max(slots) < self.slots
        if not fits or len(set(slots)) < len(slots):
            raise ValueError(f"a step of {list(lengths)} tokens at slots {list(slots)} does not fit {self.slots} slots")
        for length, held in zip(lengths, past, strict=True):
            if held < 0 or held + length > self.context_length:
                raise ValueError(f"{length} tokens after {held} exceed the context of {self.context_length} tokens")
        if ids_T.min() < 0 or ids_T.max() >= self.vocab_size:
            raise ValueError(f"a token id is outside the vocabulary of {self.vocab_size}")


def check_rows(rows_N: Sequence[int], tokens: int) -> None:
    """Raise ValueError where logits are wanted after a token that the segment does not have."""
    if len(rows_N) > 0 and not 0 <= min(rows_N) <= max(rows_N) < tokens:
        raise ValueError(f"rows {list(rows_N)} are not within the {tokens} tokens of the step")


def language_model_facts(artifact: Path) -> LanguageModelFacts:
    """The language model's facts from a verified artifact; raises InputError where it is of another kind."""
    manifest = read_manifest(artifact)
    if manifest.kind != "onnx" or manifest.language_model is None:
        raise InputError(
            f"{artifact} is of kind '{manifest.kind}', not an exported language model: run hebbline export"
        )
    return manifest.language_model


def cache_shape(facts: LanguageModelFacts, slots: int, kv: KvFormat) -> tuple[int, int, int, int]:
    """The shape [slots, heads, blocks, bytes] of one layer's cache of the op library, uint8.

    A block holds the keys [D, 16] and values [16, D] of 16 tokens and one head, and for int8 two scales a token.
    """
    numbers = 2 * BLOCK_TOKENS * facts.head_dim
    sizes: dict[KvFormat, int] = {
        "float32": 4 * numbers,
        "bfloat16": 2 * numbers,
        "int8": numbers + 2 * 4 * BLOCK_TOKENS,
    }
    if kv not in sizes:
        raise InputError(f"keys and values cannot be kept as '{kv}': it is one of {', '.join(sizes)}")
    return slots, facts.num_kv_heads, -(-facts.context_length // BLOCK_TOKENS), sizes[kv]


def cache_bytes_per_slot(facts: LanguageModelFacts, kv: KvFormat | None = None) -> int:
    """Bytes of keys and values that a slot takes in all layers, with the context in whole blocks; None: as exported."""
    return facts.num_layers * int(np.prod(cache_shape(facts, 1, kv or facts.kv_cache)))
