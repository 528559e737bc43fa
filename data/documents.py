"""Documents: the text that comes with CPython, the Brown corpus, local files, and the Hugging Face hub."""

import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..artifacts import InputError
from .brown import brown_texts

PYTHON_SOURCE = "python"
BROWN_SOURCE = "brown"
HUB_PREFIX = "hub://"
_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3", "pydoc_data"}
_BUCKETS = 10_000


@dataclass(frozen=True)
class Documents:
    """Texts to train on, and held-out texts. The split depends on each text alone, not on order or seed."""

    train: list[str]
    validation: list[str]

    @property
    def bytes(self) -> tuple[int, int]:
        """UTF-8 bytes of the two parts."""
        return tuple(sum(len(text.encode()) for text in part) for part in (self.train, self.validation))  # type: ignore[return-value]


def load_documents(source: str, validation_share: float, limit: int = 0) -> Documents:
    """Load and split the documents of a source.

    Args:
        source: "python" (the manual's topics in `pydoc_data` and the standard library's docstrings, one document a
            module), "brown" (the Brown corpus, from a registry package), the path of a .txt file (documents separated
            by blank lines) or .jsonl file (field "text"), or hub://NAME or hub://NAME:CONFIGURATION for the train
            split of a data set on the Hugging Face hub.
        validation_share: share of the documents to hold out, in (0, 1).
        limit: take the first so many documents; 0 for all. From the hub, only those are fetched.

    Raises:
        InputError: an unknown or unreadable source, or one too small to split.
    """
    if not 0 < validation_share < 1:
        raise InputError(f"data.validation_share {validation_share} is outside (0, 1)")
    texts = load_texts(source, limit)
    held_out = [_bucket(text) < validation_share * _BUCKETS for text in texts]
    documents = Documents(
        train=[text for text, out in zip(texts, held_out, strict=True) if not out],
        validation=[text for text, out in zip(texts, held_out, strict=True) if out],
    )
    if not documents.train or not documents.validation:
        raise InputError(
            f"data.source '{source}' has {len(texts)} documents: too few to hold out {validation_share:.1%}"
        )
    return documents


def load_texts(source: str, limit: int = 0) -> list[str]:
    """All texts of a source, each once, sorted; arguments and errors as of `load_documents`."""
    return sorted({text for text in _read(source, limit) if text.strip()})


def _bucket(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") % _BUCKETS


def _read(source: str, limit: int) -> Iterator[str]:
    if source.startswith(HUB_PREFIX):
        return _hub_texts(source.removeprefix(HUB_PREFIX), limit)
    return islice(_local_texts(source), limit or None)


def _local_texts(source: str) -> Iterator[str]:
    if source == PYTHON_SOURCE:
        return _python_texts()
    if source == BROWN_SOURCE:
        return brown_texts()
    path = Path(source)
    if not path.is_file():
        raise InputError(f"data.source '{source}' is neither 'python', 'brown', a hub:// name, nor a file")
    return _jsonl_texts(path) if path.suffix == ".jsonl" else iter(path.read_text().split("\n\n"))


def _python_texts() -> Iterator[str]:
    """The manual's topics, then the docstrings of each module of the standard library. Nothing is imported but data."""
    from pydoc_data.topics import topics

    yield from topics.values()
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
            yield "\n\n".join(_docstrings(path))


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # templates and deliberate syntax errors that the library ships
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _jsonl_texts(path: Path) -> Iterator[str]:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            yield json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: not a JSON object with a field 'text'") from error


def _hub_texts(name: str, limit: int) -> Iterator[str]:
    from datasets import load_dataset

    path, _, configuration = name.partition(":")
    try:
        data = load_dataset(path, configuration or None, split="train", streaming=limit > 0)
        columns = list(data.column_names or next(iter(data)))
        if "text" in columns:
            # In rows, not in one column: the whole of a large data set does not fit into memory.
            yield from (row["text"] for row in islice(data, limit or None))
            return
    except Exception as error:  # the hub client raises its own and its transport's errors
        raise InputError(f"data.source '{HUB_PREFIX}{name}' cannot be loaded from the hub: {error}") from error
    raise InputError(f"data.source '{HUB_PREFIX}{name}' has no column 'text', but {', '.join(columns)}")
