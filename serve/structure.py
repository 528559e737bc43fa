"""Structured output: which tokens keep a text within a JSON schema, a regular expression or a grammar.

llguidance compiles the structure and says after each token which ones may follow. V is the vocabulary.
"""

import importlib.util
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..artifacts import CheckError, InputError
from .parameters import SamplingParameters

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_MESSAGE = 200
_WHITE_SPACE = r"\n?[ \t]{0,32}"
"""Between the parts of JSON. Without a bound a model may go on with it for ever."""


class Structure:
    """The state of one text within its structure."""

    def __init__(self, matcher: "LLMatcher", vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._words = np.empty(-(-vocab_size // 32), np.int32)

    @property
    def is_complete(self) -> bool:
        """Whether the text is whole and nothing can follow."""
        return bool(self._matcher.is_stopped())

    def fork(self) -> "Structure":
        """A copy that goes on by itself."""
        return Structure(self._matcher.deep_copy(), self._vocab_size)

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens [V] may come next; end-of-sequence tokens where the text may end.

        Raises:
            CheckError: no token can, or the structure is too complex.
        """
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        self._check()
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little")
        allowed_V = bits[: self._vocab_size].view(np.bool_)
        if not allowed_V.any():
            raise CheckError("the structure that the text follows leaves no token: make it less strict")
        return allowed_V

    def consume(self, token: int) -> None:
        """Take a token that `allowed` had."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise CheckError(f"the structure of the text cannot be kept: {_short(self._matcher.get_error())}")


class StructureCompiler:
    """Makes structures for the texts of one model; usable from several threads.

    Args:
        tokenizer: as `tokenizers` loads it. vocab_size: of the logits. eos_token_ids: any of these ends a text.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._lock = threading.Lock()
        self._compiled: LLTokenizer | None = None

    def compile(self, parameters: SamplingParameters) -> Structure | None:
        """The structure that a request asks for; None where it asks for none.

        Raises:
            InputError: it is malformed, or llguidance is not installed.
        """
        if parameters.structure is None:
            return None
        kind, text = parameters.structure
        tokenizer = self._vocabulary()
        from llguidance import LLMatcher, LLParserLimits

        try:
            if kind == "json_schema":
                grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": _WHITE_SPACE})
            elif kind == "regex":
                grammar = LLMatcher.grammar_from_regex(text)
            else:
                grammar = LLMatcher.grammar_from_lark(text)
        except ValueError as error:
            raise InputError(f"{kind}: {_short(str(error))}") from error
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if matcher.is_error():
            raise InputError(f"{kind}: {_short(matcher.get_error())}")
        return Structure(matcher, self._vocab_size)

    def _vocabulary(self) -> "LLTokenizer":
        """The vocabulary as llguidance reads it: made at the first use, as it takes a second where it is large."""
        with self._lock:
            if self._compiled is None:
                if importlib.util.find_spec("llguidance") is None:
                    raise InputError("structured output needs the package llguidance: pip install 'hebbline[serve]'")
                from llguidance import LLTokenizer

                ends = self._eos_token_ids or None
                self._compiled = LLTokenizer(self._tokenizer.to_str(), self._vocab_size, ends)
            return self._compiled


def _short(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= MAX_MESSAGE else line[:MAX_MESSAGE] + "…"
