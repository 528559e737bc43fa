"""Channels of a graph's values: which belong together, which are needed, and which are known constants.

A channel is one place on the axis of a value along which a linear layer or convolution writes its outputs. Other
operators pass channels on: an activation's channel is its input's, a Concat's are those of all its inputs. Channels
that belong together can only be removed together, and only where nobody needs any of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

_WORTH = 0.125
"""Share of a layer's output channels that it must lose, for its smaller form to be worth it."""

_ALIGNED = 4
"""ONNX Runtime's faster convolutions take channels in such numbers only, and fill up the rest with zeros themselves."""

Places = NDArray[np.int64]
"""Numbers of channels, counted over the whole graph."""


@dataclass(frozen=True, eq=False)
class Channels:
    """Those of the value `name`, on its `axis`, which is counted from the end: -1 is the last.

    `places` are their numbers in the whole graph. Where `known`, a channel has the one number of `constants` wherever
    it stands, whatever the inputs of the graph are.
    """

    name: str
    axis: int
    places: Places
    known: NDArray[np.bool_]
    constants: NDArray

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.places)

    @property
    def zero(self) -> NDArray[np.bool_]:
        """Those that are known to be 0."""
        return self.known & (self.constants == 0)


@dataclass(frozen=True, eq=False)
class Cut:
    """A constant input of a node that holds one number, or one slice, for each of some channels along its `axis`."""

    node: NodeProto
    place: int
    axis: int
    places: Places


@dataclass(frozen=True, eq=False)
class Fold:
    """What removed input channels with a known constant add to a layer's output: `terms` [N, K] times that constant.

    `bias_place` is the node's input for a bias, None where the operator has none; `outputs` are the N channels.
    """

    node: NodeProto
    bias_place: int | None
    terms: NDArray
    channels: Channels
    outputs: Places


@dataclass
class ChannelGraph:
    """What was found of a graph: its values' channels, what ties them, and what to change where some are removed.

    `splits` are nodes with the sizes of their outputs to write; `grouped` those whose attribute `group` counts
    channels; `made` the values that a weight makes.
    """

    values: dict[str, Channels] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    splits: list[tuple[NodeProto, list[Channels]]] = field(default_factory=list)
    grouped: list[tuple[NodeProto, Channels]] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    _ties: list[tuple[Places, Places]] = field(default_factory=list)
    _needed: list[Places] = field(default_factory=list)
    _count: int = 0

    def add(
        self, name: str, axis: int, known: NDArray[np.bool_], constants: NDArray, places: Places | None = None
    ) -> Channels:
        """Note a value with channels of its own, or with those at `places`."""
        if places is None:
            places = np.arange(self._count, self._count + len(known), dtype=np.int64)
            self._count += len(known)
        finite = np.isfinite(constants.astype(np.float64))
        self.values[name] = Channels(name, axis, places, known & finite, np.where(known & finite, constants, 0))
        return self.values[name]

    def tie(self, first: Places, second: Places) -> None:
        """The channels of both stay or go together, pair by pair."""
        self._ties.append((first, second))

    def need(self, channels: Channels | None, mask: NDArray[np.bool_] | None = None) -> None:
        """Some channels, or all, must stay."""
        if channels is not None:
            self._needed.append(channels.places if mask is None else channels.places[mask])

    def removable(self) -> NDArray[np.bool_]:
        """For every channel of the graph whether it goes: nobody needs it, nor any that is tied to it.

        Each value keeps one channel at least, since many operators take no empty tensor. A layer that would lose a few
        only keeps them: sparse kernels pass over empty rows, and equal weights stay equal, which are stored once.
        """
        labels = self._labels()
        needed = np.zeros(self._count, bool)
        for places in self._needed:
            needed[labels[places]] = True
        gone = ~needed[labels]
        for channels in self.values.values():
            while channels.size and gone[channels.places].all():
                gone &= labels != labels[channels.places[0]]
        made, before = [self.values[name] for name in self.made], -1
        while before != (before := int(gone.sum())):
            for channels in made:
                gone &= ~np.isin(labels, self._kept_all_the_same(channels, gone, labels))
        return gone

    def _kept_all_the_same(self, channels: Channels, gone: NDArray[np.bool_], labels: Places) -> Places:
        """Labels of a layer's channels that stay though nobody needs them."""
        lost = labels[channels.places[gone[channels.places]]]
        if len(lost) < _WORTH * channels.size:
            return lost
        return lost[: -(channels.size - len(lost)) % _ALIGNED] if channels.axis < -1 else lost[:0]

    def _labels(self) -> Places:
        """The same number for all channels that are tied, in one step or many: that of the first of them."""
        labels = np.arange(self._count, dtype=np.int64)
        changed, ties = True, self._ties
        while changed:
            before, ties = labels.copy(), ties[::-1]  # both ways, so that long chains need few rounds
            for first, second in ties:
                low = np.minimum(labels[first], labels[second])
                np.minimum.at(labels, first, low)
                np.minimum.at(labels, second, low)
            changed = not np.array_equal(before, labels)
        return labels


def kept_names(names: Iterable[str], most: int = 6) -> str:
    """Some names in words, the others by their number."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
