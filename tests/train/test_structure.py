"""Structures: initial graphs and choices stay legal, and what comes out packs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hebbline.artifacts import InputError
from hebbline.export.layouts.block import BlockLayout
from hebbline.export.layouts.nm24 import Nm24Layout
from hebbline.train.dynamics import regrow_links
from hebbline.train.dynamics.sampling import generator_for
from hebbline.train.topology import Structure, initial_mask, link_scores
from hebbline.train.topology.families import correlated

KINDS = {"brf": {"r": 0.25}, "bsw": {"beta": 0.3}, "bsf": {}, "er": {}, "csti": {}}
INPUTS = np.random.default_rng(0).standard_normal((50, 24)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(40, 24), (16, 48)])
@pytest.mark.parametrize("density", [0.02, 0.2, 0.5])
@pytest.mark.parametrize("structure", [Structure(), Structure("2:4"), Structure("block", 4)])
def test_initial_graphs_are_legal_and_exact(kind, shape, density, structure):
    parameters = {"inputs": INPUTS} if kind == "csti" else KINDS[kind]
    mask, again, other = (
        initial_mask(kind, *shape, density, seed=seed, structure=structure, **parameters) for seed in (1, 1, 2)
    )
    units = shape[0] * shape[1] // structure.side**2
    assert int(mask.sum()) == max(1, round(density * units)) * structure.side**2
    assert structure.is_legal(mask) and mask.shape == shape
    assert torch.equal(mask, again)
    assert kind == "csti" or not torch.equal(mask, other) or density == 0.02


def test_legal_receptive_fields_stay_local():
    free = initial_mask("brf", 40, 80, 0.25, seed=0, r=0.0)
    legal = initial_mask("brf", 40, 80, 0.25, seed=0, r=0.0, structure=Structure("2:4"))
    assert torch.equal(free.sum(dim=1), legal.sum(dim=1)), "rows keep their degrees"
    rows, columns = torch.nonzero(legal, as_tuple=True)
    distance = ((rows + 0.5) * 2 - 0.5 - columns).abs()
    assert float(torch.minimum(distance, 80 - distance).max()) <= 24, "twice as wide as the 20 nearest, at most"


masks = st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**31), st.floats(0, 0.5)).map(
    lambda t: initial_mask("er", t[0], 4 * t[1], max(t[3], 0.01), seed=t[2], structure=Structure("2:4"))
)


@settings(deadline=None)
@given(masks, st.floats(0, 1), st.sampled_from(["soft", "top"]), st.booleans())
def test_grouped_regrowth_is_legal_and_exact(mask, share, rule, scoreless):
    room = mask.numel() // 2 - int(mask.sum())
    scores = torch.zeros(mask.shape) if scoreless else torch.rand(mask.shape)
    count = int(share * room)
    grown = regrow_links(scores, mask, count, rule=rule, temperature=1, generator=generator_for(0), grouped=True)
    assert int(grown.sum()) == int(mask.sum()) + count and not (mask & ~grown).any()
    assert Structure("2:4").is_legal(grown)


def test_grouped_regrowth_takes_the_best_that_fit():
    mask = torch.tensor([[True, False, False, False, False, False, False, False]])
    scores = torch.tensor([[0.0, 9.0, 8.0, 7.0, 1.0, 2.0, 3.0, 0.0]])
    grown = regrow_links(scores, mask, 3, rule="top", temperature=1, generator=generator_for(0), grouped=True)
    assert torch.nonzero(grown[0]).flatten().tolist() == [0, 1, 5, 6]


def test_blocks_are_scored_and_packed_as_nodes():
    structure = Structure("block", 8)
    mask = initial_mask("er", 64, 96, 0.3, seed=0, structure=structure)
    grid = structure.fold_mask(mask)
    assert grid.shape == (8, 12) and torch.equal(structure.unfold(grid), mask)
    assert link_scores(grid, "CH3_L3n").shape == (8, 12)
    layout = BlockLayout(block_size=8)
    weight = np.random.default_rng(0).standard_normal(mask.shape, np.float32) * mask.numpy()
    decoded, decoded_mask = layout.decode(layout.encode(weight, mask.numpy()), mask.shape[1])
    assert np.array_equal(decoded, weight) and np.array_equal(decoded_mask, mask.numpy())


def test_two_of_four_packs_without_a_residual():
    mask = initial_mask("brf", 32, 64, 0.5, seed=0, r=0.25, structure=Structure("2:4"))
    weight = np.random.default_rng(0).standard_normal(mask.shape, np.float32) * mask.numpy()
    layout = Nm24Layout()
    decoded, _ = layout.decode(layout.encode(weight, mask.numpy()), mask.shape[1])
    assert np.array_equal(decoded, weight)


def test_correlated_inputs_are_linked():
    """Features in pairs that move together: feature 2i with 2i + 1. An idle feature is linked last."""
    rng = np.random.default_rng(0)
    causes = rng.standard_normal((500, 6))
    inputs = np.repeat(causes, 2, axis=1) + 0.1 * rng.standard_normal((500, 12))
    mask = correlated(12, 12, 12, rng, inputs=inputs)
    assert set(zip(*np.nonzero(mask), strict=True)) == {(i, i ^ 1) for i in range(12)}
    tiled = correlated(24, 12, 24, rng, inputs=inputs)
    assert np.array_equal(tiled, np.concatenate([mask, mask]))
    inputs[:, 0] = 3.0
    assert not correlated(12, 12, 10, rng, inputs=inputs)[0].any()
    for bad in (None, inputs[:1], inputs[:, :5]):
        with pytest.raises(InputError, match="csti"):
            correlated(12, 12, 10, rng, inputs=bad)


@pytest.mark.parametrize("beta", [-0.1, 1.5])
def test_rewiring_is_a_probability(beta):
    with pytest.raises(InputError, match=r"topology\.beta"):
        initial_mask("bsw", 8, 8, 0.5, seed=0, beta=beta)


def test_rewiring_moves_as_many_links_as_asked_for_and_keeps_degrees():
    lattice, rewired = (initial_mask("bsw", 100, 200, 0.05, seed=0, beta=beta) for beta in (0.0, 0.3))
    assert torch.equal(lattice.sum(dim=1), rewired.sum(dim=1))
    assert 0.25 < float((lattice & ~rewired).sum() / lattice.sum()) < 0.35
