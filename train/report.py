"""`training_report.html`: how a run went and what its graphs became, in one file.

Legend: N out_features, K in_features.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from ..artifacts.page import (
    Column,
    Html,
    LayerTable,
    Verdict,
    document,
    figure_image,
    folded,
    gallery,
    layers_by_kind,
    local_density,
    section,
    span,
)
from ..artifacts.page import facts as page_facts
from .topology.measures import Measures, PowerLaw, degrees, measure
from .training import Trained

REPORT_FILE = "training_report.html"
_FEW_POINTS = 20
_CURVES = {
    "loss": ("loss",),
    "density": ("density",),
    "removed fraction": ("sparsity/fraction",),
    "seconds of an update": ("sparsity/seconds",),
    "links that ever were (ITOP rate)": ("sparsity/itop",),
    "regrown links": ("sparsity/overlap", "sparsity/survived"),
    "nodes with a link": ("sparsity/active_outputs", "sparsity/active_inputs"),
}
_LINES = {
    "sparsity/overlap": "just removed",
    "sparsity/survived": "those of the last update that are still there",
    "sparsity/active_outputs": "outputs",
    "sparsity/active_inputs": "inputs",
}
"""What the lines of a panel with several are called."""
_COLUMNS: dict[str, Callable[[Measures], str]] = {
    "density": lambda found: f"{found.density:.4f}",
    "links of the initial graph": lambda found: "" if found.overlap is None else f"{found.overlap:.3f}",
    "active outputs": lambda found: f"{found.active_outputs:.3f}",
    "active inputs": lambda found: f"{found.active_inputs:.3f}",
    "clustering": lambda found: f"{found.clustering:.4f}",
    "path length": lambda found: f"{found.path_length:.3f}",
    "small-worldness": lambda found: f"{found.small_worldness:.2f}",
    "power law of outputs": lambda found: _law(found.output_power_law),
    "power law of inputs": lambda found: _law(found.input_power_law),
}
_QUALITY: dict[str, tuple[str, str]] = {
    "held_out_perplexity": ("perplexity of held-out text", ".2f"),
    "dense_perplexity": ("that of the dense model before", ".2f"),
    "test_accuracy": ("accuracy on images that it was not trained on", ".2%"),
    "bleu": ("BLEU on pairs of sentences that it was not trained on", ".2f"),
}
"""The figures that say how good a model is, in words, and how they are written."""
_FIGURES = {
    "tokens": "tokens that were trained on",
    "held_out_tokens": "tokens that perplexity was measured on",
    "steps": "optimizer steps",
    "test_images": "images that accuracy was measured on",
    "test_pairs": "pairs of sentences that BLEU was measured on",
    "train_pairs": "pairs of sentences that were trained on",
    "bleu_signature": "how BLEU was computed (sacrebleu)",
}
"""The other figures of tasks, in words."""


def measure_graphs(trained: Trained) -> dict[str, dict[str, Measures]]:
    """Measures of every layer's graph, by "initial" and "final" and the layer's name."""
    initial = trained.initial_masks
    return {
        "initial": {name: measure(mask_NK) for name, mask_NK in initial.items()},
        "final": {name: measure(mask_NK, initial[name]) for name, mask_NK in trained.masks.items()},
    }


def graph_records(graphs: Mapping[str, Mapping[str, Measures]]) -> list[dict[str, Any]]:
    """What `training.jsonl` says of graphs: a record of each layer's initial and of its final one."""
    return [
        {"graph": when, "layer": name, **measures}
        for when, found in graphs.items()
        for name, measures in _plain(found).items()
    ]


def training_report(
    name: str, trained: Trained, facts: Mapping[str, Any], graphs: Mapping[str, Mapping[str, Measures]], recipe: str
) -> str:
    """The report as HTML: curves of the log, measures of every graph before and after, degrees of all together.

    Args:
        name: of the model directory.
        trained: with its initial masks.
        facts: the task's figures.
        graphs: what `measure_graphs` found.
        recipe: all of it, as YAML.
    """
    measures = {when: _plain(found) for when, found in graphs.items()}
    data = json.dumps(measures).replace("<", "")
    densities = {layer: local_density(mask_NK.cpu().numpy()) for layer, mask_NK in trained.masks.items()}
    return document(
        f"{name}, trained",
        _verdict(trained, facts),
        section("Settings", page_facts(_settings(trained, facts, recipe)), folded("The whole recipe", recipe)),
        section("Course of the training", _curves(trained.log)),
        gallery(densities),
        section("Degrees of all layers together", _degrees(trained)),
        section("Graphs after training" if trained.updates else "Graphs", _graphs(graphs["final"])),
        section("Graphs before training", _graphs(graphs["initial"]) if trained.updates else Html("")),
        Html(f'<script type="application/json" id="measures">{data}</script>'),
    )


def _verdict(trained: Trained, facts: Mapping[str, Any]) -> Verdict:
    links = sum(int(mask_NK.sum()) for mask_NK in trained.masks.values())
    possible = sum(mask_NK.numel() for mask_NK in trained.masks.values())
    known = [f"{words}: {facts[name]:{form}}" for name, (words, form) in _QUALITY.items() if name in facts]
    if losses := _curve(trained.log, "loss")[1]:
        known.append(f"training loss {losses[-1]:.3f} at the end")
    return Verdict(
        what=_what(trained),
        good="; ".join(known),
        fast=f"training took {trained.seconds:,.1f} s"
        + (f", {facts['tokens'] / trained.seconds:,.0f} tokens a second" if "tokens" in facts else ""),
        big=f"{links:,} links of {possible:,} possible ones ({links / possible:.1%})" if possible else "",
    )


def _what(trained: Trained) -> str:
    if not trained.masks:
        return "a dense model"
    sparse = f"a model with {len(trained.masks)} sparse layers"
    if not trained.updates:
        return f"{sparse}, whose links stayed where they were"
    moved = sum(update.regrown for update in trained.updates)
    return f"{sparse}; {moved:,} links moved in {len(trained.updates)} updates of their graphs"


def _settings(trained: Trained, facts: Mapping[str, Any], recipe: str) -> dict[str, object]:
    """The figures of the task, and what of the recipe tells one run from another."""
    read: Any = yaml.safe_load(recipe) or {}
    sparsity, data = read.get("sparsity") or {}, read.get("data") or {}
    figures = {words: _figure(facts[name]) for name, words in _FIGURES.items() if name in facts}
    return {
        "method": sparsity.get("method"),
        "density that was asked for": sparsity.get("density") if trained.masks else None,
        "data": data.get("name") or data.get("source"),
        **figures,
    }


def _plain(found: Mapping[str, Measures]) -> dict[str, Any]:
    """As JSON, which has no nan."""
    return json.loads(json.dumps({name: asdict(item) for name, item in found.items()}), parse_constant=lambda _: None)


def _law(law: PowerLaw | None) -> str:
    return "" if law is None else f"{law.exponent:.2f} from {law.smallest} (distance {law.distance:.2f})"


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _graphs(found: Mapping[str, Measures]) -> Html:
    shown = LayerTable[tuple[str, Measures]](
        head=[Column(name, True) for name in _COLUMNS],
        row=lambda layer: [show(layer[1]) for show in _COLUMNS.values()],
        line=lambda group: (
            f"density {span((found.density for _, found in group), '.4f')}, small-worldness "
            f"{span((found.small_worldness for _, found in group), '.2f')}"
        ),
        reason=lambda layer: "",
    )
    return layers_by_kind(list(found.items()), lambda layer: layer[0], shown)


def _curve(log: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a quantity of the log."""
    records = [record for record in log if name in record]
    steps = [float(record.get("step", record.get("sparsity/step", 0))) for record in records]
    return steps, [float(record[name]) for record in records]


def _curves(log: Sequence[Mapping[str, Any]]) -> Html:
    """A panel for each quantity that the log has; nothing where it has none."""
    found = {title: [(name, *_curve(log, name)) for name in names] for title, names in _CURVES.items()}
    curves = {title: kept for title, lines in found.items() if (kept := [line for line in lines if line[1]])}
    return figure_image(_plot_curves(curves), "curves of the training log") if curves else Html("")


def _plot_curves(curves: Mapping[str, Sequence[tuple[str, list[float], list[float]]]]) -> Any:
    """The lines of each panel: their names, steps and values. One that has a single point shows it."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = -(-len(curves) // 2)
    figure = Figure(figsize=(11, 2.6 * rows), layout="constrained")
    for place, (title, lines) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows, 2, place)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("optimizer step", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for name, steps, values in lines:
            axes.plot(steps, values, marker="." if len(steps) < _FEW_POINTS else "", label=_LINES.get(name, name))
        if len(lines) > 1:
            axes.legend(fontsize=8)
    return figure


def _degrees(trained: Trained) -> Html:
    if not trained.masks:
        return Html("")
    before = trained.initial_masks if trained.updates else {}
    return figure_image(_plot_degrees(before, trained.masks), "degree distributions")


def _plot_degrees(initial: Mapping[str, Tensor], final: Mapping[str, Tensor]) -> Any:
    """Complementary cumulative distributions of all layers together, on logarithmic axes, before and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    for side, title in enumerate(("output nodes", "input nodes")):
        axes = figure.add_subplot(1, 2, side + 1)
        axes.set_title(f"degrees of {title}", fontsize=9)
        axes.set_xlabel("degree", fontsize=8)
        axes.set_ylabel("share of nodes with at least this degree", fontsize=8)
        for label, masks in (("before", initial), ("after", final)):
            if masks:
                counts = np.sort(np.concatenate([degrees(mask_NK.cpu())[side].numpy() for mask_NK in masks.values()]))
                axes.loglog(np.maximum(counts, 0.5), 1 - np.arange(len(counts)) / len(counts), label=label)
        axes.legend(fontsize=8)
    return figure
