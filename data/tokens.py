"""A byte-level BPE tokenizer, and token blocks of equal length.

Legend: B blocks, S tokens a block.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..artifacts import InputError

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
_TEXTS_AT_ONCE = 10_000


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = (END_OF_TEXT,)
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: any text round-trips.

    Args:
        texts: to count pairs in.
        vocab_size: entries, special tokens included.
        special_tokens: `END_OF_TEXT`, which ends documents and sentences, and `PADDING` where batches are padded.
    """
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        texts, vocab_size=vocab_size, special_tokens=list(special_tokens), show_progress=False
    )
    padding = {"pad_token": PADDING} if PADDING in special_tokens else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False, **padding
    )


def pack_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> Tensor:
    """All texts, each ended by the end-of-text token, cut into blocks; a remainder shorter than a block is dropped.

    Returns:
        int64 [B, S].

    Raises:
        InputError: the texts do not fill one block, or the tokenizer has no token that ends a text.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no eos_token, which texts end with: set it in tokenizer_config.json")
    parts = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        encoded = tokenizer(list(texts[start : start + _TEXTS_AT_ONCE]), add_special_tokens=False, verbose=False)
        ids = chain.from_iterable([*ids, tokenizer.eos_token_id] for ids in encoded["input_ids"])
        parts.append(np.fromiter(ids, np.int64))
    token_ids = np.concatenate(parts)
    blocks = len(token_ids) // length
    if blocks == 0:
        raise InputError(f"the text has {len(token_ids)} tokens, fewer than one block of {length}")
    return torch.from_numpy(token_ids[: blocks * length].reshape(blocks, length))
