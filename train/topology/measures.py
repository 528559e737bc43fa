"""Measures of a layer's graph that network science uses.

Legend: N out_features, K in_features; B sources of a search.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .initial import initial_mask

_SEARCH_SOURCES = 64
_FEWEST_IN_TAIL = 10


@dataclass(frozen=True)
class PowerLaw:
    """A discrete power law k^-`exponent` fitted to degrees from `smallest` on; `distance` is Kolmogorov-Smirnov's."""

    exponent: float
    smallest: int
    distance: float


@dataclass(frozen=True)
class Measures:
    """Measures of one bipartite graph.

    `active_outputs` and `active_inputs` are the shares of nodes with a link. `clustering` is Robins and Alexander's: of
    the paths of length 3, the share that a link closes to a square. `path_length` is the mean number of links between
    nodes that are joined. `small_worldness` is clustering over that of a random graph of the same size, divided by the
    same ratio of path lengths (Humphries and Gurney); above 1 is small world. `overlap` is the share of links that were
    in the initial graph, where that is known.
    """

    density: float
    active_outputs: float
    active_inputs: float
    output_power_law: PowerLaw | None
    input_power_law: PowerLaw | None
    clustering: float
    path_length: float
    small_worldness: float
    overlap: float | None


def measure(mask_NK: Tensor, initial_NK: Tensor | None = None, *, seed: int = 0) -> Measures:
    """Measure a graph.

    Args:
        mask_NK: bool [N, K].
        initial_NK: the mask that training began with.
        seed: of the random graph to compare with and of the sources of path lengths.
    """
    mask_NK = mask_NK.cpu()
    outputs_N, inputs_K = degrees(mask_NK)
    density = float(mask_NK.float().mean())
    clustering, length = bipartite_clustering(mask_NK), mean_path_length(mask_NK, seed=seed)
    out_features, in_features = mask_NK.shape
    random_NK = initial_mask("er", out_features, in_features, max(density, 1 / mask_NK.numel()), seed=seed)
    random_clustering, random_length = bipartite_clustering(random_NK), mean_path_length(random_NK, seed=seed)
    return Measures(
        density=density,
        active_outputs=float((outputs_N > 0).float().mean()),
        active_inputs=float((inputs_K > 0).float().mean()),
        output_power_law=fit_power_law(outputs_N),
        input_power_law=fit_power_law(inputs_K),
        clustering=clustering,
        path_length=length,
        small_worldness=_ratio(_ratio(clustering, random_clustering), _ratio(length, random_length)),
        overlap=None if initial_NK is None else overlap(mask_NK, initial_NK.cpu()),
    )


def degrees(mask_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Degrees of output nodes, int64 [N], and of input nodes, int64 [K]."""
    return mask_NK.sum(dim=1), mask_NK.sum(dim=0)


def overlap(mask_NK: Tensor, other_NK: Tensor) -> float:
    """The share of a mask's links that another mask has too."""
    return int((mask_NK & other_NK).sum()) / max(1, int(mask_NK.sum()))


def bipartite_clustering(mask_NK: Tensor) -> float:
    """Four times the squares over the paths of length 3 (Robins and Alexander 2004); 0 without such paths."""
    a_NK = mask_NK.double() if mask_NK.shape[0] <= mask_NK.shape[1] else mask_NK.T.double()
    common = a_NK @ a_NK.T
    pairs = common * (common - 1) / 2
    squares = float(pairs.sum() - pairs.diagonal().sum()) / 2
    # A link's ends have d - 1 further links each: so many paths have it in the middle.
    paths = float((a_NK * (a_NK.sum(dim=1, keepdim=True) - 1) * (a_NK.sum(dim=0, keepdim=True) - 1)).sum())
    return _ratio(4 * squares, paths)


def mean_path_length(mask_NK: Tensor, *, seed: int = 0) -> float:
    """Mean number of links on shortest paths between joined nodes, from a sample of output nodes; nan without any."""
    a_NK = mask_NK.float()
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randperm(len(a_NK), generator=generator)[:_SEARCH_SOURCES]
    frontier_BN = torch.zeros(len(sources), len(a_NK)).index_put_((torch.arange(len(sources)), sources), torch.ones(()))
    seen = {0: frontier_BN.bool(), 1: torch.zeros(len(sources), a_NK.shape[1], dtype=torch.bool)}
    frontier, length, total, reached = frontier_BN, 0, 0, 0
    while frontier.any():
        length += 1
        side = length % 2
        new = ((frontier @ a_NK if side else frontier @ a_NK.T) > 0) & ~seen[side]
        seen[side] |= new
        total, reached = total + length * int(new.sum()), reached + int(new.sum())
        frontier = new.float()
    return _ratio(total, reached)


def fit_power_law(degrees: Tensor) -> PowerLaw | None:
    """Maximum likelihood fit of a discrete power law (Clauset, Shalizi and Newman 2009, equation 3.7).

    The smallest degree is the one whose tail lies nearest to its law by Kolmogorov-Smirnov distance.

    Args:
        degrees: int64 [nodes]; nodes without a link are left out.

    Returns:
        The fit, or None where no tail has 10 nodes of more than one degree.
    """
    positive = degrees[degrees > 0].double().sort().values
    fits = [fit for smallest in positive.unique().tolist() if (fit := _fit_tail(positive, int(smallest))) is not None]
    return min(fits, key=lambda fit: fit.distance, default=None)


def _fit_tail(sorted_degrees: Tensor, smallest: int) -> PowerLaw | None:
    tail = sorted_degrees[sorted_degrees >= smallest]
    if len(tail) < _FEWEST_IN_TAIL or tail[0] == tail[-1]:
        return None
    exponent = 1 + len(tail) / float((tail / (smallest - 0.5)).log().sum())
    values, counts = tail.unique(return_counts=True)
    empirical = counts.cumsum(0) / len(tail)
    model = 1 - ((values + 0.5) / (smallest - 0.5)) ** (1 - exponent)
    return PowerLaw(exponent, smallest, float((empirical - model).abs().max()))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
