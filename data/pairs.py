"""Sentence pairs to translate: LibreOffice's help in two languages, local files, and the Hugging Face hub."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path

from ..artifacts import InputError
from .packages import PACKAGES, read_members

HELP_SOURCE = "libreoffice-help"
HUB_PREFIX = "hub://"
_HELP_FOLDERS = {"en": "en-US", "de": "de"}
_BUCKETS = 10_000
Pair = tuple[str, str]


@dataclass(frozen=True)
class Pairs:
    """Pairs of source and target to train on and to test with."""

    train: list[Pair]
    test: list[Pair]


@lru_cache(maxsize=1)
def load_pairs(source: str, languages: tuple[str, str], test_share: float) -> Pairs:
    """Load sentence pairs. Equal pairs are kept once, and none is in both parts.

    They are kept for the next run on the same; do not change the lists.

    Args:
        source: "libreoffice-help", a .tsv file, or hub://NAME[:CONFIGURATION].
        languages: from and to.
        test_share: share of documents (of the help) or pairs (of a file) to test with; the hub's own test part counts.

    Raises:
        InputError: an unknown or unreadable source, or one too small to split.
    """
    if source == HELP_SOURCE:
        train, test = _split(_help_pairs(languages), test_share)
    elif source.startswith(HUB_PREFIX):
        train, test = _hub_pairs(source.removeprefix(HUB_PREFIX), languages)
    else:
        train, test = _split(((str(number), pair) for number, pair in enumerate(_file_pairs(Path(source)))), test_share)
    held_out = list(dict.fromkeys(test))
    pairs = Pairs([pair for pair in dict.fromkeys(train) if pair not in set(held_out)], held_out)
    if not pairs.train or not pairs.test:
        raise InputError(f"data.source '{source}' has too few sentence pairs to hold out {test_share:.1%}")
    return pairs


def _split(pairs: Iterable[tuple[str, Pair]], test_share: float) -> tuple[list[Pair], list[Pair]]:
    """By a digest of the document's name, so that a document is in one part."""
    train: list[Pair] = []
    test: list[Pair] = []
    for document, pair in pairs:
        digest = hashlib.sha256(document.encode()).digest()
        bucket = int.from_bytes(digest[:8], "little") % _BUCKETS
        (test if bucket < test_share * _BUCKETS else train).append(pair)
    return train, test


def _help_pairs(languages: tuple[str, str]) -> Iterator[tuple[str, Pair]]:
    """Paragraphs of the same page with the same identifier."""
    for language in languages:
        if language not in _HELP_FOLDERS:
            raise InputError(f"data.languages: '{HELP_SOURCE}' is read in {', '.join(_HELP_FOLDERS)}, not {language}")
    first, second = (_help_pages(language) for language in languages)
    for page in sorted(first.keys() & second.keys()):
        sources, targets = (_paragraphs(pages[page]) for pages in (first, second))
        for identity in sorted(sources.keys() & targets.keys()):
            if sources[identity] != targets[identity]:
                yield page, (sources[identity], targets[identity])


def _help_pages(language: str) -> dict[str, str]:
    """HTML by path below the language's folder."""
    folder = f"/help/{_HELP_FOLDERS[language]}/text/"
    package = PACKAGES[f"{HELP_SOURCE}-{language}"]
    members = read_members(package, lambda path: folder in path and path.endswith(".html"))
    return {path.partition(folder)[2]: content.decode(errors="replace") for path, content in members.items()}


class _Paragraphs(HTMLParser):
    """Collects the text of elements whose id names a paragraph, heading or title."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._open: str | None = None
        self._tag = ""
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a paragraph."""
        identity = dict(attrs).get("id") or ""
        if re.match(r"(par|hd|tit)_id", identity):
            self._open, self._tag, self._text = identity, tag, []

    def handle_data(self, data: str) -> None:
        """Take in its text."""
        if self._open is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        """End it."""
        if self._open is not None and tag == self._tag:
            text = " ".join("".join(self._text).split())
            if text:
                self.found.setdefault(self._open, text)
            self._open = None


def _paragraphs(html: str) -> dict[str, str]:
    parser = _Paragraphs()
    parser.feed(html)
    return parser.found


def _file_pairs(path: Path) -> Iterator[Pair]:
    if not path.is_file():
        raise InputError(f"data.source '{path}' is neither '{HELP_SOURCE}', a hub:// name, nor a file")
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        parts = line.split("\t")
        if len(parts) != 2 or not all(part.strip() for part in parts):
            raise InputError(f"{path}, line {number}: not a source and a target with a tab between them")
        yield parts[0].strip(), parts[1].strip()


def _hub_pairs(name: str, languages: tuple[str, str]) -> tuple[list[Pair], list[Pair]]:
    from datasets import load_dataset

    path, _, configuration = name.partition(":")
    try:
        data = load_dataset(path, configuration or None)
        return _hub_part(data["train"], languages), _hub_part(data["test"], languages)
    except Exception as error:  # the hub client raises its own and its transport's errors
        raise InputError(f"data.source '{HUB_PREFIX}{name}' cannot be loaded from the hub: {error}") from error


def _hub_part(rows: Iterable[dict], languages: tuple[str, str]) -> list[Pair]:
    """Languages as columns, or in a column `translation`."""
    source, target = languages
    plain = [row.get("translation", row) for row in rows]
    return [(row[source].strip(), row[target].strip()) for row in plain]
