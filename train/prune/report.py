"""`report.json` and `report.html` of a pruning: what became of each layer, and what it cost on text.

Legend: N out_features, K in_features.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from ..report import STYLE, image
from .config import PruneConfig
from .result import LayerResult, Pruned

REPORT_FILES = ("report.json", "report.html")
_COLUMNS: dict[str, Callable[[LayerResult], str]] = {
    "shape": lambda layer: f"{layer.out_features}x{layer.in_features}",
    "links": lambda layer: f"{layer.links:,}",
    "density": lambda layer: f"{layer.density:.4f}",
    "error": lambda layer: f"{layer.error:.4f}",
    "outliers": lambda layer: f"{layer.outliers:.4f}",
    "dead inputs": lambda layer: str(layer.dead_inputs or ""),
    "damping": lambda layer: f"{layer.damping:g}",
}


@dataclass(frozen=True)
class TextCost:
    """Perplexity of a text before and after, on `tokens` predicted tokens of documents that were not calibrated on."""

    source: str
    before: float
    after: float
    tokens: int

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before

    def __str__(self) -> str:
        return f"{self.source}: {self.before:.2f} dense, {self.after:.2f} pruned ({self.ratio:.3f} times)"


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
        """The content of `REPORT_FILES`."""
        return {"report.json": json.dumps(self.to_dict(), indent=2) + "\n", "report.html": self._html()}

    def _html(self) -> str:
        config = self.config
        facts = {
            "model": self.source,
            "method": f"{config.method}, {config.structure}, values {config.values}, allocation {config.allocation}",
            "density": f"{self.pruned.density:.4f} of {len(self.pruned.layers)} layers",
            "weights of the blocks' linear layers left dense": f"{self.dense:,}",
            "calibration": f"{self.sequences} sequences of {self.sequence_length} tokens of {self.calibration}",
            **{f"perplexity of {cost.source} ({cost.tokens:,} tokens)": str(cost) for cost in self.costs},
        }
        rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts.items())
        return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>hebbline prune report</title><style>{STYLE}</style></head><body>
<h1>Prune report</h1>
<table>{rows}</table>
{"".join(f"<p>{escape(note)}</p>" for note in self.notes)}
<h2>Blocks</h2>
<p>The error of a block is |pruned - dense|² over |dense|² of its outputs, mean over tokens; all blocks before it are
pruned too. That of a layer is the share of its output's power that pruning took, before reconstruction.</p>
{image(_plot(self.pruned), "error, density and outliers by decoder block")}
{_table(["block", "error", "seconds"], [[b.name, f"{b.error:.4f}", f"{b.seconds:.0f}"] for b in self.pruned.blocks])}
<h2>Layers</h2>
{_table(["layer", *_COLUMNS], _layer_rows(self.pruned))}
</body></html>
"""


def _layer_rows(pruned: Pruned) -> list[list[str]]:
    return [[layer.name, *(show(layer) for show in _COLUMNS.values())] for layer in pruned.layers]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{cells}</table>"


def _plot(pruned: Pruned) -> Any:
    """Three diagrams over the decoder blocks, with a line for each kind of layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    axes[0].plot([block.error for block in pruned.blocks], color="black", label="block")
    lines: dict[str, list[tuple[int, LayerResult]]] = {}
    for index, block in enumerate(pruned.blocks):
        for layer in block.layers:
            lines.setdefault(layer.name.removeprefix(f"{block.name}."), []).append((index, layer))
    for kind, points in lines.items():
        places = [index for index, _ in points]
        axes[0].plot(places, [layer.error for _, layer in points], label=kind)
        axes[1].plot(places, [layer.density for _, layer in points], label=kind)
        axes[2].plot(places, [layer.outliers for _, layer in points], label=kind)
    for diagram, title in zip(axes, ("error", "density", "outliers"), strict=True):
        diagram.set_ylabel(title)
    axes[0].legend(fontsize=7, ncols=4)
    axes[2].set_xlabel("decoder block")
    return figure
