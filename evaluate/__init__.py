"""Evaluation: the same code over a torch model, an exported artifact, and a served model."""

from .perplexity import Perplexity, perplexity, token_windows
from .targets import Target, open_target

__all__ = ["Perplexity", "Target", "open_target", "perplexity", "token_windows"]
