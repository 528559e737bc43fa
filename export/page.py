"""What the HTML reports share: style, pictures of masks, and bars of time.

Legend: N out_features, K in_features.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

PICTURE_CELLS = 48

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1c2430; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid #dde3ea; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
img { image-rendering: pixelated; width: 96px; border: 1px solid #dde3ea; }
.reason { color: #5b6675; font-size: 13px; }
svg text { font: 12px system-ui, sans-serif; fill: #1c2430; }
.dense { fill: #c9d3de; } .packed { fill: #2f6db3; }
"""


def local_density(mask_NK: NDArray[np.bool_], cells: int = PICTURE_CELLS) -> NDArray[np.float64]:
    """Share of links in each field of a grid of at most `cells` x `cells` over the mask."""
    rows, columns = (np.linspace(0, size, min(cells, size) + 1).astype(int) for size in mask_NK.shape)
    sums = np.add.reduceat(np.add.reduceat(mask_NK, rows[:-1], axis=0, dtype=np.int64), columns[:-1], axis=1)
    return sums / np.outer(np.diff(rows), np.diff(columns))


def picture(density: NDArray[np.float64], title: str) -> str:
    """An HTML image of local densities: rows are output nodes, columns input nodes, darker is denser."""
    from matplotlib import image

    buffer = io.BytesIO()
    image.imsave(buffer, density, cmap="Blues", vmin=0, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="mask of {escape(title)}" src="data:image/png;base64,{data}">'


def time_bars(rows: Sequence[tuple[str, float, float]], unit: str) -> str:
    """An SVG of two bars a row: (title, dense time, packed time), all in the same unit, the longest bar full width."""
    longest = max((max(dense, packed) for _, dense, packed in rows), default=0.0) or 1.0
    height, left, width = 34, 330, 480
    bars = "\n".join(
        f'<g transform="translate(0 {index * height})"><text x="0" y="20">{escape(title[-46:])}</text>'
        f'<rect class="dense" x="{left}" y="4" width="{width * dense / longest:.1f}" height="12"/>'
        f'<rect class="packed" x="{left}" y="17" width="{width * packed / longest:.1f}" height="12"/>'
        f'<text x="{left + width * dense / longest + 6:.1f}" y="14">{dense:,.1f} {escape(unit)}</text>'
        f'<text x="{left + width * packed / longest + 6:.1f}" y="28">{packed:,.1f} {escape(unit)}</text></g>'
        for index, (title, dense, packed) in enumerate(rows)
    )
    return f'<svg role="img" width="100%" viewBox="0 0 960 {max(1, len(rows)) * height}">{bars}</svg>'
