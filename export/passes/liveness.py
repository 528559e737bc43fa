"""Which neurons of one decoder layer have an effect, and the links of those that have none.

Legend: N out_features, K in_features, F neurons of the MLP, E hidden size, G key/value heads, R query heads that read
one of them, D head size, P = D / 2 pairs of places that RoPE turns together: (d, d + P).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from .edit import heads_of
from .report import Masks

Flags = NDArray[np.bool_]

_PARTS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


@dataclass
class LayerLinks:
    """The masks of one decoder layer, and which of the rows carry a bias that is not 0.

    Shapes: gate, up [F, E]; down [E, F]; q [G, R, 2, P, E]; k [G, 2, P, E]; v [G, D, E]; o [E, G, R, D].
    `*_carried` is of a row each: [F], [G, R, 2, P], [G, 2, P], [G, D].
    """

    gate: Flags
    up: Flags
    down: Flags
    q: Flags
    k: Flags
    v: Flags
    o: Flags
    neurons_carried: Flags
    q_carried: Flags
    k_carried: Flags
    v_carried: Flags

    def settle(self) -> None:
        """Clear the links of dead neurons until no more are found. Each step can only clear."""
        links = -1
        while links != (links := self._count()):
            self._clear_neurons()
            self._clear_values()
            self._clear_queries_and_keys()

    def masks(self) -> dict[str, Flags]:
        """The masks [N, K] by the name of the projection in the layer."""
        hidden = self.gate.shape[1]
        flat = {
            "q": self.q.reshape(-1, hidden),
            "k": self.k.reshape(-1, hidden),
            "v": self.v.reshape(-1, hidden),
            "o": self.o.reshape(hidden, -1),
            "gate": self.gate,
            "up": self.up,
            "down": self.down,
        }
        return {_PARTS[part]: mask_NK for part, mask_NK in flat.items()}

    def live_neurons(self) -> Flags:
        """Neurons [F] of the MLP that have any link or carry a bias."""
        return self.gate.any(axis=1) | self.up.any(axis=1) | self.down.any(axis=0) | self.neurons_carried

    def neurons_without(self) -> tuple[Flags, Flags]:
        """Neurons [F] without a link out, and those without a link in gate or in up."""
        return ~self.down.any(axis=0), ~(self.gate.any(axis=1) & self.up.any(axis=1))

    def live_query_heads(self) -> Flags:
        """Query heads [G, R] that have any link or carry a bias."""
        rows = self.q.any(axis=(2, 3, 4)) | self.q_carried.any(axis=(2, 3))
        return rows | self.o.any(axis=(0, 3))

    def live_groups(self) -> Flags:
        """Key/value heads [G] that have any link, carry a bias, or are read by a live query head."""
        keys = self.k.any(axis=(1, 2, 3)) | self.k_carried.any(axis=(1, 2))
        values = self.v.any(axis=(1, 2)) | self.v_carried.any(axis=1)
        return keys | values | self.live_query_heads().any(axis=1)

    def dead_values(self) -> int:
        """Places of value heads without a link and without a bias."""
        return int(np.count_nonzero(~(self.v.any(axis=2) | self.v_carried | self.o.any(axis=(0, 2)))))

    def dead_pairs(self) -> int:
        """Pairs of places of key heads without a link and without a bias."""
        return int(np.count_nonzero(~(self.k.any(axis=3) | self.k_carried).any(axis=1)))

    def _count(self) -> int:
        return sum(int(np.count_nonzero(mask_NK)) for mask_NK in self.masks().values())

    def _clear_neurons(self) -> None:
        without_out_F, without_in_F = self.neurons_without()
        dead_F = (without_out_F | without_in_F) & ~self.neurons_carried
        self.gate[dead_F] = False
        self.up[dead_F] = False
        self.down[:, dead_F] = False

    def _clear_values(self) -> None:
        dead_GD = ~(self.v.any(axis=2) & self.o.any(axis=(0, 2))) & ~self.v_carried
        self.v[dead_GD] = False
        self.o &= ~dead_GD[:, None]

    def _clear_queries_and_keys(self) -> None:
        # Rows that carry a bias keep their links, whatever becomes of what they feed.
        unread_GR = ~self.o.any(axis=(0, 3))
        self.q &= (self.q_carried | ~unread_GR[:, :, None, None])[..., None]
        keys_GP = (self.k.any(axis=3) | self.k_carried).any(axis=1)
        self.q &= (self.q_carried | keys_GP[:, None, None])[..., None]
        queries_GP = (self.q.any(axis=4) | self.q_carried).any(axis=(1, 2))
        self.k &= (self.k_carried | queries_GP[:, None])[..., None]


def read_layer(model: LlamaForCausalLM, masks: Masks, layer: str) -> LayerLinks:
    """The links of a decoder layer; copies, so that clearing leaves `masks` as they are."""
    heads = heads_of(model)
    groups, readers, size = heads.groups, heads.readers, heads.size
    mask = {part: masks[f"{layer}.{name}"].copy() for part, name in _PARTS.items()}
    carried = {part: _carried(model, f"{layer}.{name}") for part, name in _PARTS.items()}
    hidden, half = model.config.hidden_size, size // 2
    return LayerLinks(
        gate=mask["gate"],
        up=mask["up"],
        down=mask["down"],
        q=mask["q"].reshape(groups, readers, 2, half, hidden),
        k=mask["k"].reshape(groups, 2, half, hidden),
        v=mask["v"].reshape(groups, size, hidden),
        o=mask["o"].reshape(hidden, groups, readers, size),
        neurons_carried=carried["gate"] | carried["up"],
        q_carried=carried["q"].reshape(groups, readers, 2, half),
        k_carried=carried["k"].reshape(groups, 2, half),
        v_carried=carried["v"].reshape(groups, size),
    )


def _carried(model: LlamaForCausalLM, layer: str) -> Flags:
    linear = model.get_submodule(layer)
    bias = linear.bias
    return np.zeros(linear.out_features, bool) if bias is None else (bias.detach() != 0).numpy()  # type: ignore[operator]
