"""Reading transformers' configurations: what several families say in the same fields.

Every setting that cannot be expressed is refused here, by the name of the field, before a weight is read: by
`UnsupportedModelError` where another tool makes sense of it, by `InputError` where none can.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig
from transformers.activations import ACT2FN

from ..artifacts import InputError, UnsupportedModelError
from ..artifacts.checkpoints import PACK
from .decoder import Activation, Attention, Decoder, LayerKind, Mlp, Norm, Rotary
from .values import check_factors, check_rotary_type, rotary_entries

ROTARY_TYPES = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
}

logger = logging.getLogger(__name__)


def refuse(config: PretrainedConfig, field: str, what: str) -> UnsupportedModelError:
    """The error that says which field asks for what there is not, and what takes the model instead."""
    return UnsupportedModelError(f"{field} {getattr(config, field, None)!r} of a {config.model_type}: {what}; {PACK}")


def head_size(config: PretrainedConfig) -> int:
    """Size of a head: `head_dim`, or the hidden size over the heads."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def attention(config: PretrainedConfig, **parts: Any) -> Attention:
    """Attention of the sizes that the usual fields give, and of `parts` that differ from Llama's."""
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    sizes = {"heads": config.num_attention_heads, "kv_heads": kv_heads, "head_size": head_size(config)}
    return Attention(**(sizes | parts))


def mlp(config: PretrainedConfig, field: str = "hidden_act", **parts: Any) -> Mlp:
    """An MLP with the width `intermediate_size`, where `parts` have no other, and the activation that `field` names."""
    width = parts.pop("width", None) or config.intermediate_size
    return Mlp(**({"width": width, "activation": activation(config, field)} | parts))


def activation(config: PretrainedConfig, field: str = "hidden_act") -> Activation:
    """The activation that a field names."""
    name = getattr(config, field)
    if name not in ACT2FN:
        raise InputError(f"{field} '{name}' is no activation that transformers has, such as 'silu'")
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"{field} '{name}' is not supported; export takes {', '.join(_ACTIVATIONS)}. {PACK}"
        )
    return _ACTIVATIONS[name]


def rms_norm(config: PretrainedConfig, offset: float = 0.0) -> Norm:
    """A root-mean-square norm with `rms_norm_eps`."""
    return Norm("rms", config.rms_norm_eps, offset)


def layer_norm(config: PretrainedConfig, field: str = "layer_norm_eps") -> Norm:
    """A layer norm with the epsilon that a field gives."""
    return Norm("layer", getattr(config, field))


def rotary(config: PretrainedConfig, module: str = "model.rotary_emb") -> Rotary:
    """Rotary embedding of the type, and of the share of a head, that `rope_parameters` say."""
    entries = rotary_entries(config)
    for entry in entries.values():
        kind = entry.get("rope_type", "default")
        check_rotary_type(kind)
        if kind not in ROTARY_TYPES:
            raise UnsupportedModelError(
                f"rope_type '{kind}' is not supported; export takes {', '.join(ROTARY_TYPES)}. {PACK}"
            )
        if kind == "longrope":
            pairs = int(head_size(config) * entry.get("partial_rotary_factor", 1.0)) // 2
            for name in ("short_factor", "long_factor"):
                check_factors(name, entry[name], pairs)
    share = entries[""].get("partial_rotary_factor", 1.0) if "" in entries else 1.0
    original = max(entry.get("original_max_position_embeddings") or 0 for entry in entries.values())
    return Rotary(module, int(head_size(config) * share), "" not in entries, original)


def window(config: PretrainedConfig, field: str = "sliding_window") -> int:
    """The sliding window that a field gives; 0 for none. One that the context does not fill says so, and is none."""
    size = getattr(config, field, None)
    if size is None:
        return 0
    if size < 1:
        raise InputError(f"{field} is {size}; a window is at least one token, and null is none")
    if size >= config.max_position_embeddings:
        logger.warning(
            "%s %d is no smaller than the context of %d tokens: every token sees all before it",
            field,
            size,
            config.max_position_embeddings,
        )
        return 0
    return int(size)


def layers_alike(config: PretrainedConfig, kind: LayerKind) -> tuple[LayerKind, ...]:
    """The same kind for every layer."""
    return (kind,) * config.num_hidden_layers


def windowed_layers(
    config: PretrainedConfig, scale: float | None = None, tables: Mapping[str, str] | None = None
) -> tuple[LayerKind, ...]:
    """The kinds that `layer_types` name: a sliding window, or the whole context.

    Args:
        config: of a family whose layers differ. scale: of the scores. tables: the rotary table by the layer's type;
        None: all share one.
    """
    types: Sequence[str] = config.layer_types
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UnsupportedModelError(
            f"layer_types names '{unknown[0]}'; export takes full_attention and sliding_attention. {PACK}"
        )
    size = window(config) if "sliding_attention" in types else 0
    return tuple(
        LayerKind(
            window=size if kind == "sliding_attention" else 0,
            rotary=tables[kind] if tables else "rotary",
            scale=scale,
        )
        for kind in types
    )


def decoder(config: PretrainedConfig, family: str, **parts: Any) -> Decoder:
    """A decoder like Llama with the sizes that the usual fields give, and of `parts` that differ."""
    usual = {
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
    }
    makers = {
        "layers": lambda: layers_alike(config, LayerKind()),
        "attention": lambda: attention(config),
        "mlp": lambda: mlp(config),
        "norm": lambda: rms_norm(config),
        "rotary": lambda: rotary(config),
    }
    made = {name: make() for name, make in makers.items() if name not in parts}
    return Decoder(family=family, **(usual | made | parts))
