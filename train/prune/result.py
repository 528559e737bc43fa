"""What became of each layer and block.

Legend: N out_features, K in_features.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerResult:
    """A pruned layer.

    Args:
        name: in the model.
        out_features: N.
        in_features: K.
        links: weights that stay.
        error: the share of its output's power that pruning took, on the calibration text, before reconstruction.
        outliers: share of its weights whose |w| times the norm of their input is above five times the layer's mean.
        dead_inputs: inputs that were 0 throughout the text.
        damping: share of the mean diagonal that was added to the Gram matrix of its inputs.
    """

    name: str
    out_features: int
    in_features: int
    links: int
    error: float
    outliers: float
    dead_inputs: int
    damping: float

    @property
    def density(self) -> float:
        """Links over possible links."""
        return self.links / (self.out_features * self.in_features)


@dataclass(frozen=True)
class BlockResult:
    """A decoder block: what pruning of it and of all before it changed in its outputs, and how long it took.

    Args:
        name: in the model.
        error: |pruned - dense|^2 over |dense|^2 of its outputs, mean over the tokens of the calibration text.
        seconds: that it took.
        layers: its pruned layers.
    """

    name: str
    error: float
    seconds: float
    layers: tuple[LayerResult, ...]


@dataclass(frozen=True)
class Pruned:
    """The outcome: masks, bool [N, K] by layer name, and what became of each block."""

    masks: dict[str, Tensor]
    blocks: tuple[BlockResult, ...]

    @property
    def layers(self) -> list[LayerResult]:
        """Of all blocks."""
        return [layer for block in self.blocks for layer in block.layers]

    @property
    def density(self) -> float:
        """Links over possible links of all pruned layers together."""
        possible = sum(layer.out_features * layer.in_features for layer in self.layers)
        return sum(layer.links for layer in self.layers) / max(1, possible)
