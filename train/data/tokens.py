"""A byte-level BPE tokenizer, and token blocks of equal length.

Legend: B blocks, S tokens a block.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ...artifacts import InputError

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"


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
        InputError: the texts do not fill one block.
    """
    token_ids: list[int] = []
    for encoded in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]:
        token_ids += encoded
        token_ids.append(tokenizer.eos_token_id)
    blocks = len(token_ids) // length
    if blocks == 0:
        raise InputError(f"the text has {len(token_ids)} tokens, fewer than one block of {length}")
    return torch.from_numpy(np.array(token_ids[: blocks * length], np.int64).reshape(blocks, length))
