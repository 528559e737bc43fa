"""Large files of a Git repository that were never fetched: Git LFS leaves a note in their place."""

from pathlib import Path

from .errors import InputError

_NOTE = b"version https://git-lfs"


def check_fetched(path: Path) -> None:
    """Refuse such a note.

    Raises:
        InputError: the file is one.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        check_content(path, stream.read(len(_NOTE)))


def check_content(path: Path, content: bytes) -> None:
    """The same of a file whose bytes, or first bytes, were read."""
    if content.startswith(_NOTE):
        raise InputError(f"{path} was not fetched: it is the note of Git LFS in its place; run `git lfs pull` there")
