"""Evaluation: the same code over a torch model, an exported artifact, and a served model."""

from ..runtime.choices import ChoiceScore
from ..runtime.perplexity import Perplexity, Window, perplexity, stream_perplexity, stream_windows, token_windows
from .choices import score_choices
from .targets import Target, open_target
from .tasks import Score, recipe_of, score_task

__all__ = [
    "ChoiceScore",
    "Perplexity",
    "Score",
    "Target",
    "Window",
    "open_target",
    "perplexity",
    "recipe_of",
    "score_choices",
    "score_task",
    "stream_perplexity",
    "stream_windows",
    "token_windows",
]
