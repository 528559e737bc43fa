"""Checkpoints of other tools: what is read as it is, what is expanded, and what is refused."""

from .files import WeightFiles
from .loading import LoadedModel, load_model
from .refusals import check_checkpoint, check_configuration, check_weights_fit

__all__ = [
    "LoadedModel",
    "WeightFiles",
    "check_checkpoint",
    "check_configuration",
    "check_weights_fit",
    "load_model",
]
