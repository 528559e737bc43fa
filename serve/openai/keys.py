"""API keys: a file of names, hashes and limits. A key is shown once, when it is made, and stored nowhere.

A key holds 256 random bits, so that one round of SHA-256 is enough: there is nothing to guess.
"""

import hashlib
import hmac
import os
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...artifacts import InputError
from .errors import ApiError

PREFIX = "sk-hebbline-"
MINUTE = 60.0
_FIELDS = ("name", "sha256", "requests_per_minute", "tokens_per_minute", "concurrent_requests")


@dataclass(frozen=True)
class KeyEntry:
    """One line of the file; a limit of 0 is none.

    Attributes:
        name: what logs call the key.
        sha256: of the key, in hexadecimal digits.
        requests_per_minute: that may begin within any minute.
        tokens_per_minute: of prompts and completions together. A request begins while there are any left.
        concurrent_requests: that may be open at a time.
    """

    name: str
    sha256: str
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_requests: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 64 or not self.name.isprintable():
            raise InputError(f"API keys: name must be printable text of at most 64 characters, not {self.name!r}")
        digits = self.sha256
        if not isinstance(digits, str) or len(digits) != 64 or set(digits) - set("0123456789abcdef"):
            raise InputError(f"API keys: sha256 of '{self.name}' must be 64 hexadecimal digits")
        for limit in _FIELDS[2:]:
            value = getattr(self, limit)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"API keys: {limit} of '{self.name}' must be an integer from 0, not {value!r}")


class Key:
    """A known key and what it has used. Used from the gateway's event loop alone."""

    def __init__(self, entry: KeyEntry) -> None:
        self.entry = entry
        self._open = 0
        self._begun: deque[float] = deque()
        self._tokens: deque[tuple[float, int]] = deque()

    @property
    def name(self) -> str:
        """What logs call it."""
        return self.entry.name

    def begin(self, now: float | None = None) -> None:
        """Count a request that begins; raises ApiError (429) where a limit is reached."""
        now = time.monotonic() if now is None else now
        self._forget(now)
        entry = self.entry
        if entry.concurrent_requests and self._open >= entry.concurrent_requests:
            raise _limited(f"{entry.concurrent_requests} requests of this key are open already", 1.0)
        if entry.requests_per_minute and len(self._begun) >= entry.requests_per_minute:
            wait = self._begun[0] + MINUTE - now
            raise _limited(f"{entry.requests_per_minute} requests of this key began within a minute", wait)
        if entry.tokens_per_minute and sum(count for _, count in self._tokens) >= entry.tokens_per_minute:
            wait = self._tokens[0][0] + MINUTE - now
            raise _limited(f"this key has used {entry.tokens_per_minute} tokens within a minute", wait)
        self._open += 1
        self._begun.append(now)

    def end(self, tokens: int, now: float | None = None) -> None:
        """Count the end of a request that began, and the tokens that it took."""
        self._open -= 1
        if tokens:
            self._tokens.append((time.monotonic() if now is None else now, tokens))

    def _forget(self, now: float) -> None:
        while self._begun and now - self._begun[0] >= MINUTE:
            self._begun.popleft()
        while self._tokens and now - self._tokens[0][0] >= MINUTE:
            self._tokens.popleft()


@dataclass
class KeyFile:
    """The keys of a file, read again when it changes. A change that cannot be read keeps the keys as they were.

    Raises:
        InputError: the file is missing or malformed.
    """

    path: Path
    _keys: list[Key] = field(default_factory=list, init=False)
    _stamp: tuple[int, int] = field(default=(0, 0), init=False)

    def __post_init__(self) -> None:
        self._load()

    def find(self, presented: str) -> Key | None:
        """The key of this text; None where there is none. It takes the same time for every text of a length."""
        if self._now() != self._stamp:
            self._reload()
        digest = _digest(presented)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.entry.sha256, digest):
                found = key
        return found

    def _load(self) -> None:
        stamp = self._now()
        known = {key.name: key for key in self._keys}
        keys = []
        for entry in read_entries(self.path):
            key = known.get(entry.name, Key(entry))
            key.entry = entry
            keys.append(key)
        self._keys, self._stamp = keys, stamp

    def _reload(self) -> None:
        try:
            self._load()
        except InputError:
            self._stamp = self._now()  # until the file changes again

    def _now(self) -> tuple[int, int]:
        try:
            status = self.path.stat()
        except OSError:
            return (-1, -1)
        return (status.st_mtime_ns, status.st_ino)


def read_entries(path: Path) -> list[KeyEntry]:
    """The entries of a file: a YAML list of mappings; raises InputError where it is malformed."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: the file of API keys cannot be read: {error}") from error
    entries = [_entry(path, item) for item in _listed(path, content)]
    for values in ([entry.name for entry in entries], [entry.sha256 for entry in entries]):
        if len(set(values)) < len(values):
            raise InputError(f"{path}: two keys have the same name or are the same")
    return entries


def add_key(path: Path, name: str, **limits: int) -> str:
    """Make a key, write its hash into the file, and return it: it cannot be had again.

    Raises:
        InputError: the file is malformed, or has a key of this name.
    """
    entries = read_entries(path) if path.is_file() else []
    if name in [entry.name for entry in entries]:
        raise InputError(f"{path} has a key named '{name}' already")
    key = PREFIX + secrets.token_urlsafe(32)
    _write(path, [*entries, KeyEntry(name, _digest(key), **limits)])
    return key


def remove_key(path: Path, name: str) -> None:
    """Take a key out of the file; running gateways refuse it from then on. InputError where there is none."""
    entries = read_entries(path)
    left = [entry for entry in entries if entry.name != name]
    if len(left) == len(entries):
        raise InputError(f"{path} has no key named '{name}'")
    _write(path, left)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


def _listed(path: Path, content: Any) -> list[Any]:
    if content is None:
        return []
    if not isinstance(content, list):
        raise InputError(f"{path}: API keys are a list of mappings with {', '.join(_FIELDS)}")
    return content


def _entry(path: Path, item: Any) -> KeyEntry:
    if not isinstance(item, dict) or not {"name", "sha256"} <= item.keys() <= set(_FIELDS):
        raise InputError(f"{path}: a key has name, sha256, and may have {', '.join(_FIELDS[2:])}")
    return KeyEntry(**item)


def _write(path: Path, entries: list[KeyEntry]) -> None:
    """Replace the file as a whole; only its owner may read it."""
    content = [{name: getattr(entry, name) for name in _FIELDS if getattr(entry, name)} for entry in entries]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        yaml.safe_dump(content, file, sort_keys=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _limited(message: str, wait: float) -> ApiError:
    seconds = max(1, round(wait + 0.5))
    return ApiError(
        429,
        f"{message}: try again in {seconds} s",
        "rate_limit_error",
        "rate_limit_exceeded",
        headers={"Retry-After": str(seconds)},
    )
