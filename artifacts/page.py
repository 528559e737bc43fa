"""What the HTML reports share: one style, a verdict first, then settings, pictures, and layers folded by their kind.

Everything that is put on a page is escaped, unless it is `Html` already.

Legend: N out_features, K in_features.
"""

import base64
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

REPORT_FILES = ("report.json", "report.html")
PICTURE_CELLS = 48
LAYERS_SHOWN_OPEN = 8
"""So many layers of a kind, or fewer, are shown without a click where a page has one kind of layer alone."""

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c2430; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.verdict { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.verdict div { border: 1px solid #dde3ea; border-top: 4px solid #2f6db3; border-radius: 4px; padding: .6rem .9rem; }
.verdict dt { color: #5b6675; font-size: 13px; } .verdict dd { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; } table.wide { width: 100%; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #dde3ea; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td { overflow-wrap: anywhere; } td.number { overflow-wrap: normal; white-space: nowrap; }
img { max-width: 100%; } img.mask { image-rendering: pixelated; width: 64px; border: 1px solid #dde3ea; }
.gallery { display: flex; flex-wrap: wrap; gap: 1rem; } .gallery img { width: 96px !important; }
figure { margin: 0; font-size: 13px; max-width: 10rem; overflow-wrap: anywhere; }
.reason { color: #5b6675; font-size: 13px; }
details { border: 1px solid #dde3ea; border-radius: 4px; margin: .4rem 0; padding: .3rem .8rem; }
summary { cursor: pointer; } summary .facts { color: #5b6675; }
.times { display: grid; grid-template-columns: minmax(8rem, 2fr) 5fr; gap: .5rem 1rem; align-items: center; }
.times span { overflow-wrap: anywhere; } .times i { display: inline-block; height: .8rem; margin-right: .4rem; }
.times div { white-space: nowrap; font-size: 13px; line-height: 1.3; }
i.dense { background: #c9d3de; } i.packed { background: #2f6db3; }
pre { overflow-x: auto; font-size: 13px; }
@media (max-width: 40rem) { body { margin: 1rem auto; } .times { grid-template-columns: 1fr; gap: .1rem; } }
"""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


@dataclass(frozen=True)
class Column:
    """The head of a column; numbers stand at its right."""

    title: str
    number: bool = False


@dataclass(frozen=True)
class Verdict:
    """What a reader wants to know first: what this is, how good, how fast, how big. One that is empty is left out."""

    what: str
    good: str = ""
    fast: str = ""
    big: str = ""


def report_files(figures: Mapping[str, Any], page: str) -> dict[str, str]:
    """The content of `REPORT_FILES`: a report for programs, and its page for people."""
    return dict(zip(REPORT_FILES, (json.dumps(figures, indent=2) + "\n", page), strict=True))


def write_report(directory: Path, figures: Mapping[str, Any], page: str) -> None:
    """Write `REPORT_FILES` into a directory."""
    for name, content in report_files(figures, page).items():
        (directory / name).write_text(content)


def document(title: str, verdict: Verdict, *sections: Html) -> str:
    """A whole page; empty sections are left out."""
    cards = {
        "what it is": verdict.what,
        "how good": verdict.good,
        "how fast": verdict.fast,
        "how big": verdict.big,
    }
    known = {name: safe(sentence(text)) for name, text in cards.items() if text}
    shown = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in known.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<dl class="verdict">{shown}</dl>
{"".join(sections)}</body></html>
"""


def sentence(text: str) -> str:
    """A text with a capital letter and a full stop."""
    return text if isinstance(text, Html) else text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def section(title: str, *parts: str) -> Html:
    """A part of a page under a heading; nothing where no part has content."""
    content = "".join(part if isinstance(part, Html) else f"<p>{safe(part)}</p>" for part in parts if part)
    return Html(f"<h2>{escape(title)}</h2>\n{content}\n") if content else Html("")


def section_of(content: Html, title: str, *text: str) -> Html:
    """A part of a page whose text is about `content`, which follows it; nothing where there is no such content."""
    return section(title, *text, content) if content else Html("")


def folded(title: str, text: str) -> Html:
    """A text as it stands, such as YAML, behind a line to click; nothing where it is empty."""
    return Html(f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>" if text else "")


def table(head: Sequence[Column | str], rows: Iterable[Sequence[object]]) -> Html:
    """A table; nothing where it has no rows. Columns in which every cell is empty are left out."""
    columns = [column if isinstance(column, Column) else Column(column) for column in head]
    cells = [[safe(value) for value in row] for row in rows]
    used = [place for place in range(len(columns)) if any(row[place] for row in cells)]
    if not cells or not used:
        return Html("")
    kinds = {place: ' class="number"' if columns[place].number else "" for place in used}
    top = "".join(f"<th{kinds[place]}>{escape(columns[place].title)}</th>" for place in used)
    body = "\n".join(f"<tr>{''.join(f'<td{kinds[place]}>{row[place]}</td>' for place in used)}</tr>" for row in cells)
    wide = ' class="wide"' if len(used) > 4 else ""
    return Html(f'<div class="scroll"><table{wide}><tr>{top}</tr>\n{body}</table></div>')


def facts(values: Mapping[str, object]) -> Html:
    """A table of names and values; those without a value are left out."""
    known = {name: value for name, value in values.items() if value not in (None, "")}
    rows = "\n".join(f"<tr><td>{safe(name)}</td><td>{safe(value)}</td></tr>" for name, value in known.items())
    return Html(f'<div class="scroll"><table>{rows}</table></div>' if known else "")


def safe(value: object) -> Html:
    """A value as HTML: escaped unless it is HTML, what stands in backquotes as code; nothing for None."""
    if isinstance(value, Html):
        return value
    return Html("" if value is None else re.sub("`([^`]+)`", r"<code>\1</code>", escape(str(value))))


def explained(text: str, reason: str) -> Html:
    """A cell with a reason in small print below."""
    return Html(escape(text) + (f'<div class="reason">{escape(reason)}</div>' if reason else ""))


def kind_of(name: str) -> str:
    """What layers of the same place in different blocks have in common: the name with its numbers as `*`."""
    return re.sub(r"\d+", "*", name)


Layer = TypeVar("Layer")


@dataclass(frozen=True)
class LayerTable(Generic[Layer]):
    """How layers are shown: columns, a row for each layer, a line for a kind, and why each is as it is.

    A reason that all layers of a kind share stands once, above them.
    """

    head: Sequence[Column | str]
    row: Callable[[Layer], Sequence[object]]
    line: Callable[[Sequence[Layer]], str]
    reason: Callable[[Layer], str]


def layers_by_kind(layers: Sequence[Layer], name: Callable[[Layer], str], shown: LayerTable[Layer]) -> Html:
    """The layers of each kind in a fold, with what they have in common on its line."""
    kinds: dict[str, list[Layer]] = {}
    for layer in layers:
        kinds.setdefault(kind_of(name(layer)), []).append(layer)
    is_open = " open" if len(kinds) == 1 and len(layers) <= LAYERS_SHOWN_OPEN else ""
    return Html("\n".join(_fold(kind, group, name, shown, is_open) for kind, group in kinds.items()))


def _fold(
    kind: str, group: Sequence[Layer], name: Callable[[Layer], str], shown: LayerTable[Layer], is_open: str
) -> str:
    reasons = {shown.reason(layer) for layer in group}
    common = reasons.pop() if len(reasons) == 1 else ""
    rows = [[explained(name(layer), "" if common else shown.reason(layer)), *shown.row(layer)] for layer in group]
    count = "1 layer" if len(group) == 1 else f"{len(group)} layers"
    why = f'<div class="reason">{escape(common)}</div>' if common else ""
    title = name(group[0]) if len(group) == 1 else kind
    return (
        f"<details{is_open}><summary><b>{escape(title)}</b> "
        f'<span class="facts">{count}, {escape(shown.line(group))}</span>{why}</summary>'
        f"{table(['layer', *shown.head], rows)}</details>"
    )


def span(values: Iterable[float], form: str) -> str:
    """The least and the largest of numbers, or the one that they all are, each in the format `form`."""
    found = sorted(values)
    ends = [format(found[0], form), format(found[-1], form)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def megabytes(size: float) -> str:
    """Bytes in a unit that suits them."""
    return f"{size / 1e6:,.2f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def local_density(mask_NK: NDArray[np.bool_], cells: int = PICTURE_CELLS) -> NDArray[np.float64]:
    """Share of links in each field of a grid of at most `cells` x `cells` over the mask."""
    rows, columns = (np.linspace(0, size, min(cells, size) + 1).astype(int) for size in mask_NK.shape)
    sums = np.add.reduceat(np.add.reduceat(mask_NK, rows[:-1], axis=0, dtype=np.int64), columns[:-1], axis=1)
    return sums / np.outer(np.diff(rows), np.diff(columns))


def picture(density: NDArray[np.float64], title: str) -> Html:
    """An HTML image of local densities: rows are output nodes, columns input nodes, darker is denser."""
    from matplotlib import image

    buffer = io.BytesIO()
    image.imsave(buffer, density, cmap="Blues", vmin=0, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return Html(f'<img class="mask" alt="mask of {escape(title)}" src="data:image/png;base64,{data}">')


def gallery(densities: Mapping[str, NDArray[np.float64]]) -> Html:
    """A section with a picture for each kind of layer: the mean of all that have the shape of its first.

    Args:
        densities: of `local_density`, by the names of layers.
    """
    kinds: dict[str, list[NDArray[np.float64]]] = {}
    for name, density in densities.items():
        kinds.setdefault(kind_of(name), []).append(density)
    shown = "".join(
        f"<figure>{picture(np.mean([one for one in alike if one.shape == alike[0].shape], axis=0), kind)}"
        f"<figcaption>{escape(kind.rpartition('*.')[2])}</figcaption></figure>"
        for kind, alike in kinds.items()
    )
    return section_of(
        Html(f'<div class="gallery">{shown}</div>' if shown else ""),
        "Where the links are",
        "Rows are outputs, columns inputs, and darker is denser; layers whose names differ in numbers alone are shown "
        "together.",
    )


def figure_image(figure: Any, description: str) -> Html:
    """An HTML image of a matplotlib figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Html(f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">')


def time_bars(rows: Sequence[tuple[str, float, float]], unit: str) -> Html:
    """Two bars a row: (title, dense time, packed time), all in the same unit, the longest bar full width."""
    longest = max((max(dense, packed) for _, dense, packed in rows), default=0.0) or 1.0

    def bar(kind: str, time: float) -> str:
        # Behind the longest bar there is room for its figure.
        return f'<i class="{kind}" style="width:{70 * time / longest:.1f}%"></i>{time:,.1f} {escape(unit)}'

    bars = "\n".join(
        f"<span>{escape(title)}</span><div>{bar('dense', dense)}<br>{bar('packed', packed)}</div>"
        for title, dense, packed in rows
    )
    return Html(f'<div class="times">{bars}</div>')
