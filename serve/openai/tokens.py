"""The bytes behind each token of a vocabulary, which log-probabilities are given with."""

import json

from tokenizers import Tokenizer

_SPACE = "▁"


class TokenBytes:
    """Of one tokenizer. A token may be part of a character: then its bytes are no text by themselves."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes_of_letter = _byte_letters() if _is_byte_level(tokenizer) else {}
        self._added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}

    def of(self, token: int) -> bytes:
        """The bytes of a token; none where there is no such token."""
        word = self._tokenizer.id_to_token(token) or ""
        if word in self._added:
            return word.encode()
        if self._bytes_of_letter and all(letter in self._bytes_of_letter for letter in word):
            return bytes(self._bytes_of_letter[letter] for letter in word)
        if len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
            return bytes.fromhex(word[3:5])
        return word.replace(_SPACE, " ").encode()

    def text(self, token: int) -> str:
        """The bytes as text, with the replacement character for what is none."""
        return self.of(token).decode(errors="replace")


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    decoder = json.loads(tokenizer.to_str())["decoder"] or {}
    parts = decoder.get("decoders", [decoder])
    return any(part.get("type") == "ByteLevel" for part in parts)


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level tokenizers write for each byte: printable ones as they are, others from U+0100 on.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners": the encoder of GPT-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
