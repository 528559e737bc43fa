"""The section on a frontier: a table, a picture, and the sentence that the rows support."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.questions import load_questions
from ..runtime.choices import standard_error
from .frontier import DENSE, FrontierCase
from .frontier_rows import FrontierRow
from .machine import Machine
from .page import write_section
from .performance import provenance

PAGE = "frontier.md"
_TITLE = "# Quality against speed\n\nMeasured by the command above each table.\n"
_DENSE_FLOAT32, _DENSE_4_BIT = "dense float32", "dense 4-bit"
_COLORS = {"float32": "#1f5fa8", "bfloat16": "#d1702a", "int8": "#3a8f5a", "int4": "#8a4fa3"}
_DENSE_COLOR = "#555555"
_MARKERS = ("o", "s", "^", "D", "v", "P", "*", "X", "<", ">")


def write_frontier(docs: Path, case: FrontierCase, machine: Machine, command: str, rows: Sequence[FrontierRow]) -> Path:
    """Write the section on a model and its picture, in place of earlier ones. Returns the page."""
    name = f"{case.model.name}; {machine.isa}"
    docs.mkdir(parents=True, exist_ok=True)
    picture = f"frontier-{case.model.name}-{machine.isa}.png"
    plot_frontier(rows, case.measured[0], f"{name}, {case.threads} thread{'s' * (case.threads > 1)}", docs / picture)
    markdown = "\n".join(
        [
            f"## {name}\n",
            provenance(replace(machine, commit=_commits(rows)), command),
            f"Perplexity of held-out documents of {' and of '.join(case.measured)}, in windows of "
            f"{case.texts.sequence_length} tokens, through the graph that was timed; tokens a second, prompts of "
            f"{case.prefill} tokens, decoding after {case.context}.\n",
            _table(rows, case),
            f"![perplexity over speed]({picture})\n",
            *(f"- {line}" for line in conclusions(rows, case.measured, machine.isa)),
        ]
    )
    return write_section(docs / PAGE, _TITLE, f"bench frontier {name}", markdown)


def conclusions(rows: Sequence[FrontierRow], texts: Sequence[str], isa: str) -> list[str]:
    """For each text and measure, at which quality sparse is ahead of dense 4-bit, or that it is not.

    Speeds are compared by their ratios to dense float32 in the same rounds, as rows may be measured on different days.

    Args:
        rows: of one case.
        texts: the names of those whose perplexity decides, each by itself.
        isa: of the kernels.
    """
    dense = _form(rows, _DENSE_FLOAT32)
    peer = _form(rows, _DENSE_4_BIT)
    sparse = [row for row in rows if row.sparse]
    if dense is None or peer is None or not sparse:
        return ["dense float32, dense 4-bit and a sparse form are not all measured yet: nothing can be said"]
    return [_conclusion(measure, sparse, peer, dense, text, isa) for text in texts for measure in peer.rates]


def pareto(rows: Sequence[FrontierRow], measure: str, text: str) -> list[FrontierRow]:
    """The rows to which no other is at once as fast and as good, and one of the two better; fastest first."""
    front: list[FrontierRow] = []
    for row in sorted(rows, key=lambda row: (-row.ratios[measure], row.perplexity[text])):
        if not front or row.perplexity[text] < front[-1].perplexity[text]:
            front.append(row)
    return front


def plot_frontier(rows: Sequence[FrontierRow], text: str, title: str, path: Path) -> None:
    """Perplexity over speed, a panel for each measure, with the Pareto front as a line."""
    from matplotlib.figure import Figure

    measures = list(rows[0].rates)
    figure = Figure(figsize=(4.6 * len(measures), 4.6), layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    models = list(dict.fromkeys(row.model for row in rows))
    for panel, measure in zip(panels, measures, strict=True):
        for row in rows:
            marker = _MARKERS[models.index(row.model) % len(_MARKERS)]
            panel.plot(row.ratios[measure], row.perplexity[text], marker, color=_color(row), markersize=7)
            if not row.sparse:
                place = (row.ratios[measure], row.perplexity[text])
                panel.annotate(row.variant, place, fontsize=7, xytext=(0, 6), textcoords="offset points", ha="center")
        front = pareto(rows, measure, text)
        points = [(row.ratios[measure], row.perplexity[text]) for row in front]
        panel.plot(*zip(*points, strict=True), color="black", linewidth=0.8, drawstyle="steps-post", zorder=0)
        panel.set(xscale="log", yscale="log", xlabel="times as fast as dense float32", title=measure)
        _plain_numbers(panel)
    panels[0].set_ylabel(f"perplexity of {text}")
    figure.suptitle(f"{title}: right and low is better; the line is what nothing else here beats")
    figure.legend(handles=_legend(rows, models), loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=110)


def _plain_numbers(panel: Any) -> None:
    """Logarithmic axes with ticks at 1, 2 and 5 times powers of ten, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.3)


def _conclusion(
    measure: str, sparse: Sequence[FrontierRow], peer: FrontierRow, dense: FrontierRow, text: str, isa: str
) -> str:
    where = f"{measure} on {isa}, by {text}"
    as_good = [row for row in sparse if row.perplexity[text] <= peer.perplexity[text]]
    faster = [row for row in sparse if row.ratios[measure] > peer.ratios[measure]]
    both = [row for row in as_good if row in faster]
    if both:
        best = max(both, key=lambda row: row.ratios[measure])
        times = best.ratios[measure] / peer.ratios[measure]
        return (
            f"{where}: sparse is ahead of dense 4-bit at its quality or better: {_name(best)} is {times:.2f} times as "
            f"fast, at a perplexity of {best.perplexity[text]:.2f} against {peer.perplexity[text]:.2f}."
        )
    if not faster:
        return f"{where}: sparse is not ahead of dense 4-bit at any quality: no sparse form here is faster."
    best = min(faster, key=lambda row: row.perplexity[text])
    times = best.ratios[measure] / peer.ratios[measure]
    cost = best.perplexity[text] / dense.perplexity[text]
    return (
        f"{where}: sparse is not ahead of dense 4-bit at its quality ({peer.perplexity[text]:.2f}, "
        f"{peer.perplexity[text] / dense.perplexity[text]:.2f} times that of dense float32). The best of those that "
        f"are faster is {_name(best)}: {times:.2f} times as fast, at {best.perplexity[text]:.2f} ({cost:.2f} times)."
    )


def _table(rows: Sequence[FrontierRow], case: FrontierCase) -> str:
    texts, measures = case.measured, list(rows[0].rates)
    quality_head = [*(f"perplexity, {text}" for text in texts), *(f"{name}, %" for name in case.zero_shot)]
    head = ["model", "form", *quality_head, *measures, "resident", "file"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    dense = _form(rows, _DENSE_FLOAT32)
    counts = {name: len(load_questions(name, case.questions)) for name in case.zero_shot}
    for row in rows:
        quality = [_quality(row, dense, text) for text in texts]
        quality += [_accuracy(row.accuracy[name], count) for name, count in counts.items()]
        rates = [f"{row.rates[name]:.1f} (**{row.ratios[name]:.2f}**)" for name in measures]
        sizes = [f"{count / 1e6:,.0f} MB" for count in (row.resident_bytes, row.file_bytes)]
        lines.append(f"| {' | '.join([_model(row), row.variant, *quality, *rates, *sizes])} |")
    note = "Quality in brackets: times the perplexity of dense float32. Speed in brackets: times as fast as dense "
    note += "float32 ONNX Runtime in the same rounds."
    if counts:
        asked = ", ".join(f"{count:,} questions of {name}" for name, count in counts.items())
        note += f" Right answers to {asked}, with the standard error."
    return "\n".join(lines) + f"\n\n{note}\n"


def _quality(row: FrontierRow, dense: FrontierRow | None, text: str) -> str:
    found = row.perplexity[text]
    return f"{found:.2f}" if dense is None else f"{found:.2f} (**{found / dense.perplexity[text]:.2f}**)"


def _accuracy(share: float, questions: int) -> str:
    return f"{share:.1%} ± {standard_error(share, questions):.1%}".replace("%", "")


def _form(rows: Sequence[FrontierRow], variant: str) -> FrontierRow | None:
    """The dense model in a form, where it is measured."""
    return next((row for row in rows if row.model == DENSE and row.variant == variant), None)


def _model(row: FrontierRow) -> str:
    return f"{row.model} ({row.density:.0%})" if row.trained else row.model


def _name(row: FrontierRow) -> str:
    return f"`{_model(row)}, {row.variant}`"


def _commits(rows: Sequence[FrontierRow]) -> str:
    """Those that measured the rows."""
    return " and ".join(dict.fromkeys(row.commit for row in rows))


def _color(row: FrontierRow) -> str:
    return _COLORS[row.variant.split()[1]] if row.sparse else _DENSE_COLOR


def _legend(rows: Sequence[FrontierRow], models: Sequence[str]) -> list[Any]:
    """A handle for each type of values, and for each model."""
    from matplotlib.lines import Line2D

    colors = {row.variant if row.sparse else DENSE: _color(row) for row in rows}
    handles = [Line2D([], [], color=color, linewidth=4, label=form) for form, color in colors.items()]
    for place, model in enumerate(models):
        marker = _MARKERS[place % len(_MARKERS)]
        handles.append(Line2D([], [], color="black", marker=marker, linestyle="", label=model))
    return handles
