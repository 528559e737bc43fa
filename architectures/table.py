"""The table of the documentation that says what every family is, in words made from the descriptions themselves."""

from collections.abc import Callable, Sequence

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from ..artifacts import InputError
from .decoder import Activation, Decoder
from .registry import FAMILIES
from .stored_transposed import use_linear_layers

BEGIN, END = "<!-- families -->\n", "<!-- end of families -->\n"
_ACTIVATIONS: dict[Activation, str] = {
    "silu": "SiLU",
    "gelu": "GELU",
    "gelu_tanh": "GELU (tanh)",
    "relu": "ReLU",
}
_SPANS = {"head": "each head", "each": "each head, by its own weight", "all": "all heads together"}
_TYPICAL = {
    "granite": {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 1 / 128,
        "logits_scaling": 8.0,
    }
}
"""What published models of a family have, where transformers' defaults are Llama's."""


def table() -> str:
    """The table, in Markdown."""
    head = [*_COLUMNS, "biases", "class"]
    rows = sorted(_row(model_type) for model_type in FAMILIES)
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [head, ["---"] * len(head), *rows])


def with_table(page: str) -> str:
    """A page of Markdown with the table as it is now, between the lines that mark its place.

    Raises:
        InputError: the page does not mark one.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise InputError(f"the page has no lines '{BEGIN.strip()}' and '{END.strip()}'")
    return before + begin + table() + end + after


def _row(model_type: str) -> list[str]:
    config = AutoConfig.for_model(model_type, **_TYPICAL.get(model_type, {}))
    decoder = FAMILIES[model_type].describe(config)
    cells = [tell(decoder) for tell in _COLUMNS.values()]
    return [*cells, _biases(config, decoder), f"`{FAMILIES[model_type].architecture}`"]


def _biases(config: PretrainedConfig, decoder: Decoder) -> str:
    """Which linear layers have one, from the modules themselves."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    use_linear_layers(model)
    prefix = f"{decoder.layer(0)}."
    paths = [path.removeprefix(prefix) for path in decoder.projections() if path.startswith(prefix)]
    biased = [path for path in paths if model.get_submodule(f"{prefix}{path}").bias is not None]
    if len(biased) == len(paths):
        return "all"
    return "queries, keys, values" if biased == list(decoder.attention.inputs) else _listed(biased)


def _positions(decoder: Decoder) -> str:
    if decoder.positions is not None:
        return "learned"
    assert decoder.rotary is not None
    words = ["rotary"]
    if decoder.rotary.size < decoder.attention.head_size:
        words.append(f"{decoder.rotary.size / decoder.attention.head_size:.0%} of a head")
    if len(decoder.rotary_tables) > 1:
        words.append(f"{len(decoder.rotary_tables)} tables")
    if any(not kind.rotary for kind in decoder.layers):
        words.append("some layers without")
    return ", ".join(words)


def _attention(decoder: Decoder) -> str:
    attention, words = decoder.attention, []
    if len(attention.inputs) == 1:
        words.append("one layer of queries, keys and values")
    if attention.norm is not None:
        words.append(f"{_SPANS[attention.norm.span]} normed")
    windows = {kind.window for kind in decoder.layers}
    if windows != {0}:
        words.append("window in some layers" if 0 in windows else "window")
    if attention.softcap:
        words.append("soft cap")
    if decoder.scale(0) != attention.head_size**-0.5:
        words.append("scale of its own")
    return _listed(words)


def _mlp(decoder: Decoder) -> str:
    kind = "gated" if decoder.mlp.gated else "plain"
    one = ", one layer of gate and up" if decoder.mlp.gated and len(decoder.mlp.inputs) == 1 else ""
    experts = decoder.mlp.experts
    several = f"; {experts.count} experts, {experts.chosen} a token" if experts is not None else ""
    return f"{kind}, {_ACTIVATIONS[decoder.mlp.activation]}{one}{several}"


def _norms(decoder: Decoder) -> str:
    norms, kind = decoder.attention_norms, {"rms": "RMS", "layer": "layer norm"}[decoder.norm.kind]
    weights = " with 1 + w" if decoder.norm.offset else "" if decoder.norm.affine else " without weights"
    places = [name for name in ("before", "after", "stream") if getattr(norms, name)]
    return f"{kind}{weights}, {' and '.join(places)}"


def _rest(decoder: Decoder) -> str:
    words = []
    if decoder.parallel:
        words.append("parallel blocks, one norm" if decoder.shared_norm else "parallel blocks, two norms")
    if decoder.embedding_scale != 1:
        words.append("scaled embedding")
    if decoder.residual_scale != 1:
        words.append("scaled updates")
    if decoder.logit_divisor != 1:
        words.append("divided logits")
    if decoder.logit_softcap:
        words.append("soft cap of logits")
    return _listed(words)


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "-"


_COLUMNS: dict[str, Callable[[Decoder], str]] = {
    "family": lambda decoder: decoder.family,
    "positions": _positions,
    "attention": _attention,
    "MLP": _mlp,
    "norms": _norms,
    "further": _rest,
}
