"""Initial bipartite graphs of a linear layer.

Legend: N out_features, K in_features; the layer's sides are ordered as a small side (M nodes) and a large side (L
nodes).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...artifacts import InputError
from .families import correlated, scale_free, small_world
from .structure import Structure, legalise_groups

_ROWS_A_BLOCK = 256
DEGREES = ("fixed", "uniform")


def initial_mask(
    kind: str,
    out_features: int,
    in_features: int,
    density: float,
    *,
    seed: int,
    structure: Structure = Structure(),  # noqa: B008, frozen
    **parameters: Any,
) -> Tensor:
    """A random bipartite graph with exactly `link_count(...)` links, or, in blocks, as many blocks.

    Args:
        kind: "brf" (parameters `r` in [0, 1] and `degrees` "fixed" or "uniform"), "bsw" (`beta` in [0, 1]), "bsf"
            (none), "csti" (`inputs`, float [samples, features]) or "er" (none).
        out_features: N.
        in_features: K.
        density: share of the N * K possible links, in (0, 1].
        seed: the same seed gives the same graph.
        structure: what the mask must obey. Blocks are drawn as the links of a graph of blocks; for 2:4, links are moved
            along their row to the nearest group with room.
        parameters: of the kind.

    Returns:
        bool [N, K].

    Raises:
        InputError: an unknown kind or parameter, a value out of range, or a shape or density that the structure does
        not admit.
    """
    if kind not in TOPOLOGIES:
        raise InputError(f"topology.kind '{kind}' is none of {', '.join(TOPOLOGIES)}")
    structure.check(kind, out_features, in_features, density)
    rows, columns = structure.grid(out_features, in_features)
    links = link_count(rows, columns, density)
    if parameters.get("inputs") is not None:
        parameters["inputs"] = _fold_samples(np.asarray(parameters["inputs"], np.float32), structure.side)
    rng = np.random.default_rng(seed)
    try:
        mask_RC = TOPOLOGIES[kind](rows, columns, links, rng, **parameters)
    except TypeError as error:
        raise InputError(f"topology '{kind}': {error}") from error
    if structure.grouped:
        mask_RC = legalise_groups(mask_RC, rng)
    return structure.unfold(torch.from_numpy(mask_RC))


def _fold_samples(samples_TF: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """The mean over each run of `side` features: what a node of a graph of blocks sees."""
    if samples_TF.shape[-1] % side:
        raise InputError(f"topology 'csti': {samples_TF.shape[-1]} features are no multiple of the block size {side}")
    return samples_TF.reshape(len(samples_TF), -1, side).mean(axis=2)


def link_count(out_features: int, in_features: int, density: float) -> int:
    """The number of links at a density: the nearest integer, at least 1."""
    if not 0 < density <= 1:
        raise InputError(f"density {density} is outside (0, 1]")
    return max(1, round(density * out_features * in_features))


def erdos_renyi(out_features: int, in_features: int, links: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Exactly `links` links, all sets of that size equally likely: the control in every comparison."""
    mask = np.zeros(out_features * in_features, bool)
    mask[rng.choice(mask.size, links, replace=False)] = True
    return mask.reshape(out_features, in_features)


def bipartite_receptive_field(
    out_features: int,
    in_features: int,
    links: int,
    rng: np.random.Generator,
    *,
    r: float = 0.25,
    degrees: str = "fixed",
) -> NDArray[np.bool_]:
    """Bipartite receptive field (BRF; arXiv 2501.19107).

    Each node of the smaller side sits at equal spacing on a ring of the larger side and draws its links without
    replacement with probability proportional to (1 + ring distance)^(-(1 - r) / r): r = 0 takes the nearest nodes, r =
    1 any. Degrees of the smaller side are equal ("fixed", up to a remainder of one), or one link each and the rest
    thrown at random nodes ("uniform").
    """
    if not 0 <= r <= 1:
        raise InputError(f"topology.r {r} is outside [0, 1]")
    if degrees not in DEGREES:
        raise InputError(f"topology.degrees '{degrees}' is none of {', '.join(DEGREES)}")
    small, large = sorted((out_features, in_features))
    degree_M = _degrees(small, large, links, degrees, rng)
    mask_ML = np.zeros((small, large), bool)
    for start in range(0, small, _ROWS_A_BLOCK):
        rows = np.arange(start, min(start + _ROWS_A_BLOCK, small))
        keys_BL = _selection_keys(_ring_distance(rows, small, large), r, rng)
        ranks_BL = np.argsort(np.argsort(keys_BL, axis=1), axis=1)
        mask_ML[rows] = ranks_BL < degree_M[rows, None]
    return mask_ML if out_features == small else np.ascontiguousarray(mask_ML.T)


def _degrees(small: int, large: int, links: int, kind: str, rng: np.random.Generator) -> NDArray[np.int64]:
    """Degrees of the smaller side; they add up to `links` and none is above `large`."""
    if kind == "fixed":
        degree_M = np.full(small, links // small)
        degree_M[rng.choice(small, links % small, replace=False)] += 1
        return degree_M
    degree_M = np.zeros(small, np.int64)
    degree_M[rng.permutation(small)[:links]] = 1
    while missing := links - int(degree_M.sum()):
        open_nodes = np.flatnonzero(degree_M < large)
        degree_M[open_nodes] += rng.multinomial(missing, np.full(len(open_nodes), 1 / len(open_nodes)))
        degree_M = np.minimum(degree_M, large)
    return degree_M


def _ring_distance(rows: NDArray, small: int, large: int) -> NDArray[np.float64]:
    """Distance on the ring of `large` places between each row's centre, evenly spaced, and every place."""
    centres = (rows + 0.5) * large / small - 0.5
    straight = np.abs(centres[:, None] - np.arange(large))
    return np.minimum(straight, large - straight)


def _selection_keys(distance: NDArray[np.float64], r: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Keys whose smallest d in a row are a sample of d places without replacement (exponential race)."""
    if r == 0:
        return distance + 1e-9 * rng.random(distance.shape)
    alpha = (1 - r) / r
    return np.log(rng.standard_exponential(distance.shape)) + alpha * np.log1p(distance)


def bipartite_small_world(
    out_features: int, in_features: int, links: int, rng: np.random.Generator, *, beta: float = 0.25
) -> NDArray[np.bool_]:
    """Bipartite small world: see `small_world`. The lattice is a receptive field of the nearest nodes."""
    small, large = sorted((out_features, in_features))
    lattice_ML = bipartite_receptive_field(small, large, links, rng, r=0.0)
    mask_ML = small_world(lattice_ML, beta, rng)
    return mask_ML if out_features == small else np.ascontiguousarray(mask_ML.T)


TOPOLOGIES: dict[str, Callable[..., NDArray[np.bool_]]] = {
    "brf": bipartite_receptive_field,
    "bsw": bipartite_small_world,
    "bsf": scale_free,
    "csti": correlated,
    "er": erdos_renyi,
}
