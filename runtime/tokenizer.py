"""The tokenizer of an artifact, and the most text that it could make fit a context."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from ..artifacts import InputError
from ..artifacts.tokenizer_files import read_tokenizer

NORMALIZED_SHRINKAGE = 4
"""The most UTF-8 bytes that a Unicode normal form or lower case can make one of: U+1D433 (4) becomes z (1) in NFKC."""
_KEEPS_TEXT = ("ByteLevel", "Digits", "Metaspace", "Split", "Punctuation", "UnicodeScripts")
_BYTE_TOKENS = {f"<0x{byte:02X}>" for byte in range(256)}


def load_tokenizer(artifact: Path) -> Tokenizer:
    """Read `tokenizer.json`, without the padding and truncation that training may have left in it.

    Raises:
        InputError: the file is missing, or is no tokenizer.
    """
    tokenizer = read_tokenizer(artifact)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode(tokenizer: Tokenizer, text: str, most: int, *, special: bool = True) -> tuple[int, ...]:
    """The tokens of a text. Other threads of the interpreter run meanwhile: only the batched call lets them.

    Args:
        tokenizer: as `tokenizers` loads it. text: any. most: tokens.
        special: add what the tokenizer puts around a text, such as a token for its beginning. A text that a chat
            template made has it already.

    Raises:
        InputError: there are more than `most`.
    """
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=special)
    if len(encoding) > most:
        raise InputError(f"the prompt has {len(encoding)} tokens, more than the context of {most} tokens")
    return tuple(encoding.ids)


def bytes_per_token(tokenizer: Tokenizer) -> float | None:
    """The most UTF-8 bytes of text that one token can stand for; None where the tokenizer sets no limit.

    There is a limit where every byte of a text ends up in some token: in tokenizers of bytes, and of characters that
    fall back to bytes. Where text is dropped (white space between words, accents), or a word of any length can be one
    unknown token, there is none. What is not known to keep the text counts as dropping it.
    """
    spec = json.loads(tokenizer.to_str())
    shrinkage = _normalizer_shrinkage(spec["normalizer"])
    longest = _longest_token(spec, tokenizer)
    if shrinkage is None or longest is None or not _keeps_text(spec["pre_tokenizer"]):
        return None
    return shrinkage * longest


def _longest_token(spec: dict[str, Any], tokenizer: Tokenizer) -> int | None:
    """Bytes of normalized text that the longest token stands for, where every byte is in one."""
    model, added = spec["model"], spec["added_tokens"]
    # An added token that strips takes any amount of the white space beside it.
    if model["type"] not in ("BPE", "Unigram") or any(token["lstrip"] or token["rstrip"] for token in added):
        return None
    words = model["vocab"] if model["type"] == "BPE" else [word for word, _ in model["vocab"]]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
    if _is_byte_level(spec) and set(pre_tokenizers.ByteLevel.alphabet()).issubset(words):
        sizes = [len(word) for word in words]  # a letter for each byte
    elif model.get("byte_fallback") and _BYTE_TOKENS.issubset(words):
        sizes = [len(word.encode()) for word in words]
    else:
        return None
    contents = [token["content"] for token in added]
    if tokenizer.normalizer is not None:
        contents += [tokenizer.normalizer.normalize_str(content) for content in contents]
    return max(sizes + [len(content.encode()) for content in contents])


def _is_byte_level(spec: dict[str, Any]) -> bool:
    parts = _parts(spec["pre_tokenizer"], "pretokenizers") + _parts(spec["normalizer"], "normalizers")
    return spec["model"]["type"] == "BPE" and any(part["type"] == "ByteLevel" for part in parts)


def _keeps_text(pre_tokenizer: dict[str, Any] | None) -> bool:
    parts = _parts(pre_tokenizer, "pretokenizers")
    return all(part["type"] in _KEEPS_TEXT and part.get("behavior") != "Removed" for part in parts)


def _normalizer_shrinkage(normalizer: dict[str, Any] | None) -> float | None:
    """The most bytes that become one byte of the normalized text; None where there is no most."""
    shrinkage = 1.0
    for part in _parts(normalizer, "normalizers"):
        if part["type"] in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase"):
            shrinkage *= NORMALIZED_SHRINKAGE
        elif part["type"] == "Replace" and part["content"] and "String" in part["pattern"]:
            shrinkage *= max(1.0, len(part["pattern"]["String"].encode()) / len(part["content"].encode()))
        elif part["type"] not in ("Prepend", "ByteLevel"):
            return None
    return shrinkage


def _parts(stage: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a stage, those of sequences within it one by one."""
    if stage is None:
        return []
    if stage["type"] != "Sequence":
        return [stage]
    return [part for inner in stage[key] for part in _parts(inner, key)]
