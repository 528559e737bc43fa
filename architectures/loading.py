"""What is done to a model once transformers has loaded it, before anything reads it."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .decoder import Decoder
from .registry import decoder_of
from .rotary import pin_frequencies
from .stored_transposed import use_linear_layers


def settle(model: nn.Module, found: Mapping[str, Iterable[Any]], decoder: Decoder) -> dict[str, Iterable[Any]]:
    """Put linear layers in the place of those that are stored transposed, give the rotary embedding one set of
    frequencies, and let lm_head share the embedding where the checkpoint has no weight of its own.

    The last is read from the weights, whatever the configuration says: a checkpoint without lm_head has no other.

    Args:
        model: in evaluation or training. found: what `from_pretrained` gives with `output_loading_info`. decoder: what
        the model is.

    Returns:
        `found` without a missing lm_head.
    """
    use_linear_layers(model)
    pin_frequencies(model, decoder)
    return tie_missing_head(model, found, decoder)


def tie_missing_head(
    model: nn.Module, found: Mapping[str, Iterable[Any]], decoder: Decoder
) -> dict[str, Iterable[Any]]:
    """Let lm_head share the embedding where nothing but its weight is missing; arguments and result as `settle`."""
    head, missing = f"{decoder.head}.weight", set(found.get("missing_keys", ()))
    if missing == {head}:
        module: Any = model.get_submodule(decoder.head)
        module.weight = model.get_parameter(f"{decoder.embedding}.weight")
        config: Any = model.config
        config.tie_word_embeddings = True
        missing = set()
    return {**found, "missing_keys": missing}


def settle_any(model: nn.Module, found: Mapping[str, Iterable[Any]]) -> Mapping[str, Iterable[Any]]:
    """The same for a model of any kind: one that is of no known family stays as it is."""
    decoder = decoder_of(model)
    return found if decoder is None else settle(model, found, decoder)
