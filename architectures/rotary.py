"""The rotary tables of a model, and which of its frequencies they hold.

Legend: C context length, D2 pairs of places that turn.

Two types change their frequencies with the length of a text. "dynamic" leaves them alone up to the model's context,
which no text here exceeds. "longrope" (arXiv 2402.13753) has short ones for texts up to the original context and long
ones beyond; keys in a cache cannot be turned again when a text grows over that border. So a model whose context is
longer than the original one has the long frequencies for every text, as vLLM has, and one that is not has the short
ones. `pin_frequencies` puts that into the model itself, which everything is held against.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PretrainedConfig

from .decoder import Decoder

Tables = tuple[NDArray[np.float32], NDArray[np.float32]]


def rotary_tables(model: nn.Module, decoder: Decoder, context_length: int) -> dict[str, Tables]:
    """Cosines and sines [C, D2] by the name of the table, computed by the model's own module."""
    if decoder.rotary is None:
        return {}
    return {name: _table(model, decoder, name, context_length) for name in decoder.rotary_tables}


def _table(model: nn.Module, decoder: Decoder, name: str, context_length: int) -> Tables:
    assert decoder.rotary is not None
    module: Any = model.get_submodule(decoder.rotary.module)
    positions = torch.arange(context_length)[None]
    arguments = (name,) if decoder.rotary.by_layer_type else ()
    with torch.no_grad():
        cos_1CD, sin_1CD = module(torch.zeros(1), positions, *arguments)
    half = decoder.rotary.size // 2
    return cos_1CD[0, :, :half].contiguous().numpy(), sin_1CD[0, :, :half].contiguous().numpy()


def uses_long_frequencies(config: PretrainedConfig) -> bool:
    """Whether a model has the long frequencies of LongRoPE for every text."""
    parameters = _long_parameters(config)
    return parameters is not None and config.max_position_embeddings > parameters["original_max_position_embeddings"]


def pin_frequencies(model: nn.Module, decoder: Decoder) -> None:
    """Let a model of type "longrope" have one set of frequencies for texts of every length; others are left alone."""
    config: Any = model.config
    if decoder.rotary is None or _long_parameters(config) is None:
        return
    module: Any = model.get_submodule(decoder.rotary.module)
    if uses_long_frequencies(config):
        # transformers computes the long ones when it first meets a longer text: after that they stand in both places.
        original = _long_parameters(config)["original_max_position_embeddings"]  # type: ignore[index]
        with torch.no_grad():
            module(torch.zeros(1), torch.full((1, 1), original))
        module.original_inv_freq = module.long_inv_freq
    else:
        module.long_inv_freq = module.original_inv_freq


def _long_parameters(config: PretrainedConfig) -> Mapping[str, Any] | None:
    parameters = getattr(config, "rope_parameters", None) or {}
    return parameters if parameters.get("rope_type") == "longrope" else None
