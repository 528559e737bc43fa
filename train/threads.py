"""Which threads work during a topology update: the native library's, while torch's sleep.

Torch's threads would be woken for small steps, and each keeps a core busy for milliseconds after one, which the scores
of links and the draws need.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_outside: ContextVar[int | None] = ContextVar("threads outside", default=None)


def native_threads() -> int:
    """As many as torch has, or had where it was left one."""
    return _outside.get() or torch.get_num_threads()


@contextmanager
def one_thread() -> Iterator[None]:
    """Leave torch one thread while the block lasts."""
    token = _outside.set(native_threads())
    try:
        with _torch_threads(1):
            yield
    finally:
        _outside.reset(token)


@contextmanager
def all_threads() -> Iterator[None]:
    """Give them back to torch, for products that are its own, within `one_thread`."""
    with _torch_threads(native_threads()):
        yield


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
