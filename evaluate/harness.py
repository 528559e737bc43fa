"""lm-evaluation-harness on a target: its tasks, prompts and metrics over our scores.

https://github.com/EleutherAI/lm-evaluation-harness; the package is `lm_eval`. This module needs it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows

from ..artifacts import InputError
from .targets import Target

_MOST_TOKENS = 256
"""Generated where a task does not say how many."""


class HarnessModel(TemplateLM):
    """A target as the harness sees it. Texts are generated greedily."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target
        self._context: list[int] = []
        self._following: list[int] = []
        self._generated: Iterator[int] = iter(())

    @property
    def eot_token_id(self) -> int:
        """What ends a text, and stands before one that has no context."""
        return self._target.eos_token_id or 0

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids, with what the tokenizer puts before a text unless it is told not to."""
        del kwargs
        return list(self._target.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False).ids)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        del kwargs
        return [self._log_likelihood(context, continuation) for _, context, continuation in requests]

    def _log_likelihood(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        ids = [*context, *continuation][-(self._target.context_length + 1) :]
        log_probs = self._target.scorer(ids)[-len(continuation) :]
        return float(log_probs.sum()), self._is_greedy(ids[: -len(continuation)], continuation)

    def _is_greedy(self, context: list[int], continuation: Sequence[int]) -> bool:
        """Whether greedy generation gives the continuation. The choices of one question share what it gives."""
        if context != self._context or not self._following:
            self._context, self._following = context, []
            self._generated = self._target.generate(context)
        for place, token in enumerate(continuation):
            if place == len(self._following):
                found = next(self._generated, None)
                if found is None:
                    return False
                self._following.append(found)
            if self._following[place] != token:
                return False
        return True

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, in windows as long as the context that do not overlap."""
        del disable_tqdm
        return [sum(self._window_scores(request.args[0])) for request in requests]

    def _window_scores(self, text: str) -> Iterator[float]:
        ids = self.tok_encode(text, add_special_tokens=False)
        windows = get_rolling_token_windows(ids, self.prefix_token_id, self._target.context_length, context_len=1)
        for given, predicted in windows:
            scored = [*given[: len(given) - len(predicted) + 1], *predicted]
            yield float(self._target.scorer(scored)[-len(predicted) :].sum())

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The texts that follow, each cut before the first of its stop strings."""
        del disable_tqdm
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        if options.get("do_sample") or options.get("temperature"):
            raise InputError(
                "--harness: a task that draws tokens at random is not run here; texts are generated greedily"
            )
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        most = int(options.get("max_gen_toks", _MOST_TOKENS))
        ids = self.tok_encode(context)[-(self._target.context_length - most) :]
        found: list[int] = []
        text = ""
        for token in self._target.generate(ids):
            if token == self._target.eos_token_id:
                break
            found.append(token)
            text = self._target.tokenizer.decode(found)
            if len(found) == most or any(stop in text for stop in stops):
                break
        return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def run_harness(target: Target, tasks: Sequence[str], limit: int | None) -> dict[str, dict[str, Any]]:
    """The harness's results by task, and by metric.

    Args:
        target: what is evaluated.
        tasks: names that the harness knows, or files of tasks in its own YAML.
        limit: of each task, so many examples; None for all.

    Raises:
        InputError: a task is not known, or its data cannot be loaded.
    """
    manager = TaskManager()
    wanted = [_task(name, manager) for name in tasks]
    try:
        found = simple_evaluate(
            HarnessModel(target), tasks=wanted, limit=limit, task_manager=manager, log_samples=False
        )
    except (OSError, ConnectionError) as error:
        raise InputError(f"--harness: the data of {', '.join(tasks)} cannot be loaded: {error}") from error
    return {name: _metrics(metrics) for name, metrics in found["results"].items()}


def _task(name: str, manager: TaskManager) -> str | dict[str, Any]:
    if Path(name).suffix in (".yaml", ".yml"):
        try:
            return dict(yaml.safe_load(Path(name).read_text()))
        except (OSError, yaml.YAMLError, TypeError, ValueError) as error:
            raise InputError(f"--harness: {name} is no task: {error}") from error
    if name not in manager.all_tasks:
        raise InputError(f"--harness: '{name}' is no task of the lm-evaluation-harness; `lm_eval ls tasks` lists them")
    return name


def _metrics(found: dict[str, Any]) -> dict[str, Any]:
    """What is a number, without the filter that the harness writes behind a metric's name."""
    return {name.removesuffix(",none"): value for name, value in found.items() if isinstance(value, int | float)}
