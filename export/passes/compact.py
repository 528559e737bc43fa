"""compact: neurons that can have no effect leave the model, and with them the links that only they used.

Lossless: what leaves multiplies or adds zeros. A neuron that carries a bias which is not 0 is never touched.

What is dead, sought until nothing more is found:
- A neuron of an MLP without a link in gate, in up, or out in down: silu(0) up, silu(gate) 0, or read by nothing.
- A place of a value head without a link in v, or out to o from any query head that reads it.
- A query head that o reads nothing of; all its queries.
- A pair of places that RoPE turns together, in a key head without a link in k, or in all of its query heads: it adds 0
  to every score. (A head without any queries is not dead: it attends to all alike.)

What then shrinks: the MLPs, to the largest that a layer needs (`config.json` has one `intermediate_size`) or each to
its own; key/value heads, and the query heads of each, by as many as are dead in every layer. Other dead places keep
their rows and columns, without links.

Legend: N out_features, K in_features, F neurons of an MLP, G key/value heads, R query heads that read one, D head size.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from ...artifacts import UnsupportedModelError
from .edit import Heads, ModelEdit, Use, decoder_layers, heads_of, parameters_of
from .liveness import LayerLinks, read_layer
from .report import LayerChange, Masks, Passed, PassReport, shape_of

WIDTH_STEP = 8
"""MLPs shrink to a multiple of this, which keeps rows aligned for every runtime."""

_RESIDUAL_NOTE = "the residual stream keeps its size: RMSNorm divides by it"
_HEAD_SIZE_NOTE = (
    "heads keep their size: config.json has one head_dim for queries, keys and values of all layers, and the rotary "
    "frequencies follow from it; dead places in heads that stay lose their links only"
)

_Layers = Mapping[str, LayerLinks]


def compact(model: LlamaForCausalLM, masks: Masks, *, for_graph: bool = False) -> Passed:
    """Remove what has no effect.

    Args:
        model, masks: the model, of finite weights, and the mask of each sparse layer. Both are left as they are.
        for_graph: shrink each MLP to its own need, and query heads to numbers that do not divide the hidden size. A
        graph can have such layers, `config.json` cannot say so: the result runs in torch but cannot be saved as a
        Hugging Face directory. Its configuration names the largest MLP.

    Raises:
        InputError: a projection has no mask, or masks and weights do not fit together. UnsupportedModelError: the
            activation of the MLP is not 0 at 0, so that a neuron without links would have an effect.
    """
    _check_activation(model)
    edit = ModelEdit(model, masks)
    layers = {layer: read_layer(model, masks, layer) for layer in decoder_layers(model)}
    reasons = {f"{layer}.mlp": _neurons_reason(links) for layer, links in layers.items()}
    for layer, links in layers.items():
        links.settle()
        for part, mask_NK in links.masks().items():
            if not np.array_equal(mask_NK, masks[f"{layer}.{part}"]):
                edit.clear(f"{layer}.{part}", mask_NK)
        reasons[f"{layer}.self_attn"] = _places_reason(links)
    _shrink_mlps(edit, layers, for_graph)
    heads_note = _shrink_heads(edit, layers, for_graph)
    changes = tuple(_change(name, masks[name], edit.masks[name], _reason(name, reasons)) for name in masks)
    return Passed(edit.model, edit.masks, PassReport("compact", changes, (_RESIDUAL_NOTE, _HEAD_SIZE_NOTE, heads_note)))


def _check_activation(model: LlamaForCausalLM) -> None:
    at_zero = ACT2FN[model.config.hidden_act](torch.zeros(1))
    if at_zero != 0:
        raise UnsupportedModelError(
            f"hidden_act '{model.config.hidden_act}' is {at_zero.item():g} at 0: neurons without links have an effect "
            "and cannot be removed; export without compaction"
        )


def _reason(name: str, reasons: Mapping[str, str]) -> str:
    return reasons.get(name.rpartition(".")[0], "left: it is in no decoder layer")


def _neurons_reason(links: LayerLinks) -> str:
    """Why neurons of an MLP are dead, before links are cleared."""
    without_out_F, without_in_F = links.neurons_without()
    dead_F = without_out_F | without_in_F
    carried = int(np.count_nonzero(dead_F & links.neurons_carried))
    kept = f"; {carried} of them stay, they carry a bias" if carried else ""
    return (
        f"{np.count_nonzero(dead_F)} of {len(dead_F)} neurons are dead: {np.count_nonzero(without_out_F)} without a "
        f"link out, {np.count_nonzero(without_in_F & ~without_out_F)} without a link in gate or up{kept}"
    )


def _places_reason(links: LayerLinks) -> str:
    """What is dead in an attention, after links are cleared."""
    groups_G, heads_GR = links.live_groups(), links.live_query_heads()
    return (
        f"dead: {np.count_nonzero(~groups_G)} of {groups_G.size} key/value heads, {np.count_nonzero(~heads_GR)} of "
        f"{heads_GR.size} query heads, {links.dead_values()} of {links.v_carried.size} value places, "
        f"{links.dead_pairs()} of {links.k_carried.size // 2} rotary pairs of keys"
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
            for use in _neuron_uses(edit.model, layer):
                edit.select(use, kept_F)
        cast(LlamaMLP, edit.model.get_submodule(f"{layer}.mlp")).intermediate_size = len(kept_F)
    edit.model.config.intermediate_size = widest


def _width(live_F: NDArray[np.bool_]) -> int:
    """The neurons to keep: the live ones, rounded up to a whole step; at least one step."""
    steps = max(1, -(-int(np.count_nonzero(live_F)) // WIDTH_STEP))
    return min(len(live_F), steps * WIDTH_STEP)


def _first_live(live: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """`count` places in ascending order: all live ones, and of the dead ones the first."""
    return np.sort(np.argsort(~live, kind="stable")[:count])


def _neuron_uses(model: LlamaForCausalLM, layer: str) -> list[Use]:
    rows = [use for part in ("gate", "up") for use in parameters_of(model, f"{layer}.mlp.{part}_proj", 0)]
    return [*rows, Use(f"{layer}.mlp.down_proj.weight", 1)]


def _shrink_heads(edit: ModelEdit, layers: _Layers, for_graph: bool) -> str:
    """Take away as many heads as every layer can spare; returns what was done, in words."""
    config, now = edit.model.config, heads_of(edit.model)
    needed = _needed_heads(layers, now.size)
    new = needed if for_graph else _expressible(now, needed, config.hidden_size)
    if new != now:
        for layer, links in layers.items():
            _keep_heads(edit, layer, links, new)
        config.num_key_value_heads, config.num_attention_heads = new.groups, new.queries
    reason = "all layers have one number" if for_graph else "all layers have one number, which divides hidden_size"
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
    attention = f"{layer}.self_attn"
    for part, kept in (("q", heads), ("k", groups_G), ("v", groups_G)):
        for use in parameters_of(edit.model, f"{attention}.{part}_proj", 0):
            edit.select(use, _places_of(kept, new.size))
    edit.select(Use(f"{attention}.o_proj.weight", 1), _places_of(heads, new.size))
    cast(LlamaAttention, edit.model.get_submodule(attention)).num_key_value_groups = new.readers


def _places_of(heads: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return (heads[:, None] * size + np.arange(size)).reshape(-1)
