import authors
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hebbline.artifacts import InputError
from hebbline.train.topology import initial_mask, link_scores

sizes = st.integers(1, 40)


@settings(deadline=None)
@given(sizes, sizes, st.floats(0.01, 1), st.sampled_from([0, 0.25, 1]), st.sampled_from(["fixed", "uniform"]))
def test_brf_has_exactly_the_links_asked_for(out_features, in_features, density, r, degrees):
    mask = initial_mask("brf", out_features, in_features, density, seed=0, r=r, degrees=degrees)
    assert mask.shape == (out_features, in_features) and mask.dtype == torch.bool
    assert int(mask.sum()) == max(1, round(density * out_features * in_features))


@settings(deadline=None)
@given(sizes, sizes, st.floats(0.01, 1))
def test_random_graph_has_exactly_the_links_asked_for(out_features, in_features, density):
    mask = initial_mask("er", out_features, in_features, density, seed=0)
    assert int(mask.sum()) == max(1, round(density * out_features * in_features))


@pytest.mark.parametrize("shape", [(64, 160), (160, 64)])
def test_fixed_degrees_of_the_smaller_side_differ_by_one_at_most(shape):
    mask = initial_mask("brf", *shape, 0.1, seed=0, r=0.5, degrees="fixed")
    degrees = mask.sum(dim=int(np.argmax(shape)))
    assert int(degrees.max() - degrees.min()) <= 1


def test_uniform_degrees_vary_but_leave_no_node_without_a_link():
    degrees = initial_mask("brf", 64, 160, 0.1, seed=0, r=0.5, degrees="uniform").sum(dim=1)
    assert int(degrees.min()) >= 1
    assert int(degrees.max() - degrees.min()) > 4


def mean_ring_distance(mask):
    rows, columns = torch.nonzero(mask, as_tuple=True)
    centres = (rows + 0.5) * mask.shape[1] / mask.shape[0] - 0.5
    straight = (centres - columns).abs()
    return float(torch.minimum(straight, mask.shape[1] - straight).mean())


def test_r_goes_from_nearest_to_anywhere():
    distances = [mean_ring_distance(initial_mask("brf", 60, 90, 0.2, seed=0, r=r)) for r in (0, 0.25, 0.5, 1)]
    assert distances == sorted(distances)
    assert distances[0] < 4.6  # 18 nearest of 90 places: 0.5 to 8.5 on both sides
    assert 21 < distances[-1] < 24  # anywhere on a ring of 90


def test_first_links_follow_the_stated_law():
    """With one link a node, its distance has probability proportional to (1 + distance)^-alpha."""
    mask = initial_mask("brf", 4000, 4000, 1 / 4000, seed=1, r=0.4)
    rows, columns = torch.nonzero(mask, as_tuple=True)
    straight = (rows - columns).abs()
    distance = torch.minimum(straight, 4000 - straight).numpy()
    law = (1 + np.minimum(np.arange(4000), 4000 - np.arange(4000))) ** -(0.6 / 0.4)
    expected = np.array([law[0], 2 * law[1], 2 * law[2]]) / law.sum()
    found = np.array([(distance == d).mean() for d in range(3)])
    np.testing.assert_allclose(found, expected, atol=0.025)


def test_seed_decides():
    first, again, other = (initial_mask("brf", 30, 40, 0.3, seed=seed, r=0.5) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("lattice", {}, "topology.kind 'lattice'"),
        ("brf", {"r": 1.5}, "topology.r 1.5"),
        ("brf", {"degrees": "odd"}, "topology.degrees 'odd'"),
        ("er", {"r": 0.5}, "topology 'er'"),
    ],
)
def test_bad_parameters_are_named(kind, parameters, message):
    with pytest.raises(InputError, match=message):
        initial_mask(kind, 4, 4, 0.5, seed=0, **parameters)


def test_density_outside_its_range_is_refused():
    for density in (0, -0.1, 1.01):
        with pytest.raises(InputError, match="outside"):
            initial_mask("er", 4, 4, density, seed=0)


@pytest.mark.parametrize("kind", ["CH2_L3n", "CH3_L3n"])
def test_scores_agree_with_the_authors_code(kind):
    assert len(authors.cases(kind)) == 4
    for case in authors.cases(kind):
        scores = link_scores(torch.from_numpy(authors.mask_of(f"{case}/mask")), kind)
        authors.assert_agrees(scores.numpy(), f"{case}/{kind}", rtol=1e-5, atol=1e-6)


def test_score_of_a_path_by_hand():
    """One path of length 3: out 0 - in 0 - out 1 - in 1. It scores the absent link from out 0 to in 1."""
    mask = torch.tensor([[True, False], [True, True]])
    # The outputs share one neighbour, and out 1 has one more link: S = (1 + 1) / 1 for CH2, 1 / 1 for CH3.
    # The inputs are alike by symmetry, and the score adds both.
    assert link_scores(mask, "CH3_L3n")[0, 1] == 2
    assert link_scores(mask, "CH2_L3n")[0, 1] == 4


def test_unknown_score_is_refused():
    with pytest.raises(InputError, match="CH9"):
        link_scores(torch.ones(2, 2, dtype=torch.bool), "CH9")
