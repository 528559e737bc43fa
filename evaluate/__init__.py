"""Evaluation: the same code over a torch model, an exported artifact, and a served model."""

from .perplexity import Perplexity, perplexity, token_windows
from .targets import Target, open_target
from .tasks import Score, recipe_of, score_task

__all__ = [
    "Perplexity",
    "Score",
    "Target",
    "open_target",
    "perplexity",
    "recipe_of",
    "score_task",
    "token_windows",
]
