"""`docs/results.md`: the section and the plot of a study, from its ledger."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..benchmarks.page import write_section
from .ledger import Ledger
from .runner import count_made, count_runs
from .statistics import Cell, Difference, difference, finished_cells, judge
from .study import Claim, Outcome, Study

Cells = Mapping[tuple[str, float], Cell]
"""By name of the arm and density."""
PAGE = "results.md"
TITLE = (
    "# Results\n\nMethods compared on equal terms: each gets the same search of learning rates, judged on a split that "
    "is not reported, and is then trained with several seeds.\n"
)
_COLORS = {"dense": "#555555", "static": "#999999", "CHT": "#1f5fa8"}
_OTHER_COLOR = "#d1702a"


def write_study(docs: Path, study: Study, outcomes: Mapping[str, Outcome], command: str) -> Path:
    """Write a study's section into the page, and its plot beside. Returns the page."""
    cells = finished_cells(study, outcomes)
    plot = f"results-{study.name}.png"
    docs.mkdir(parents=True, exist_ok=True)
    if cells:
        plot_study(study, cells, docs / plot)
    text = section(study, outcomes, command, plot, _twin_cells(docs, study))
    return write_section(docs / PAGE, TITLE, f"results {study.name}", text)


def _twin_cells(docs: Path, study: Study) -> Cells:
    """What is known of the study's twin."""
    if study.twin is None:
        return {}
    twin = study.twin.study
    return finished_cells(twin, Ledger(docs / "results" / f"{twin.name}.jsonl", twin).outcomes())


def section(study: Study, outcomes: Mapping[str, Outcome], command: str, plot: str, beside: Cells | None = None) -> str:
    """The Markdown of a study; `beside` are the cells of its twin."""
    cells = finished_cells(study, outcomes)
    made, all_runs = count_made(study, outcomes), count_runs(study)
    rates = ", ".join(f"{rate:g}" for rate in study.rates)
    seeds = ", ".join(map(str, study.seeds))
    parts = [
        f"## {study.title}\n",
        f"{study.note}\n",
        f"Budget: {study.budget}. Search: learning rates {rates}, seed 0. Reported: seeds {seeds}, another split.\n",
        f"```\n{command}\n```\n",
    ]
    if made < all_runs:
        parts.append(f"{made} of {all_runs} runs are made; the same command makes the rest.\n")
    if cells:
        parts += [_table(study, cells, beside or {}), _legend(study), f"![{study.title}]({plot})\n"]
    parts += [_claim(study, claim, judge(study, claim, cells)) for claim in study.claims]
    return "\n".join(parts)


def _legend(study: Study) -> str:
    twin = "" if study.twin is None else f", and from the same method in *{study.twin.study.title}*"
    return (
        f"Mean and standard deviation over seeds; the difference from {study.control}{twin}, with its 95% interval. "
        "*Rate*: chosen by the search, with * at an end of it. *Cost*: processor seconds of a run over the dense "
        "one's. *ITOP*: share of all possible links that ever was. *Survival*: of the links that an update grew, those "
        "that the next one kept.\n"
    )


def _table(study: Study, cells: Cells, beside: Cells) -> str:
    extra = [name for name in ("active",) if any(name in cell.outcomes[0].facts for cell in cells.values())]
    twin = [] if study.twin is None else [study.twin.label]
    names = ["density", "method", study.metric, f"less {study.control}", *twin, "rate", "cost", "ITOP", "survival"]
    names += extra
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    dense = cells.get(("dense", 1.0))
    for (name, density), cell in cells.items():
        control = cells.get((study.control, density if density < 1 else study.densities[0]))
        same = [_less(cell, beside.get((name, density))) for _ in twin]
        row = [f"{cell.density:g}", cell.arm.name, f"**{cell.mean:.2f}** ± {cell.spread:.2f}", _less(cell, control)]
        row += [*same, *_facts(study, cell, dense), *(f"{_mean(cell, name):.0%}" for name in extra)]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _less(cell: Cell, other: Cell | None) -> str:
    """The difference of two cells; empty where there is no other."""
    return "" if other is None or other is cell else _signed(difference(cell, other))


def _facts(study: Study, cell: Cell, dense: Cell | None) -> list[str]:
    """Of a cell: the rate, cost, ITOP and survival."""
    edge = "*" if cell.chosen.rate in (study.rates[0], study.rates[-1]) else ""
    variant = f", {cell.chosen.variant}" if cell.chosen.variant else ""
    survived = [outcome.survived for outcome in cell.outcomes if outcome.survived is not None]
    return [
        f"{cell.chosen.rate:g}{edge}{variant}",
        "" if dense is None else f"{_seconds(cell) / _seconds(dense):.2f}",
        f"{sum(outcome.itop for outcome in cell.outcomes) / len(cell.outcomes):.0%}",
        f"{sum(survived) / len(survived):.0%}" if survived else "",
    ]


def _signed(found: Difference) -> str:
    return f"{found.value:+.2f} ± {found.half_width:.2f}"


def _mean(cell: Cell, fact: str) -> float:
    return sum(outcome.facts.get(fact, math.nan) for outcome in cell.outcomes) / len(cell.outcomes)


def _seconds(cell: Cell) -> float:
    return sum(outcome.seconds for outcome in cell.outcomes) / len(cell.outcomes)


def _claim(study: Study, claim: Claim, found: Mapping[str, Difference] | None) -> str:
    """A claim, and what the runs say of it; against several others, the weakest of the verdicts."""
    if found is None:
        return f"- *Claim: {claim.text}.* Not yet known: runs are missing.\n"
    verdicts = [one.verdict for one in found.values()]
    verdict = next(kind for kind in ("contradicted", "undecided", "supported") if kind in verdicts)
    details = "; ".join(f"{_signed(one)} over {name}" for name, one in found.items())
    granted = f", {claim.margin:.0%} granted" if claim.margin else ""
    return f"- *Claim: {claim.text}.* **{verdict.capitalize()}** (better by{granted}: {details}; {study.metric}).\n"


def plot_study(study: Study, cells: Cells, path: Path) -> None:
    """A panel for each density: the seeds of each arm as dots, their mean as a line, dense across all panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dense = cells.get(("dense", 1.0))
    panels = [[c for c in cells.values() if c.density == density] for density in study.densities]
    panels = [panel for panel in panels if panel]
    rows = max(map(len, panels), default=1)
    figure, axes = pyplot.subplots(
        1, max(1, len(panels)), figsize=(4.6 * max(1, len(panels)), max(2.8, 1.2 + 0.32 * rows)), squeeze=False
    )
    for axis, panel in zip(axes[0], panels, strict=False):
        _plot_panel(axis, panel)
        if dense is not None:
            axis.axvline(dense.mean, color=_COLORS["dense"], linestyle="--", linewidth=1, label="dense")
            axis.legend(fontsize=8)
        axis.set(xlabel=study.metric, title=f"density {panel[0].density:g}")
    figure.suptitle(study.title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _plot_panel(axis: object, panel: Sequence[Cell]) -> None:
    for place, cell in enumerate(reversed(panel)):
        color = next((shade for name, shade in _COLORS.items() if cell.arm.name.startswith(name)), _OTHER_COLOR)
        axis.plot(cell.scores, [place] * len(cell.scores), "o", color=color, alpha=0.6, markersize=5)  # type: ignore[attr-defined]
        axis.plot([cell.mean], [place], "|", color=color, markersize=16)  # type: ignore[attr-defined]
    axis.set_yticks(range(len(panel)), [cell.arm.name for cell in reversed(panel)])  # type: ignore[attr-defined]
    axis.grid(alpha=0.3, axis="x")  # type: ignore[attr-defined]
