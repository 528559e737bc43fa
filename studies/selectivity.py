"""How much a link-prediction score decides: why regrowth by CH2-L3n can be regrowth at random.

    python -m hebbline.studies.selectivity [--docs docs]

Of a graph, the mean score of the links that regrowth picks, over the mean score of all absent links. 1 is random.
Legend: N out_features, K in_features.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..benchmarks.page import write_section
from ..console import console
from ..train.dynamics.regrowth import regrow_links
from ..train.dynamics.sampling import generator_for
from ..train.topology import initial_mask, link_scores
from .page import PAGE, TITLE

SHAPE = (512, 1376)
DENSITIES = (0.3, 0.1, 0.05, 0.01)
GRAPHS: dict[str, tuple[str, dict[str, Any]]] = {
    "random (ER)": ("er", {}),
    "BRF r = 0.25": ("brf", {"r": 0.25}),
    "BRF r = 0": ("brf", {"r": 0.0}),
}
RULES: dict[str, tuple[str, float]] = {"sampled": ("soft", 1.0), "sharpened": ("soft", 4.0), "top": ("top", 1.0)}
_REMOVED = 0.1


@dataclass(frozen=True)
class Selectivity:
    """Of one graph: by rule, the mean score of the picked links over that of all absent ones."""

    graph: str
    density: float
    ratios: dict[str, float]


def selectivities() -> Iterator[Selectivity]:
    """Every graph at every density, each after a tenth of its links was removed at random."""
    for graph, (kind, parameters) in GRAPHS.items():
        for density in DENSITIES:
            mask_NK = initial_mask(kind, *SHAPE, density, seed=0, **parameters)
            yield Selectivity(graph, density, ratios(mask_NK))


def ratios(mask_NK: Tensor) -> dict[str, float]:
    """By rule, for a mask bool [N, K]."""
    count = round(_REMOVED * int(mask_NK.sum()))
    kept_NK = mask_NK & (torch.rand(mask_NK.shape, generator=torch.Generator().manual_seed(0)) > _REMOVED)
    scores_NK = link_scores(kept_NK, "CH2_L3n")
    absent = float(scores_NK[~kept_NK].mean())
    found = {}
    for name, (rule, temperature) in RULES.items():
        generator = generator_for("selectivity", name)
        grown_NK = regrow_links(scores_NK, kept_NK, count, rule=rule, temperature=temperature, generator=generator)
        found[name] = float(scores_NK[grown_NK & ~kept_NK].mean()) / absent
    return found


def markdown(found: list[Selectivity]) -> str:
    """The section of the page."""
    lines = ["| density | " + " | ".join(GRAPHS) + " |", "|---" * (1 + len(GRAPHS)) + "|"]
    for density in DENSITIES:
        cells = (next(one for one in found if (one.graph, one.density) == (graph, density)) for graph in GRAPHS)
        lines.append(f"| {density:g} | " + " | ".join(_cell(one) for one in cells) + " |")
    shape = "x".join(map(str, SHAPE))
    return (
        "## How much the score decides\n\n```\npython -m hebbline.studies.selectivity --docs docs\n```\n\n"
        f"Mean CH2-L3n score of the regrown links over that of all absent ones, in a {shape} layer; 1 is random. "
        f"Rules: {', '.join(RULES)}.\n\n" + "\n".join(lines) + "\n"
    )


def _cell(one: Selectivity) -> str:
    return " / ".join(f"{ratio:.3g}" for ratio in one.ratios.values())


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the page where asked."""
    parser = argparse.ArgumentParser(prog="python -m hebbline.studies.selectivity", description=__doc__)
    parser.add_argument("--docs", type=Path, default=None, help="directory of results.md")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    text = markdown(list(selectivities()))
    console.print(text, markup=False)
    if options.docs is not None:
        write_section(options.docs / PAGE, TITLE, "selectivity", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
