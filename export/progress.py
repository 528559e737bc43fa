"""What an export says while it works: the stage in words, and how far it is where it goes through parts one by one."""

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

T = TypeVar("T")


class Stage(str):
    """A stage in words, of which `done` of `total` parts are finished; `total` is 0 where it has none."""

    done: int
    total: int

    def __new__(cls, words: str, done: int = 0, total: int = 0) -> "Stage":
        """The stage `words`."""
        stage = super().__new__(cls, words)
        stage.done, stage.total = done, total
        return stage


def each(parts: Collection[T], words: str, progress: Callable[[str], None]) -> Iterator[T]:
    """The parts one by one; `progress` is told the stage before each of them, and after the last."""
    for done, part in enumerate(parts):
        progress(Stage(words, done, len(parts)))
        yield part
    progress(Stage(words, len(parts), len(parts)))
