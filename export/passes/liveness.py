"""Which neurons of one decoder layer have an effect, and the links of those that have none.

Legend: N out_features, K in_features, F neurons of the MLP, E hidden size, G key/value heads, R query heads that read
one of them, D head size, U units of places that stand or fall together: the pairs (d, d + S / 2) that RoPE turns, of
the first S places, and each of the others alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ...architectures import Decoder, Part
from .edit import heads_of, mlp_parts, rows_of
from .report import Masks

Flags = NDArray[np.bool_]


@dataclass
class LayerLinks:
    """The masks of one decoder layer, and which of the rows have a bias that is not 0.

    Shapes: inputs of the MLP [F, E] each, down [E, F]; q [G, R, D, E]; k [G, D, E]; v [G, D, E]; o [E, G, R, D].
    `*_biased` is of a row each: [F], [G, R, D], [G, D], [G, D]. `units` [U, D] says which places are of a unit.

    Where queries and keys are normed, no place of a head is without effect while another is there: all count in the
    norm. `norm_span` is None, or what a norm is over: "head", or "all" heads.
    """

    inputs: tuple[Flags, ...]
    down: Flags
    q: Flags
    k: Flags
    v: Flags
    o: Flags
    neurons_biased: Flags
    q_biased: Flags
    k_biased: Flags
    v_biased: Flags
    units: Flags
    norm_span: str | None

    def settle(self) -> None:
        """Clear the links of dead neurons until no more are found. Each step can only clear."""
        links = -1
        while links != (links := self._count()):
            self._clear_neurons()
            self._clear_values()
            self._clear_queries_and_keys()

    def attention_masks(self) -> tuple[Flags, Flags, Flags, Flags]:
        """The masks [N, K] of queries, keys, values and output."""
        hidden = self.down.shape[0]
        q, k, v = (flags.reshape(-1, hidden) for flags in (self.q, self.k, self.v))
        return q, k, v, self.o.reshape(hidden, -1)

    def live_neurons(self) -> Flags:
        """Neurons [F] of the MLP that have any link or a bias."""
        ins = np.logical_or.reduce([mask.any(axis=1) for mask in self.inputs])
        return ins | self.down.any(axis=0) | self.neurons_biased

    def neurons_without(self) -> tuple[Flags, Flags]:
        """Neurons [F] without a link out, and those without a link in one of the inputs."""
        return ~self.down.any(axis=0), ~np.logical_and.reduce([mask.any(axis=1) for mask in self.inputs])

    def live_query_heads(self) -> Flags:
        """Query heads [G, R] that have any link or a bias."""
        return self.q.any(axis=(2, 3)) | self.q_biased.any(axis=2) | self.o.any(axis=(0, 3))

    def live_groups(self) -> Flags:
        """Key/value heads [G] that have any link, a bias, or are read by a live query head."""
        keys = self.k.any(axis=(1, 2)) | self.k_biased.any(axis=1)
        values = self.v.any(axis=(1, 2)) | self.v_biased.any(axis=1)
        return keys | values | self.live_query_heads().any(axis=1)

    def dead_values(self) -> int:
        """Places of value heads without a link and without a bias."""
        return int(np.count_nonzero(~(self.v.any(axis=2) | self.v_biased | self.o.any(axis=(0, 2)))))

    def dead_units(self) -> tuple[int, int]:
        """Units of places of key heads without a link and without a bias, of all."""
        live_GU = self._in_units(self.k.any(axis=2) | self.k_biased)
        return int(np.count_nonzero(~live_GU)), live_GU.size

    def _in_units(self, places: Flags) -> Flags:
        """Units [..., U] any of whose places [..., D] is set."""
        return (places[..., None, :] & self.units).any(axis=-1)

    def _of_units(self, units: Flags) -> Flags:
        """The places [..., D] of the units [..., U] that are set."""
        return (units[..., :, None] & self.units).any(axis=-2)

    def _count(self) -> int:
        return sum(int(np.count_nonzero(mask)) for mask in (*self.inputs, self.down, self.q, self.k, self.v, self.o))

    def _clear_neurons(self) -> None:
        without_out_F, without_in_F = self.neurons_without()
        dead_F = (without_out_F | without_in_F) & ~self.neurons_biased
        for mask in self.inputs:
            mask[dead_F] = False
        self.down[:, dead_F] = False

    def _clear_values(self) -> None:
        dead_GD = ~(self.v.any(axis=2) & self.o.any(axis=(0, 2))) & ~self.v_biased
        self.v[dead_GD] = False
        self.o &= ~dead_GD[:, None]

    def _clear_queries_and_keys(self) -> None:
        # Rows with a bias keep their links, whatever becomes of what they feed.
        if self.norm_span == "all":
            return
        unread_GR = ~self.o.any(axis=(0, 3))
        self.q &= (self.q_biased | ~unread_GR[:, :, None])[..., None]
        if self.norm_span is not None:
            self.k &= (self.k_biased | ~unread_GR.all(axis=1)[:, None])[..., None]
            return
        keys_GD = self._of_units(self._in_units(self.k.any(axis=2) | self.k_biased))
        self.q &= (self.q_biased | keys_GD[:, None])[..., None]
        queries_GD = self._of_units(self._in_units((self.q.any(axis=3) | self.q_biased).any(axis=1)))
        self.k &= (self.k_biased | queries_GD)[..., None]


def read_layer(model: PreTrainedModel, masks: Masks, decoder: Decoder, layer: str) -> LayerLinks:
    """The links of a decoder layer; copies, so that clearing leaves `masks` as they are."""
    heads, hidden = heads_of(decoder), decoder.hidden_size
    groups, readers, size = heads.groups, heads.readers, heads.size
    q, k, v = (_Rows(model, masks, part) for part in decoder.attention.parts(layer))
    inputs = [_Rows(model, masks, part) for part in mlp_parts(model, decoder, layer)]
    norm = decoder.attention.norm
    return LayerLinks(
        inputs=tuple(rows.mask for rows in inputs),
        down=masks[f"{layer}.{decoder.mlp.output}"].copy(),
        q=q.mask.reshape(groups, readers, size, hidden),
        k=k.mask.reshape(groups, size, hidden),
        v=v.mask.reshape(groups, size, hidden),
        o=masks[f"{layer}.{decoder.attention.output}"].reshape(hidden, groups, readers, size).copy(),
        neurons_biased=np.logical_or.reduce([rows.biased for rows in inputs]),
        q_biased=q.biased.reshape(groups, readers, size),
        k_biased=k.biased.reshape(groups, size),
        v_biased=v.biased.reshape(groups, size),
        units=_units(decoder),
        norm_span=None if norm is None else "all" if norm.span == "all" else "head",
    )


def settled_masks(model: PreTrainedModel, masks: Masks, decoder: Decoder, layer: str, links: LayerLinks) -> Masks:
    """The masks of a layer's linear layers by name, as `links` has them."""
    *attention, o = links.attention_masks()
    parts = [*decoder.attention.parts(layer), *mlp_parts(model, decoder, layer)]
    found = {part.module: masks[part.module].copy() for part in parts}
    for part, mask in zip(parts, [*attention, *links.inputs], strict=True):
        found[part.module][rows_of(model, part)] = mask
    outputs: Mapping[str, Flags] = {decoder.attention.output: o, decoder.mlp.output: links.down}
    return found | {f"{layer}.{path}": mask for path, mask in outputs.items()}


class _Rows:
    """The mask of a projection, a copy, and which of its rows have a bias."""

    def __init__(self, model: PreTrainedModel, masks: Masks, part: Part) -> None:
        rows = rows_of(model, part)
        self.mask = masks[part.module][rows]
        bias = model.get_submodule(part.module).bias
        self.biased = np.zeros(len(rows), bool) if bias is None else (bias.detach() != 0).numpy()[rows]  # type: ignore[operator]


def _units(decoder: Decoder) -> Flags:
    """[U, D]: the places of each unit. Layers without rotary embedding have the same, which is only more careful."""
    size = decoder.attention.head_size
    turned = decoder.rotary.size if decoder.rotary is not None else 0
    unit_of_D = np.concatenate([np.arange(turned) % max(1, turned // 2), np.arange(turned // 2, size - turned // 2)])
    return unit_of_D == np.arange(size - turned // 2)[:, None]
