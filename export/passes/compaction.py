"""compact: neurons that can have no effect leave the model, and with them the links that only they used.

Lossless: what leaves multiplies or adds zeros. A neuron with a bias that is not 0 is never touched.

What is dead, sought until nothing more is found:
- A neuron of an MLP without a link in gate, in up (or in the one input), or out in down: activation(0) up,
  activation(gate) 0, or read by nothing. Every activation is 0 at 0.
- A place of a value head without a link in v, or out to o from any query head that reads it.
- A query head that o reads nothing of; all its queries.
- A pair of places that RoPE turns together, in a key head without a link in k, or in all of its query heads: it adds 0
  to every score. (A head without any queries is not dead: it attends to all alike.) Where queries and keys are normed,
  every place counts in the norm, and only whole heads are.

What then shrinks: the MLPs, to the largest that a layer needs (`config.json` has one `intermediate_size`) or each to
its own; key/value heads, and the query heads of each, by as many as are dead in every layer. Other dead places keep
their rows and columns, without links.

Legend: N out_features, K in_features, F neurons of an MLP, G key/value heads, R query heads that read one, D head size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ...architectures import Decoder, Part
from .edit import Heads, ModelEdit, Use, heads_of, mlp_parts, parameters_of, rows_of
from .liveness import LayerLinks, read_layer, settled_masks
from .report import LayerChange, Masks, Passed, PassReport, shape_of

WIDTH_STEP = 8
"""MLPs shrink to a multiple of this, which keeps rows aligned for every runtime."""

_RESIDUAL_NOTE = "the residual stream keeps its size: RMSNorm divides by it"
_HEAD_SIZE_NOTE = (
    "heads keep their size: config.json has one head_dim for queries, keys and values of all layers, and the rotary "
    "frequencies follow from it; dead places in heads that stay lose their links only"
)

_Layers = Mapping[str, LayerLinks]


def compact(model: PreTrainedModel, masks: Masks, *, for_graph: bool = False, decoder: Decoder | None = None) -> Passed:
    """Remove what has no effect.

    Args:
        model, masks: the model, of finite weights, and the mask of each sparse layer. Both are left as they are.
        for_graph: shrink each MLP to its own need, and query heads to numbers that do not divide the hidden size. A
        graph can have such layers, `config.json` cannot say so: the result cannot be saved as a Hugging Face directory.
        Its configuration names the largest MLP.
        decoder: what the model is; None: what its configuration says.

    Raises:
        InputError: a projection has no mask, or masks and weights do not fit together. UnsupportedModelError: the
            model is of no family that is known.
    """
    edit = ModelEdit(model, masks, decoder)
    decoder = edit.decoder
    layers = {layer: read_layer(model, masks, decoder, layer) for layer in decoder.layer_paths()}
    reasons: dict[str, str] = {}
    for layer, links in layers.items():
        neurons = _neurons_reason(links)
        links.settle()
        for name, mask_NK in settled_masks(model, masks, decoder, layer, links).items():
            if not np.array_equal(mask_NK, masks[name]):
                edit.clear(name, mask_NK)
        reasons |= {f"{layer}.{path}": neurons for path in (*decoder.mlp.inputs, decoder.mlp.output)}
        places = _places_reason(links)
        reasons |= {f"{layer}.{path}": places for path in (*decoder.attention.inputs, decoder.attention.output)}
    _shrink_mlps(edit, layers, for_graph)
    heads_note = _shrink_heads(edit, layers, for_graph)
    changes = tuple(_change(name, masks[name], edit.masks[name], _reason(name, reasons)) for name in masks)
    report = PassReport("compact", changes, (_RESIDUAL_NOTE, _HEAD_SIZE_NOTE, heads_note))
    return Passed(edit.model, edit.decoder, edit.masks, report)


def _reason(name: str, reasons: Mapping[str, str]) -> str:
    return reasons.get(name, "left: it is in no decoder layer")


def _neurons_reason(links: LayerLinks) -> str:
    """Why neurons of an MLP are dead, before links are cleared."""
    without_out_F, without_in_F = links.neurons_without()
    dead_F = without_out_F | without_in_F
    biased = int(np.count_nonzero(dead_F & links.neurons_biased))
    kept = f"; {biased} of them stay, as they have a bias" if biased else ""
    inputs = "gate or up" if len(links.inputs) == 2 else "the input"
    return (
        f"{np.count_nonzero(dead_F)} of {len(dead_F)} neurons are dead: {np.count_nonzero(without_out_F)} without a "
        f"link out, {np.count_nonzero(without_in_F & ~without_out_F)} without a link in {inputs}{kept}"
    )


def _places_reason(links: LayerLinks) -> str:
    """What is dead in an attention, after links are cleared."""
    groups_G, heads_GR = links.live_groups(), links.live_query_heads()
    dead, units = links.dead_units()
    kind = "rotary pairs" if units < links.k_biased.size else "places"
    return (
        f"dead: {np.count_nonzero(~groups_G)} of {groups_G.size} key/value heads, {np.count_nonzero(~heads_GR)} of "
        f"{heads_GR.size} query heads, {links.dead_values()} of {links.v_biased.size} value places, "
        f"{dead} of {units} {kind} of keys"
    )


def _change(name: str, before_NK: NDArray[np.bool_], after_NK: NDArray[np.bool_], reason: str) -> LayerChange:
    return LayerChange(
        name=name,
        shape_before=shape_of(before_NK),
        shape_after=shape_of(after_NK),
        links_before=int(np.count_nonzero(before_NK)),
        links_after=int(np.count_nonzero(after_NK)),
        reason=reason,
        neurons_removed=sum(before_NK.shape) - sum(after_NK.shape),
    )


def _shrink_mlps(edit: ModelEdit, layers: _Layers, for_graph: bool) -> None:
    """Every MLP to the width that the widest needs, or for a graph to its own."""
    live = {layer: links.live_neurons() for layer, links in layers.items()}
    widths = {layer: _width(live_F) for layer, live_F in live.items()}
    widest = max(widths.values())
    for layer, live_F in live.items():
        kept_F = _first_live(live_F, widths[layer] if for_graph else widest)
        if len(kept_F) < len(live_F):
            _keep_neurons(edit, layer, kept_F)
        _tell_module(edit, f"{layer}.{edit.decoder.mlp.output}", "intermediate_size", len(kept_F))
    setattr(edit.model.config, edit.decoder.names.width, widest)
    edit.decoder = replace(edit.decoder, mlp=replace(edit.decoder.mlp, width=widest))


def _keep_neurons(edit: ModelEdit, layer: str, kept_F: NDArray[np.int64]) -> None:
    parts = mlp_parts(edit.model, edit.decoder, layer)
    _keep_rows(edit, _kept_rows(edit, parts, [kept_F] * len(parts)))
    edit.select(Use(f"{layer}.{edit.decoder.mlp.output}.weight", 1), kept_F)


def _width(live_F: NDArray[np.bool_]) -> int:
    """The neurons to keep: the live ones, rounded up to a whole step; at least one step."""
    steps = max(1, -(-int(np.count_nonzero(live_F)) // WIDTH_STEP))
    return min(len(live_F), steps * WIDTH_STEP)


def _first_live(live: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """`count` places in ascending order: all live ones, and of the dead ones the first."""
    return np.sort(np.argsort(~live, kind="stable")[:count])


def _shrink_heads(edit: ModelEdit, layers: _Layers, for_graph: bool) -> str:
    """Take away as many heads as every layer can spare; returns what was done, in words."""
    decoder, config, now = edit.decoder, edit.model.config, heads_of(edit.decoder)
    norm = decoder.attention.norm
    if norm is not None and norm.span != "head":
        return "heads keep their number: each has a weight of its own in the norms of queries and keys"
    needed = _needed_heads(layers, now.size)
    names = decoder.names
    named = bool(names.heads and names.kv_heads and names.head_size)
    new = needed if for_graph else _expressible(now, needed, decoder.hidden_size) if named else now
    if new != now:
        for layer, links in layers.items():
            _keep_heads(edit, layer, links, new)
        if named:
            setattr(config, names.kv_heads, new.groups)
            setattr(config, names.heads, new.queries)
        attention = replace(decoder.attention, heads=new.queries, kv_heads=new.groups)
        edit.decoder = replace(edit.decoder, attention=attention)
    reason = "all layers have one number" if for_graph else "all layers have one number, which divides hidden_size"
    if not named and not for_graph:
        reason = f"the configuration of a {decoder.family} has no size of heads apart from hidden_size"
    return (
        f"of {now.groups} key/value heads with {now.readers} query heads each the layers need {needed.groups} with "
        f"{needed.readers}, and {new.groups} with {new.readers} stay: {reason}"
    )


def _needed_heads(layers: _Layers, size: int) -> Heads:
    """The most that a layer needs; at least one of each."""
    groups = max(int(np.count_nonzero(links.live_groups())) for links in layers.values())
    readers = max(int(links.live_query_heads().sum(axis=1).max()) for links in layers.values())
    return Heads(max(1, groups), max(1, readers), size)


def _expressible(now: Heads, needed: Heads, hidden_size: int) -> Heads:
    """The smallest form, between what is needed and what there is, whose query heads divide the hidden size."""
    forms = [
        replace(now, groups=groups, readers=readers)
        for groups in range(needed.groups, now.groups + 1)
        for readers in range(needed.readers, now.readers + 1)
    ]
    fitting = [form for form in forms if hidden_size % form.queries == 0]
    return min([*fitting, now], key=lambda form: (form.queries, form.groups))


def _keep_heads(edit: ModelEdit, layer: str, links: LayerLinks, new: Heads) -> None:
    groups_G = _first_live(links.live_groups(), new.groups)
    heads_GR = links.live_query_heads()
    readers = heads_GR.shape[1]
    heads = np.concatenate([group * readers + _first_live(heads_GR[group], new.readers) for group in groups_G])
    attention = edit.decoder.attention
    places = [_places_of(kept, new.size) for kept in (heads, groups_G, groups_G)]
    _keep_rows(edit, _kept_rows(edit, attention.parts(layer), places))
    output = f"{layer}.{attention.output}"
    edit.select(Use(f"{output}.weight", 1), places[0])
    _tell_module(edit, output, "num_key_value_groups", new.readers)


def _kept_rows(
    edit: ModelEdit, parts: Sequence[Part], kept: Sequence[NDArray[np.int64]]
) -> dict[str, list[NDArray[np.int64]]]:
    """The rows to keep of each linear layer, from the places to keep of each projection in it."""
    found: dict[str, list[NDArray[np.int64]]] = {}
    for part, places in zip(parts, kept, strict=True):
        found.setdefault(part.module, []).append(rows_of(edit.model, part)[places])
    return found


def _keep_rows(edit: ModelEdit, kept: Mapping[str, Sequence[NDArray[np.int64]]]) -> None:
    """In the order in which they stand, so that a layer of several projections keeps their places."""
    for module, rows in kept.items():
        for use in parameters_of(edit.model, module, 0):
            edit.select(use, np.sort(np.concatenate(rows)))


def _tell_module(edit: ModelEdit, output: str, attribute: str, value: int) -> None:
    """Some modules keep a size beside their weights."""
    module: Any = edit.model.get_submodule(output.rpartition(".")[0])
    if hasattr(module, attribute):
        setattr(module, attribute, value)


def _places_of(heads: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return (heads[:, None] * size + np.arange(size)).reshape(-1)
