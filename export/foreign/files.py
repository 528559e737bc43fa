"""Reading a stranger's files: every byte comes through a descriptor that cannot leave the model's directory.

A location inside a model is data from a stranger. It is walked name by name from an open directory, without following
a symbolic link at any step, and only an ordinary file with one name is read: a hard link may be another name of a file
elsewhere.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from ...artifacts import InputError
from ...artifacts.fetched import check_content

MAX_PROTO_BYTES = 2**31 - 1
"""Protobuf cannot serialize more; weights beyond it belong in external data."""
_SHOWN_CHARACTERS = 200
_BLOCK = 1 << 22
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def quoted(name: str) -> str:
    """A name from the file for a message of one line: control characters escaped, and not endless."""
    return repr(name if len(name) <= _SHOWN_CHARACTERS else name[:_SHOWN_CHARACTERS] + "...")


def read_model_bytes(path: Path) -> bytes:
    """The bytes of the model file itself, whose path the user gave (it may be a symbolic link).

    Raises:
        InputError: no such file, not an ordinary file, unreadable, or larger than protobuf allows.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        facts = os.fstat(descriptor)
        if stat.S_ISDIR(facts.st_mode):
            raise InputError(
                f"{path} is a directory: pack takes an ONNX file; `hebbline export` takes a model directory"
            )
        if not stat.S_ISREG(facts.st_mode):
            raise InputError(f"{path} is not an ordinary file")
        if facts.st_size > MAX_PROTO_BYTES:
            raise InputError(
                f"{path} has {facts.st_size / 1e9:.2f} GB; protobuf holds at most 2 GB: save its weights as external "
                "data"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            content = stream.read(MAX_PROTO_BYTES)
        check_content(path, content)
        return content
    finally:
        os.close(descriptor)


class DataDirectory:
    """The directory of a model, for reading its external data; a context manager that closes what it opened.

    Args:
        model: path of the model file.
    """

    def __init__(self, model: Path) -> None:
        self._model = model
        self._directory = os.open(model.absolute().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._files: dict[str, int] = {}

    def __enter__(self) -> "DataDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in (*self._files.values(), self._directory):
            os.close(descriptor)

    def check_span(self, location: str, offset: int, length: int, tensor: str) -> None:
        """Raise InputError unless `length` bytes at `offset` of the file at `location` can be read."""
        size = os.fstat(self._file(location, tensor)).st_size
        if offset < 0 or length < 0 or offset + length > size:
            raise self._error(tensor, location, f"bytes {offset} to {offset + length} are asked of a file of {size}")

    def blocks(self, location: str, offset: int, length: int, tensor: str) -> Iterator[bytes]:
        """The bytes of a span, in blocks; raises InputError where the file ends early."""
        descriptor = self._file(location, tensor)
        while length:
            block = os.pread(descriptor, min(length, _BLOCK), offset)
            if not block:
                raise self._error(tensor, location, f"the file ends {length} bytes early")
            yield block
            offset, length = offset + len(block), length - len(block)

    def _file(self, location: str, tensor: str) -> int:
        if location not in self._files:
            self._files[location] = self._open(location, tensor)
        return self._files[location]

    def _open(self, location: str, tensor: str) -> int:
        names = [name for name in location.split("/") if name != "."]
        if "\0" in location or location.startswith("/") or not names or not all(names) or ".." in names:
            raise self._error(tensor, location, "it must be a relative path inside the model's directory")
        opened: list[int] = []
        try:
            for name in names[:-1]:
                parent = opened[-1] if opened else self._directory
                opened.append(os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=parent))
            return self._open_file(names[-1], opened[-1] if opened else self._directory, location, tensor)
        except OSError as error:
            raise self._error(
                tensor, location, f"cannot be opened without following links: {error.strerror}"
            ) from error
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _open_file(self, name: str, directory: int, location: str, tensor: str) -> int:
        # Looked at before it is opened, since opening a device can act on it; and again after, since names can change.
        self._check_ordinary(os.stat(name, dir_fd=directory, follow_symlinks=False), location, tensor)
        descriptor = os.open(name, _OPEN, dir_fd=directory)
        try:
            self._check_ordinary(os.fstat(descriptor), location, tensor)
        except InputError:
            os.close(descriptor)
            raise
        return descriptor

    def _check_ordinary(self, facts: os.stat_result, location: str, tensor: str) -> None:
        if stat.S_ISLNK(facts.st_mode):
            raise self._error(tensor, location, "it is a symbolic link; put the file itself there")
        if not stat.S_ISREG(facts.st_mode):
            raise self._error(tensor, location, "it is not an ordinary file")
        if facts.st_nlink != 1:
            raise self._error(tensor, location, f"the file has {facts.st_nlink} names (hard links); put a copy there")

    def _error(self, tensor: str, location: str, reason: str) -> InputError:
        return InputError(f"{self._model}: tensor {quoted(tensor)}: external data {quoted(location)}: {reason}")
