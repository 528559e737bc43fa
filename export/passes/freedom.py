"""Which dimensions of a decoder may be put in another order, everywhere they are indexed, with the same result.

- The neurons of each MLP: rows of gate and up or of the one input, columns of the output.
- The places of each value head: rows of v, and the columns of o for every query head that reads this head. Attention
  weighs whole heads, so places may move within a head and not from one to another.
- The residual stream, in one order for the whole model: embedding, norms, what reads it (columns) and writes it (rows).
  Norms average over all places and scale each, which an order does not touch.

What is not free. The places of queries and keys: RoPE turns the pair (d, d + D / 2) by an angle that belongs to d, from
one table for all heads and layers, so a pair that moves meets another frequency, and a pair that is turned round would
turn the other way. (2:4 loses nothing by it: they are rows of q and k, and 2:4 counts columns.) Whole heads could move
(a key/value head with the query heads that read it), but heads are wider than a group and start at multiples of it, so
that their order changes neither 2:4 nor blocks.
"""

from dataclasses import dataclass

from transformers import PreTrainedModel

from ...architectures import Decoder, describe
from .edit import Use, heads_of, mlp_parts, parameters_of, rows_of

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


def free_dimensions(model: PreTrainedModel, decoder: Decoder | None = None) -> list[Dimension]:
    """All free dimensions, the residual stream first. `decoder`: what the model is; None: as its configuration says."""
    decoder = decoder or describe(model.config)
    found = [_residual(model, decoder)]
    for layer in decoder.layer_paths():
        found.append(_neurons(model, decoder, layer))
        found += _value_heads(model, decoder, layer)
    return found


def _residual(model: PreTrainedModel, decoder: Decoder) -> Dimension:
    uses = [Use(f"{decoder.embedding}.weight", 1), *_norm_uses(model, decoder, decoder.final_norm)]
    if decoder.positions is not None:
        uses.append(Use(f"{decoder.positions.module}.weight", 1))
    norms = [path for norms in (decoder.attention_norms, decoder.mlp_norms) for path in vars(norms).values() if path]
    for layer in decoder.layer_paths():
        for path in dict.fromkeys(norms):
            uses += _norm_uses(model, decoder, f"{layer}.{path}")
        uses += [Use(f"{layer}.{path}.weight", 1) for path in (*decoder.attention.inputs, *decoder.mlp.inputs)]
        for path in (decoder.attention.output, decoder.mlp.output):
            uses += parameters_of(model, f"{layer}.{path}", 0)
    head = f"{decoder.head}.weight"
    if model.get_parameter(head) is not model.get_parameter(f"{decoder.embedding}.weight"):
        uses.append(Use(head, 1))
    return Dimension("residual stream", decoder.hidden_size, tuple(uses))


def _norm_uses(model: PreTrainedModel, decoder: Decoder, norm: str) -> list[Use]:
    """The parameters of a norm; none where it has no weights, or there is none."""
    if not norm or not decoder.norm.affine:
        return []
    return [Use(f"{norm}.{name}", 0) for name, _ in model.get_submodule(norm).named_parameters()]


def _neurons(model: PreTrainedModel, decoder: Decoder, layer: str) -> Dimension:
    output = f"{layer}.{decoder.mlp.output}"
    uses = [
        use
        for part in mlp_parts(model, decoder, layer)
        for use in parameters_of(model, part.module, 0, int(rows_of(model, part)[0]))
    ]
    size = model.get_parameter(f"{output}.weight").shape[1]
    return Dimension(f"{output.rpartition('.')[0]} neurons", size, (*uses, Use(f"{output}.weight", 1)))


def _value_heads(model: PreTrainedModel, decoder: Decoder, layer: str) -> list[Dimension]:
    heads, (_, _, values) = heads_of(decoder), decoder.attention.parts(layer)
    output = f"{layer}.{decoder.attention.output}"
    rows, found = rows_of(model, values), []
    for group in range(heads.groups):
        uses = parameters_of(model, values.module, 0, int(rows[group * heads.size]))
        for reader in range(group * heads.readers, (group + 1) * heads.readers):
            uses.append(Use(f"{output}.weight", 1, reader * heads.size))
        found.append(Dimension(f"{output.rpartition('.')[0]} value head {group}", heads.size, tuple(uses)))
    return found
