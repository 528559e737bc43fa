"""The Brown corpus of American English (Francis and Kučera, 1964): 500 documents, from a registry package.

Its words have part-of-speech tags and its punctuation stands apart; both are undone.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from .packages import PACKAGES, read_members

_DOCUMENT = re.compile(r"c[a-r]\d\d")
_JOINED_BEFORE = re.compile(r" (?=[,.;:?!)\]])")
_JOINED_AFTER = re.compile(r"(?<=[(\[]) ")


def brown_texts() -> Iterator[str]:
    """The documents as plain text, a line a paragraph."""
    members = read_members(PACKAGES["brown"], lambda path: _DOCUMENT.fullmatch(PurePosixPath(path).name) is not None)
    for path in sorted(members):
        yield plain_text(members[path].decode())


def plain_text(tagged: str) -> str:
    """Text of words with tags, such as `The/at jury/nn said/vbd ./.`: the words, spaced as in print."""
    paragraphs = (" ".join(_words(paragraph)) for paragraph in tagged.split("\n\n"))
    return "\n".join(_spaced(paragraph) for paragraph in paragraphs if paragraph)


def _words(paragraph: str) -> Iterator[str]:
    for token in paragraph.split():
        word, _, _ = token.rpartition("/")
        if word:
            yield word


def _spaced(text: str) -> str:
    """Punctuation beside its word. The corpus writes quotation marks as `` and ''."""
    text = text.replace("`` ", '"').replace(" ''", '"')
    return _JOINED_AFTER.sub("", _JOINED_BEFORE.sub("", text))
