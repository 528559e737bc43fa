"""Checkpoints of other tools: what is read as it is, what is expanded, and what is refused."""

from .configuration import PACK, check_hub_name, config_file, plain_config, quiet, read_config
from .files import WeightFiles
from .loading import LoadedModel, from_pretrained, load_model
from .refusals import check_checkpoint, check_configuration, check_finite, check_weights_fit

__all__ = [
    "PACK",
    "LoadedModel",
    "WeightFiles",
    "check_checkpoint",
    "check_configuration",
    "check_finite",
    "check_hub_name",
    "check_weights_fit",
    "config_file",
    "from_pretrained",
    "load_model",
    "plain_config",
    "quiet",
    "read_config",
]
