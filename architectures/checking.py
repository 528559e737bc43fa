"""Whether a description fits a model's weights: every parameter that it names, by shape.

Legend: N out_features, K in_features, D head size.
"""

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from ..artifacts import InputError, UnsupportedModelError
from ..artifacts.checkpoints import WeightFiles
from .decoder import Decoder, Norm, QueryKeyNorm

Shape = tuple[int, ...]


def check_fits(decoder: Decoder, model: nn.Module) -> None:
    """Refuse a model that is not as described.

    Raises:
        UnsupportedModelError: a parameter is missing or has another shape; the message names it.
    """
    _check_rotary(decoder, model)
    for name, shape in _expected(decoder, model):
        try:
            found = tuple(model.get_parameter(name).shape)
        except AttributeError:
            raise UnsupportedModelError(
                f"the model has no tensor '{name}', which a {decoder.family} should have: [{_text(shape)}]"
            ) from None
        if found != shape:
            raise UnsupportedModelError(
                f"tensor '{name}' is [{_text(found)}], and of this {decoder.family} it should be [{_text(shape)}]"
            )


def _check_rotary(decoder: Decoder, model: nn.Module) -> None:
    """Some families turn all places of a head, whatever `partial_rotary_factor` says."""
    if decoder.rotary is None:
        return
    for name, values in model.get_submodule(decoder.rotary.module).named_buffers(recurse=False):
        if name.endswith("inv_freq") and 2 * len(values) != decoder.rotary.size:
            raise UnsupportedModelError(
                f"by partial_rotary_factor {decoder.rotary.size} places of each head turn, and by transformers' "
                f"{decoder.family} {2 * len(values)}: leave the field out"
            )


def check_layers(decoder: Decoder, directory: Path) -> None:
    """Refuse a number of layers that the weights of a directory do not have, before a model of so many is built.

    Raises:
        InputError: no tensor is of the last layer, or a file of weights cannot be read.
    """
    count = len(decoder.layers)
    last = f"{decoder.path.rpartition('.')[2]}.{count - 1}."
    if not any(last in name for name in WeightFiles(directory).names):
        raise InputError(
            f"{directory / 'config.json'} says {count} layers, and no tensor of the weights is of '{last}'"
        )


def _expected(decoder: Decoder, model: nn.Module) -> Iterator[tuple[str, Shape]]:
    hidden, vocabulary = decoder.hidden_size, decoder.vocab_size
    yield f"{decoder.embedding}.weight", (vocabulary, hidden)
    yield f"{decoder.head}.weight", (vocabulary, hidden)
    if decoder.positions is not None:
        rows = decoder.context_length + decoder.positions.offset
        yield f"{decoder.positions.module}.weight", (rows, hidden)
    yield from _norm(decoder.norm, decoder.final_norm, hidden)
    for layer in decoder.layer_paths():
        for path in dict.fromkeys(
            path for norms in (decoder.attention_norms, decoder.mlp_norms) for path in vars(norms).values()
        ):
            yield from _norm(decoder.norm, f"{layer}.{path}" if path else "", hidden)
        for name, rows, columns in _linears(decoder, layer):
            yield f"{name}.weight", (rows, columns)
            if _has_bias(model, name):
                yield f"{name}.bias", (rows,)
        if (experts := decoder.mlp.experts) is not None:
            yield f"{layer}.{experts.router}.weight", (experts.count, hidden)
        if decoder.attention.norm is not None:
            yield from _query_key_norm(decoder, decoder.attention.norm, layer)


def _linears(decoder: Decoder, layer: str) -> Iterator[tuple[str, int, int]]:
    """Whole paths, N and K."""
    attention, mlp, hidden = decoder.attention, decoder.mlp, decoder.hidden_size
    queries, keys = attention.heads * attention.head_size, attention.kv_heads * attention.head_size
    counts = (queries, keys, keys) if len(attention.inputs) == 3 else (queries + 2 * keys,)
    yield from ((f"{layer}.{path}", rows, hidden) for path, rows in zip(attention.inputs, counts, strict=True))
    yield f"{layer}.{attention.output}", hidden, queries
    width = 2 * mlp.width if mlp.gated and len(mlp.inputs) == 1 else mlp.width
    for block in mlp.blocks(layer):
        yield from ((f"{block}.{path}", width, hidden) for path in mlp.inputs)
        yield f"{block}.{mlp.output}", hidden, mlp.width


def _norm(norm: Norm, name: str, size: int) -> Iterator[tuple[str, Shape]]:
    if name and norm.affine:
        yield f"{name}.weight", (size,)


def _query_key_norm(decoder: Decoder, norm: QueryKeyNorm, layer: str) -> Iterator[tuple[str, Shape]]:
    attention = decoder.attention
    for path, heads in ((norm.queries, attention.heads), (norm.keys, attention.kv_heads)):
        name = f"{layer}.{path}"
        if norm.span == "each":
            for head in range(heads):
                yield from _norm(norm.norm, f"{name}.norms.{head}", attention.head_size)
        else:
            yield from _norm(norm.norm, name, attention.head_size * (heads if norm.span == "all" else 1))


def _has_bias(model: nn.Module, name: str) -> bool:
    """Of a layer that is missing, none: its weight is named."""
    try:
        return model.get_submodule(name).bias is not None
    except AttributeError:
        return False


def _text(shape: Shape) -> str:
    return ", ".join(str(extent) for extent in shape)
