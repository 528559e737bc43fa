"""`report.json` and `report.html` of a pruning: what became of each layer, and what it cost on text.

Legend: N out_features, K in_features.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...artifacts.page import (
    Column,
    LayerTable,
    Verdict,
    document,
    facts,
    figure_image,
    gallery,
    layers_by_kind,
    local_density,
    report_files,
    section,
    sentence,
    span,
    table,
)
from ...artifacts.text_cost import TextCost
from .config import PruneConfig
from .result import LayerResult, Pruned

_SAME_DENSITY = 0.005
"""Densities that differ by no more are the same but for whole numbers of links."""
_LAYERS = LayerTable[LayerResult](
    head=[
        Column("shape", True),
        Column("links", True),
        Column("density", True),
        Column("error", True),
        Column("outliers", True),
        Column("inputs that are always 0", True),
        Column("damping", True),
    ],
    row=lambda layer: [
        f"{layer.out_features}\u00d7{layer.in_features}",
        f"{layer.links:,}",
        f"{layer.density:.4f}",
        f"{layer.error:.4f}",
        f"{layer.outliers:.4f}",
        f"{layer.dead_inputs:,}" if layer.dead_inputs else None,
        f"{layer.damping:g}",
    ],
    line=lambda group: (
        f"density {span((layer.density for layer in group), '.3f')}, "
        f"error {span((layer.error for layer in group), '.2g')}"
    ),
    reason=lambda layer: "",
)


@dataclass(frozen=True)
class PruneReport:
    """The whole pruning.

    Args:
        source: the dense model.
        calibration: where the calibration text comes from.
        sequences: how many there were of it.
        sequence_length: tokens each.
        config: how it was done.
        pruned: what became of each layer.
        dense: weights of the decoder blocks' linear layers that were left dense.
        costs: perplexities.
    """

    source: str
    calibration: str
    sequences: int
    sequence_length: int
    config: PruneConfig
    pruned: Pruned
    dense: int
    costs: Sequence[TextCost]

    @property
    def notes(self) -> list[str]:
        """What a reader should know of the numbers: damped matrices, dead inputs."""
        layers = self.pruned.layers
        notes = []
        if damped := [layer.name for layer in layers if layer.damping > self.config.damping]:
            notes.append(
                f"the Gram matrix of {len(damped)} layers was singular, and damped by more than "
                f"{self.config.damping:g} of its mean diagonal; the first is {damped[0]}"
            )
        if dead := [layer.name for layer in layers if layer.dead_inputs]:
            notes.append(
                f"{len(dead)} layers have inputs that the calibration text leaves at 0, whose links go first; the "
                f"first is {dead[0]}"
            )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "source": self.source,
            "calibration": {"text": self.calibration, "sequences": self.sequences, "tokens": self.sequence_length},
            "config": asdict(self.config),
            "density": self.pruned.density,
            "weights_left_dense": self.dense,
            "perplexity": [asdict(cost) | {"ratio": cost.ratio} for cost in self.costs],
            "notes": self.notes,
            "seconds": sum(block.seconds for block in self.pruned.blocks),
            "blocks": [asdict(block) for block in self.pruned.blocks],
        }

    def files(self) -> dict[str, str]:
        """`report.json` and `report.html`, by name."""
        return report_files(self.to_dict(), self._html())

    def _html(self) -> str:
        config, pruned = self.config, self.pruned
        return document(
            f"{Path(self.source).name}, pruned",
            Verdict(
                what=f"a model whose {len(pruned.layers)} pruned layers have {pruned.density:.1%} of their weights, "
                f"chosen by {config.method} in one pass over a text",
                good="perplexity on held-out text: " + "; ".join(map(str, self.costs)) if self.costs else "",
                fast="not measured: hebbline export packs the model, and says how fast it is",
                big=f"{sum(layer.links for layer in pruned.layers):,} links"
                + (f"; {self.dense:,} weights of other layers in the blocks stay dense" if self.dense else ""),
            ),
            section("Settings", facts(self._settings()), *map(sentence, self.notes)),
            section(
                "Decoder blocks",
                "The error of a block is 2 |pruned - dense|\u00b2 / (|pruned|\u00b2 + |dense|\u00b2) of its outputs, "
                "mean over tokens; all blocks before it are pruned too. That of a layer is the share of its output's "
                "power that pruning took, before the links were trained. Outliers are weights whose magnitude times "
                "the norm of their input is above five times the layer's mean: the more there are, the more a layer "
                "needs its links.",
                figure_image(_plot(pruned), "error, density and outliers by decoder block"),
                table(
                    ["block", Column("error", True), Column("seconds", True)],
                    [[block.name, f"{block.error:.4f}", f"{block.seconds:.1f}"] for block in pruned.blocks],
                ),
            ),
            gallery({name: local_density(mask_NK.cpu().numpy()) for name, mask_NK in pruned.masks.items()}),
            section("Layers", layers_by_kind(pruned.layers, lambda layer: layer.name, _LAYERS)),
        )

    def _settings(self) -> dict[str, object]:
        config = self.config
        return {
            "method": config.method,
            "structure": config.structure,
            "values": config.values,
            "allocation of links to blocks": config.allocation,
            "calibration": f"{self.sequences} sequences of {self.sequence_length} tokens of {self.calibration}",
            "measured on": ", ".join(f"{cost.tokens:,} tokens of {cost.source}" for cost in self.costs),
            "time": f"{sum(block.seconds for block in self.pruned.blocks):.0f} s",
        }


def _plot(pruned: Pruned) -> Any:
    """Diagrams over the decoder blocks, with a line for each kind of layer; of densities where they differ."""
    from matplotlib.figure import Figure

    shown: dict[str, Callable[[LayerResult], float]] = {"error": lambda layer: layer.error}
    densities = [layer.density for layer in pruned.layers]
    if max(densities) - min(densities) > _SAME_DENSITY:
        shown["density"] = lambda layer: layer.density
    shown["outliers"] = lambda layer: layer.outliers
    lines: dict[str, list[tuple[int, LayerResult]]] = {}
    for index, block in enumerate(pruned.blocks):
        for layer in block.layers:
            lines.setdefault(layer.name.removeprefix(f"{block.name}."), []).append((index, layer))
    figure = Figure(figsize=(11, 2.5 * len(shown)), layout="constrained")
    diagrams = figure.subplots(len(shown), 1, sharex=True)
    diagrams[0].plot([block.error for block in pruned.blocks], color="black", marker=".", label="block")
    for diagram, (title, value) in zip(diagrams, shown.items(), strict=True):
        diagram.set_ylabel(title)
        for kind, points in lines.items():
            diagram.plot([index for index, _ in points], [value(one) for _, one in points], marker=".", label=kind)
    diagrams[0].legend(fontsize=7, ncols=4)
    diagrams[-1].set_xlabel("decoder block")
    diagrams[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure
