"""Families of initial graphs beside the random and the receptive-field ones: small world, scale free, correlated.

Legend: N out_features, K in_features; the layer's sides are ordered as a small side (M nodes) and a large side (L
nodes); T samples, F features.
"""

import numpy as np
from numpy.typing import NDArray

from ...artifacts import InputError


def small_world(lattice_ML: NDArray[np.bool_], beta: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Bipartite small world (BSW; arXiv 2501.19107, after Watts and Strogatz).

    Each link of a ring lattice is rewired with probability `beta`: its end on the large side moves to a node drawn
    uniformly from those that the other end is not linked to.

    Args:
        lattice_ML: bool [M, L], every node of the small side linked to its nearest ones.
        beta: 0 keeps the lattice, 1 gives a random graph with the same degrees of the small side.
        rng: draws.

    Raises:
        InputError: `beta` outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise InputError(f"topology.beta {beta} is outside [0, 1]")
    degree_M1 = lattice_ML.sum(axis=1, keepdims=True)
    kept_ML = lattice_ML & (rng.random(lattice_ML.shape) >= beta)
    keys_ML = np.where(kept_ML, -1.0, rng.random(lattice_ML.shape))
    # A rewired link may fall back on a place that was just given up, but not while others are free.
    keys_ML[lattice_ML & ~kept_ML] += 1.0
    return np.argsort(np.argsort(keys_ML, axis=1), axis=1) < degree_M1


def scale_free(out_features: int, in_features: int, links: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Bipartite scale free (BSF; arXiv 2501.19107, after Barabasi and Albert): degrees with a heavy tail on both sides.

    The nodes of both sides arrive in random order. Each draws an equal share of the links, without replacement, among
    the nodes of the other side that are there, with probability proportional to their degree plus one. Links that the
    first nodes find no partner for are drawn at the end with probability proportional to the product of both ends'
    degrees plus one.
    """
    mask_NK = np.zeros((out_features, in_features), bool)
    nodes = out_features + in_features
    shares = np.full(nodes, links // nodes)
    shares[rng.choice(nodes, links % nodes, replace=False)] += 1
    arrived = [np.zeros(out_features, bool), np.zeros(in_features, bool)]
    for node, share in zip(rng.permutation(nodes), shares, strict=True):
        side, index = (0, node) if node < out_features else (1, node - out_features)
        arrived[side][index] = True
        _attach(mask_NK if side == 0 else mask_NK.T, index, share, arrived[1 - side], rng)
    _complete(mask_NK, links, rng)
    return mask_NK


def _attach(
    mask_AB: NDArray[np.bool_], node: int, share: int, arrived_B: NDArray[np.bool_], rng: np.random.Generator
) -> None:
    """Link `node` of the first axis to `share` nodes of the second, in place."""
    candidates = np.flatnonzero(arrived_B & ~mask_AB[node])
    weights = 1.0 + mask_AB[:, candidates].sum(axis=0)
    race = rng.standard_exponential(len(candidates)) / weights
    mask_AB[node, candidates[np.argsort(race)[:share]]] = True


def _complete(mask_NK: NDArray[np.bool_], links: int, rng: np.random.Generator) -> None:
    """Add links by preference until there are `links`, in place."""
    weights_NK = np.outer(1.0 + mask_NK.sum(axis=1), 1.0 + mask_NK.sum(axis=0))
    race_NK = rng.standard_exponential(mask_NK.shape) / weights_NK
    race_NK[mask_NK] = np.inf
    missing = links - int(mask_NK.sum())
    if missing > 0:
        mask_NK.ravel()[np.argpartition(race_NK, missing - 1, axis=None)[:missing]] = True


def correlated(
    out_features: int,
    in_features: int,
    links: int,
    rng: np.random.Generator,
    *,
    inputs: NDArray[np.float32] | None = None,
) -> NDArray[np.bool_]:
    """Correlated sparse topological initialisation (CSTI; ICLR 2024, openreview iayEcORsGd).

    The layer's inputs repeat the F features of the samples, and so do its outputs: node n stands for feature n modulo
    F. A node is linked to those whose features correlate most with its own, in absolute value, over all of the layer;
    not to its own feature. Features that never change correlate with none; ties are settled at random.

    Args:
        out_features: N.
        in_features: K.
        links: how many.
        rng: settles ties.
        inputs: float [T, F], the data, where K is a multiple of F.

    Raises:
        InputError: no inputs, or a number of features that K is not a multiple of.
    """
    if inputs is None:
        raise InputError("topology.kind 'csti' needs the data that the layer sees; give it as `inputs`")
    samples_TF = np.asarray(inputs, np.float64)
    if samples_TF.ndim != 2 or len(samples_TF) < 2 or in_features % samples_TF.shape[1]:
        raise InputError(f"topology 'csti': inputs of shape {samples_TF.shape} for a layer of {in_features} inputs")
    centred_TF = samples_TF - samples_TF.mean(axis=0)
    norm_F = np.sqrt((centred_TF**2).sum(axis=0))
    centred_TF /= np.where(norm_F > 1e-12, norm_F, np.inf)
    correlation_FF = np.abs(centred_TF.T @ centred_TF)
    np.fill_diagonal(correlation_FF, 0)
    features = len(correlation_FF)
    tiled_NK = correlation_FF[np.arange(out_features)[:, None] % features, np.arange(in_features) % features]
    keys_NK = tiled_NK + 1e-9 * rng.random(tiled_NK.shape)
    mask_NK = np.zeros((out_features, in_features), bool)
    mask_NK.ravel()[np.argpartition(-keys_NK, links - 1, axis=None)[:links]] = True
    return mask_NK
