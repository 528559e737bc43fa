"""Which dimensions of a Llama may be put in another order, everywhere they are indexed, with the same result.

- The neurons of each MLP: rows of gate and up, columns of down.
- The places of each value head: rows of v, and the columns of o for every query head that reads this head. Attention
  weighs whole heads, so places may move within a head and not from one to another.
- The residual stream, in one order for the whole model: embedding, norms, what reads it (columns) and writes it (rows).
  RMSNorm averages over all places and scales each, which an order does not touch.

What is not free. The places of queries and keys: RoPE turns the pair (d, d + D / 2) by an angle that belongs to d, from
one table for all heads and layers, so a pair that moves meets another frequency, and a pair that is turned round would
turn the other way. (2:4 loses nothing by it: they are rows of q and k, and 2:4 counts columns.) Whole heads could move
(a key/value head with the query heads that read it), but heads are wider than a group and start at multiples of it, so
that their order changes neither 2:4 nor blocks.
"""

from dataclasses import dataclass

from transformers import LlamaForCausalLM

from .edit import Use, decoder_layers, heads_of, parameters_of

ROTARY_NOTE = (
    "queries and keys keep their order: rotary embedding ties each pair of places (d, d + D / 2) to its frequency, and "
    "the order of whole heads changes neither 2:4 nor blocks"
)


@dataclass(frozen=True)
class Dimension:
    """`size` places of the model that may be put in any order, and all the axes that they index."""

    name: str
    size: int
    uses: tuple[Use, ...]


def free_dimensions(model: LlamaForCausalLM) -> list[Dimension]:
    """All free dimensions, the residual stream first."""
    found = [_residual(model)]
    for layer in decoder_layers(model):
        found.append(_neurons(model, f"{layer}.mlp"))
        found += _value_heads(model, f"{layer}.self_attn")
    return found


def _residual(model: LlamaForCausalLM) -> Dimension:
    uses = [Use("model.embed_tokens.weight", 1), Use("model.norm.weight", 0)]
    for layer in decoder_layers(model):
        norms = ("input_layernorm", "post_attention_layernorm")
        uses += [Use(f"{layer}.{norm}.weight", 0) for norm in norms]
        for part in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up"):
            uses.append(Use(f"{layer}.{part}_proj.weight", 1))
        for part in ("self_attn.o", "mlp.down"):
            uses += parameters_of(model, f"{layer}.{part}_proj", 0)
    if model.lm_head.weight is not model.get_parameter("model.embed_tokens.weight"):
        uses.append(Use("lm_head.weight", 1))
    return Dimension("residual stream", model.config.hidden_size, tuple(uses))


def _neurons(model: LlamaForCausalLM, mlp: str) -> Dimension:
    uses = [use for part in ("gate", "up") for use in parameters_of(model, f"{mlp}.{part}_proj", 0)]
    size = model.get_parameter(f"{mlp}.down_proj.weight").shape[1]
    return Dimension(f"{mlp} neurons", size, (*uses, Use(f"{mlp}.down_proj.weight", 1)))


def _value_heads(model: LlamaForCausalLM, attention: str) -> list[Dimension]:
    heads = heads_of(model)
    found = []
    for group in range(heads.groups):
        uses = parameters_of(model, f"{attention}.v_proj", 0, group * heads.size)
        for reader in range(group * heads.readers, (group + 1) * heads.readers):
            uses.append(Use(f"{attention}.o_proj.weight", 1, reader * heads.size))
        found.append(Dimension(f"{attention} value head {group}", heads.size, tuple(uses)))
    return found
