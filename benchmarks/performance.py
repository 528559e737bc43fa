"""`docs/performance.md`: one section a benchmark, each written by the command that stands above its tables."""

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from itertools import cycle, product
from pathlib import Path
from statistics import median

from ..kernels.cost import table_name
from .linear import LinearRow
from .machine import Machine
from .model import ModelCase, ModelRow
from .outlook import MANY_CORES, SHARED_BANDWIDTH, Outlook
from .page import write_section
from .peers import PeerRow
from .variants import VARIANTS

PAGE = "performance.md"
_TITLE = (
    "# Performance\n\nWhat was measured, by the command above each table. Ratios compare medians of the same run.\n"
)
_PLOTTED_DENSITIES = 3
_MISSING = "-"
"""Stands where the time was over before a figure was measured."""
_COLORS = {"float32": "#1f5fa8", "bfloat16": "#d1702a", "int8": "#3a8f5a", "int4": "#8a4fa3"}


def write_performance(docs: Path, name: str, markdown: str) -> Path:
    """Put a section into the page, see `page.write_section`. Returns the page."""
    return write_section(docs / PAGE, _TITLE, name, markdown)


def provenance(machine: Machine, command: str) -> str:
    """The lines that say where numbers come from: date, commit, processor, versions, command.

    Where `HEBBLINE_ISA` forced the kernels to an instruction set, it stands before the command.
    """
    forced = os.environ.get("HEBBLINE_ISA")
    if forced:
        command = f"HEBBLINE_ISA={forced} {command}"
    versions = ", ".join(f"{name} {found}" for name, found in machine.versions.items())
    return (
        f"{date.today().isoformat()}, commit {machine.commit or 'unknown'}, {machine.processor}, {machine.cores} cores "
        f"({', '.join(machine.features)}), kernels on {machine.isa}; {versions}.\n\n```\n{command}\n```\n"
    )


def linear_name(rows: Sequence[LinearRow]) -> str:
    """Names the section of these rows, so that no other's figures are lost: by shapes, threads, and instruction set and
    processor as tables of costs tell them apart."""
    threads = [str(count) for count in dict.fromkeys(row.threads for row in rows)]
    plural = "s" if threads != ["1"] else ""
    return f"{', '.join(_shapes(rows))}; {' and '.join(threads)} thread{plural}; {table_name(rows[0].isa)}"


def linear_section(
    machine: Machine, command: str, rows: Sequence[LinearRow], peers: Sequence[PeerRow], plot: str | None
) -> str:
    """The section on single layers: a table for each shape and thread count; `plot`: an image's file name."""
    parts = [
        f"## Linear layers, {linear_name(rows)}\n",
        provenance(machine, command),
        "Speed-up over dense float32 ONNX Runtime, by tokens at a time (M). Dense low precision gains from precision "
        "alone: compare the peers.\n",
    ]
    for out_features, in_features, threads in dict.fromkeys((r.out_features, r.in_features, r.threads) for r in rows):
        parts.append(f"### {out_features}x{in_features}, {_threads(threads)}\n")
        key = {"out_features": out_features, "in_features": in_features, "threads": threads}
        parts.append(_table([r for r in rows if _has(r, key)], rows, peers, key))
        parts.extend(_outlook_table([r for r in rows if _has(r, key)]))
    if plot is not None:
        parts.append(f"![speed-up over density]({plot})\n")
    return "\n".join(parts)


def model_name(case: ModelCase, isa: str) -> str:
    """Names the section of a model's rows: by model, density, threads, and instruction set and processor as
    `linear_name` does."""
    return f"{case.model}, density {case.density:g}; {_threads(case.threads)}; {table_name(isa)}"


def model_section(machine: Machine, command: str, case: ModelCase, rows: Sequence[ModelRow]) -> str:
    """The section on one whole model: a row for each variant."""
    batches = "".join(f" decode B = {batch} |" for batch in case.batches)
    lines = [
        f"## {model_name(case, machine.isa)}\n",
        provenance(machine, command),
        "Tokens a second, and in brackets times as many as dense float32 ONNX Runtime in the same rounds. "
        f"Prompts of {case.prefill} "
        f"tokens; decoding after {case.context}. The roofline is the measured memory bandwidth over the bytes that a "
        "step at B = 1 must read. Both sparse float32 forms are exact: the second finds a token's best logits in int8 "
        "and computes them again in float32, so that greedy tokens are the same and the other logits are near.\n",
        f"| | prefill |{batches} first token | resident | file | roofline, share reached |",
        "|---|---|" + "---|" * (len(case.batches) + 4),
    ]
    for row in sorted(rows, key=lambda row: VARIANTS[row.variant].sparse):
        decode = [_rate(row.decode[batch], row.ratios[f"decode {batch}"]) for batch in case.batches]
        cells = [_rate(row.prefill, row.ratios[f"prefill {case.prefill}"]), *decode]
        cells += [f"{row.first_token_seconds * 1e3:.0f} ms", _megabytes(row.resident_bytes), _megabytes(row.file_bytes)]
        share = "" if row.share is None else f", {row.share:.0%}"
        lines.append(f"| {row.variant} | " + " | ".join(cells) + f" | {row.roofline:.1f}{share} |")
    return "\n".join(lines) + "\n"


def _rate(tokens_a_second: float, ratio: float) -> str:
    return f"{tokens_a_second:.1f} (**{ratio:.2f}**)"


def _figure(row: LinearRow, measured: Sequence[LinearRow]) -> str:
    """Ratio and time; with more threads, also how many times as fast as one of the same run."""
    case = _case(replace(row, threads=1))
    alone = [other.us for other in measured if _case(other) == case]
    scaling = f", {alone[0] / row.us:.2f}x one thread" if row.threads > 1 and alone else ""
    return f"**{row.ratio:.2f}** ({row.us:.0f} µs{scaling})"


def _case(row: LinearRow) -> LinearRow:
    """What was measured, without what came out."""
    return replace(row, us=0, dense_us=0, ratio=0, max_rel_err=0, outlook=None)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def _table(
    rows: Sequence[LinearRow], measured: Sequence[LinearRow], peers: Sequence[PeerRow], key: dict[str, int]
) -> str:
    rows = sorted(rows, key=lambda row: -row.density)
    tokens = sorted({row.tokens for row in rows})
    dense = {count: median(row.dense_us for row in rows if row.tokens == count) for count in tokens}
    lines = [
        "| density | | " + " | ".join(f"M = {count}" for count in tokens) + " |",
        "|---|---|" + "---|" * len(tokens),
        "| 1 | dense float32, µs | " + " | ".join(f"{dense[count]:.0f}" for count in tokens) + " |",
    ]
    for density, values in dict.fromkeys((row.density, row.values) for row in rows):
        cells = {row.tokens: row for row in rows if (row.density, row.values) == (density, values)}
        figures = (_figure(cells[count], measured) if count in cells else _MISSING for count in tokens)
        layout = next(iter(cells.values())).layout
        lines.append(f"| {density:g} | {values} ({layout}) | " + " | ".join(figures) + " |")
    ours = sorted((peer for peer in peers if _has(peer, key)), key=lambda peer: -peer.density)
    for density, name in dict.fromkeys((peer.density, peer.peer) for peer in ours):
        found = {peer.tokens: peer for peer in ours if (peer.density, peer.peer) == (density, name)}
        figures = (
            f"{found[count].ratio:.2f} ({found[count].us:.0f} µs)" if count in found else _MISSING for count in tokens
        )
        lines.append(f"| {density:g} | *{name}* | " + " | ".join(figures) + " |")
    return "\n".join(lines) + "\n"


def _has(row: LinearRow | PeerRow, key: dict[str, int]) -> bool:
    return all(getattr(row, name) == value for name, value in key.items())


def _outlook_table(rows: Sequence[LinearRow]) -> list[str]:
    """What bounds each cell on one core, and what is predicted of many; nothing where it is not known."""
    known = [row for row in rows if row.outlook is not None]
    if not known:
        return []
    tokens = sorted({row.tokens for row in known})
    lines = [
        f"What each cell is bound by on this core, and in brackets a prediction, which nobody measured: times as fast "
        f"as dense on {MANY_CORES} cores that share {SHARED_BANDWIDTH:g} times one core's memory bandwidth.\n",
        "| density | | " + " | ".join(f"M = {count}" for count in tokens) + " |",
        "|---|---|" + "---|" * len(tokens),
    ]
    for density, values in dict.fromkeys((row.density, row.values) for row in sorted(known, key=lambda r: -r.density)):
        cells = {row.tokens: row.outlook for row in known if (row.density, row.values) == (density, values)}
        figures = (_bound(cells[count]) if count in cells else _MISSING for count in tokens)
        lines.append(f"| {density:g} | {values} | " + " | ".join(figures) + " |")
    return ["\n".join(lines) + "\n"]


def _bound(outlook: Outlook | None) -> str:
    return _MISSING if outlook is None else f"{outlook.bound} ({outlook.many_core_ratio:.1f})"


def plot_name(rows: Sequence[LinearRow]) -> str | None:
    """The file name of the section's plot; None where there are too few densities for a line over them."""
    if len({row.density for row in rows}) < _PLOTTED_DENSITIES:
        return None
    return f"performance-linear-{'-'.join(_shapes(rows))}-{rows[0].threads}-{table_name(rows[0].isa)}.png"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _shapes(rows: Sequence[LinearRow]) -> list[str]:
    return list(dict.fromkeys(f"{row.out_features}x{row.in_features}" for row in rows))


def plot_speedups(rows: Sequence[LinearRow], peers: Sequence[PeerRow], path: Path) -> None:
    """Speed-up over density, a panel for each number of tokens, of the first shape and thread count."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    first = rows[0]
    same = (first.out_features, first.in_features, first.threads)
    rows = [row for row in rows if (row.out_features, row.in_features, row.threads) == same]
    tokens = sorted({row.tokens for row in rows})
    figure, axes = pyplot.subplots(1, len(tokens), figsize=(3.4 * len(tokens), 3.6), sharey=True, squeeze=False)
    for axis, count in zip(axes[0], tokens, strict=True):
        for values in dict.fromkeys(row.values for row in rows):
            line = sorted((row.density, row.ratio) for row in rows if (row.tokens, row.values) == (count, values))
            if line:
                axis.plot(*zip(*line, strict=True), "o-", label=values, color=_COLORS[values])
        _peer_lines(axis, [peer for peer in peers if peer.tokens == count and peer.density == 1], same)
        axis.set(xscale="log", yscale="log", xlabel="density", title=f"{count} token{'s' if count > 1 else ''}")
        axis.grid(alpha=0.3, which="both")
    axes[0][0].set_ylabel("times as fast as dense float32")
    handles, labels = axes[0][-1].get_legend_handles_labels()
    figure.suptitle(f"{same[0]}x{same[1]} layer, {_threads(same[2])}, kernels on {table_name(first.isa)}")
    figure.tight_layout()
    figure.legend(handles, labels, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=min(len(labels), 5))
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def _peer_lines(axis: object, peers: Sequence[PeerRow], same: tuple[int, int, int]) -> None:
    """Dense peers do not depend on density: a dashed line each."""
    styles = cycle(product(("#888888", "#c0a030", "#c06080"), ("--", "-.", ":")))
    for peer in peers:
        if (peer.out_features, peer.in_features, peer.threads) == same:
            color, line = next(styles)
            axis.axhline(peer.ratio, color=color, linestyle=line, linewidth=1, label=f"dense: {peer.peer}")  # type: ignore[attr-defined]
