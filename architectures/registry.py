"""Which families there are, and which of them a configuration is of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from ..artifacts import InputError, UnsupportedModelError
from ..artifacts.checkpoints import PACK
from . import (
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    granite,
    llama,
    mistral,
    mixtral,
    olmo,
    olmo2,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
    stablelm,
    starcoder2,
)
from .decoder import Decoder
from .values import check_rotary_numbers

Describe = Callable[[PretrainedConfig], Decoder]


@dataclass(frozen=True)
class Family:
    """A family of models: the class of transformers that is one, and what describes it."""

    architecture: str
    describe: Describe


FAMILIES: Mapping[str, Family] = {
    "falcon": Family("FalconForCausalLM", falcon.describe),
    "gemma": Family("GemmaForCausalLM", gemma.describe),
    "gemma2": Family("Gemma2ForCausalLM", gemma2.describe),
    "gemma3_text": Family("Gemma3ForCausalLM", gemma3.describe),
    "gpt2": Family("GPT2LMHeadModel", gpt2.describe),
    "gpt_neox": Family("GPTNeoXForCausalLM", gpt_neox.describe),
    "granite": Family("GraniteForCausalLM", granite.describe),
    "llama": Family("LlamaForCausalLM", llama.describe),
    "mistral": Family("MistralForCausalLM", mistral.describe),
    "mixtral": Family("MixtralForCausalLM", mixtral.describe),
    "olmo": Family("OlmoForCausalLM", olmo.describe),
    "olmo2": Family("Olmo2ForCausalLM", olmo2.describe),
    "opt": Family("OPTForCausalLM", opt.describe),
    "phi": Family("PhiForCausalLM", phi.describe),
    "phi3": Family("Phi3ForCausalLM", phi3.describe),
    "qwen2": Family("Qwen2ForCausalLM", qwen2.describe),
    "qwen3": Family("Qwen3ForCausalLM", qwen3.describe),
    "qwen3_moe": Family("Qwen3MoeForCausalLM", qwen3_moe.describe),
    "smollm3": Family("SmolLM3ForCausalLM", smollm3.describe),
    "stablelm": Family("StableLmForCausalLM", stablelm.describe),
    "starcoder2": Family("Starcoder2ForCausalLM", starcoder2.describe),
}
"""By transformers' `model_type`. A new family is a file beside these, and a line here."""


def describe(config: PretrainedConfig, families: Mapping[str, Family] = FAMILIES) -> Decoder:
    """What a model is, from its transformers configuration.

    Args:
        config: of a causal language model. families: those that are known.

    Raises:
        UnsupportedModelError: the family is none of these, or the configuration asks for what there is not; the message
            names it, and what takes the model instead.
        InputError: a field has a value that makes no sense; the message names it.
    """
    check_rotary_numbers(config)
    family = families.get(config.model_type)
    architectures = config.architectures or [family.architecture if family else config.model_type]
    if family is None or architectures != [family.architecture]:
        named = ", ".join(map(str, architectures)) if isinstance(architectures, list) else architectures
        raise UnsupportedModelError(
            f"architecture {named} is of none of the families that are taken ({', '.join(sorted(families))}); {PACK}"
        )
    return family.describe(config)


def describe_at(where: str, config: PretrainedConfig) -> Decoder:
    """`describe`, whose errors begin with the file or field that the configuration comes from."""
    try:
        return describe(config)
    except InputError as error:
        raise type(error)(f"{where}: {error}") from error


def describe_known(where: str, config: PretrainedConfig) -> Decoder | None:
    """What a model is, where it is of a known family; None for all others.

    Raises:
        InputError: a field has a value that makes no sense, in whatever family; the message begins with `where`.
    """
    try:
        return describe_at(where, config)
    except UnsupportedModelError:
        return None


def decoder_of(model: nn.Module) -> Decoder | None:
    """What a model of any kind is, where it is a causal language model of a known family; None for all others."""
    config: Any = getattr(model, "config", None)
    family = FAMILIES.get(getattr(config, "model_type", ""))
    # FSDP2 gives a model a class of its own.
    if family is None or all(kind.__name__ != family.architecture for kind in type(model).__mro__):
        return None
    return describe_known(str(getattr(config, "name_or_path", "")), config)
