"""`training_report.html`: how a run went and what its graphs became, in one file.

Legend: N out_features, K in_features.
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from torch import Tensor

from .engine import Trained
from .topology.measures import Measures, PowerLaw, degrees, measure

REPORT_FILE = "training_report.html"
_CURVES = {
    "loss": ("loss",),
    "density": ("density",),
    "removed fraction": ("sparsity/fraction",),
    "seconds of an update": ("sparsity/seconds",),
    "links that ever were (ITOP rate)": ("sparsity/itop",),
    "regrown links: just removed, and of the last update still there": ("sparsity/overlap", "sparsity/survived"),
    "nodes with a link": ("sparsity/active_outputs", "sparsity/active_inputs"),
}
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
STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
    "th,td{padding:.2em .6em;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


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


def training_report(trained: Trained, facts: Mapping[str, Any], graphs: Mapping[str, Mapping[str, Measures]]) -> str:
    """The report as HTML: curves of the log, measures of every graph before and after, degrees of some.

    Args:
        trained: with its initial masks.
        facts: the task's figures.
        graphs: what `measure_graphs` found.
    """
    figures = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(_figure(value))}</td></tr>" for name, value in facts.items()
    )
    measures = {when: _plain(found) for when, found in graphs.items()}
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>hebbline training report</title><style>{STYLE}</style></head><body>
<h1>Training report</h1>
<table>{figures}</table>
<h2>Course</h2>
{image(_plot_curves(trained.log), "curves of the training log")}
<h2>Graphs after training</h2>
{_table(graphs["final"])}
<h2>Graphs before training</h2>
{_table(graphs["initial"])}
<h2>Degrees</h2>
{image(_plot_degrees(trained.initial_masks, trained.masks), "degree distributions")}
<script type="application/json" id="measures">{json.dumps(measures).replace("<", "")}</script>
</body></html>
"""


def _plain(found: Mapping[str, Measures]) -> dict[str, Any]:
    """As JSON, which has no nan."""
    return json.loads(json.dumps({name: asdict(item) for name, item in found.items()}), parse_constant=lambda _: None)


def _law(law: PowerLaw | None) -> str:
    return "" if law is None else f"{law.exponent:.2f} from {law.smallest} (distance {law.distance:.2f})"


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(found: Mapping[str, Measures]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("layer", *_COLUMNS))
    rows = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{show(item)}</td>' for show in _COLUMNS.values())}</tr>"
        for name, item in found.items()
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def _curve(log: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a quantity of the log."""
    records = [record for record in log if name in record]
    steps = [float(record.get("step", record.get("sparsity/step", 0))) for record in records]
    return steps, [float(record[name]) for record in records]


def _plot_curves(log: Sequence[Mapping[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    rows = -(-len(_CURVES) // 2)
    figure = Figure(figsize=(11, 2.6 * rows), layout="constrained")
    for place, (title, names) in enumerate(_CURVES.items(), start=1):
        axes = figure.add_subplot(rows, 2, place)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("optimizer step", fontsize=8)
        for name in names:
            axes.plot(*_curve(log, name), label=name.removeprefix("sparsity/"))
        if len(names) > 1:
            axes.legend(fontsize=8)
    return figure


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


def image(figure: Any, description: str) -> str:
    """An HTML image of a matplotlib figure."""
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return f'<img alt="{description}" src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}">'
