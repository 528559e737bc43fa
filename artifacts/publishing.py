"""Atomic publication: a reader sees the old directory or the whole new one, never a part."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .errors import InputError
from .manifest import MANIFEST_FILE, FileFacts, Manifest, file_digest

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class Publication:
    """A directory being written. Put files into `directory`, then call `finish` with the manifest."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest: Manifest | None = None

    def finish(self, manifest: Manifest) -> None:
        """Set the manifest to publish with; digests and version are filled in when the block ends."""
        self.manifest = manifest


@contextmanager
def publish(target: Path) -> Iterator[Publication]:
    """Write a directory under a temporary name and rename it to `target` when the block ends well.

    Nothing is published where the block raises or `finish` was not called; the temporary directory goes, even where the
    process is killed.

    Raises:
        InputError: `target` exists and is not a directory that hebbline published, or cannot be written.
    """
    target = target.absolute()
    check_target(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror}; choose another directory") from error
    with _removed_at_the_end(staging):
        publication = Publication(staging)
        yield publication
        if publication.manifest is not None:
            _write_manifest(staging, publication.manifest)
            _sync_tree(staging)
            _move_into_place(staging, target)
            sync(target.parent)


@contextmanager
def _removed_at_the_end(directory: Path) -> Iterator[None]:
    """Remove a directory, if it is still there, when the block ends or this process does, whatever ends it.

    A shell waits at a pipe whose other end only this process has, in a session of its own, which Ctrl-C does not reach.
    """
    command = ["/bin/sh", "-c", 'cat; exec rm -rf -- "$1"', "sh", str(directory)]
    quiet = subprocess.DEVNULL
    guard = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, cwd="/", start_new_session=True
    )
    try:
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        # A child of this process may have the pipe too: the shell is not waited for at it.
        guard.kill()
        guard.communicate()


def check_target(target: Path) -> None:
    """Refuse to replace anything but an empty directory or one that hebbline published (InputError)."""
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target} exists and is not a directory")
    if any(target.iterdir()) and not (target / MANIFEST_FILE).is_file():
        raise InputError(f"{target} is not empty and was not published by hebbline; choose another directory")


def write_atomically(path: Path, content: str) -> None:
    """Write one text file through a temporary name, fsync and rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def _write_manifest(directory: Path, manifest: Manifest) -> None:
    from .. import __version__

    files = {
        path.relative_to(directory).as_posix(): FileFacts(path.stat().st_size, file_digest(path))
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    manifest = replace(manifest, files=files, hebbline_version=__version__)
    (directory / MANIFEST_FILE).write_text(manifest.to_json())


def _move_into_place(staging: Path, target: Path) -> None:
    """Rename; an existing target is swapped in one step, and its old content is removed under the staging name."""
    if not target.exists() or not any(target.iterdir()):
        staging.rename(target)
    else:
        _exchange(staging, target)


def _exchange(first: Path, second: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    if libc.renameat2(*arguments) == 0:
        return
    # Some file systems cannot exchange: two renames then, with a moment in between in which there is no directory.
    aside = first.with_name(f"{first.name}.old")
    second.rename(aside)
    first.rename(second)
    shutil.rmtree(aside)


def _sync_tree(directory: Path) -> None:
    """Flush everything, readable by others as the temporary directory was not."""
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
        sync(path)


def sync(path: Path) -> None:
    """Flush a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
