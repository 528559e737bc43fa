import math

import numpy as np
import pytest
import torch

from hebbline.train.report import measure_graphs, training_report
from hebbline.train.topology import initial_mask
from hebbline.train.topology.measures import (
    bipartite_clustering,
    degrees,
    fit_power_law,
    mean_path_length,
    measure,
    overlap,
)
from hebbline.train.training import Trained


def test_clustering_by_hand():
    square = torch.ones(2, 2, dtype=torch.bool)
    assert bipartite_clustering(square) == 1
    path = torch.tensor([[True, False], [True, True]])
    assert bipartite_clustering(path) == 0
    # Two outputs over three inputs, all linked: 3 squares, and each of 6 links is the middle of 1 * 2 paths.
    assert bipartite_clustering(torch.ones(2, 3, dtype=torch.bool)) == pytest.approx(4 * 3 / 12)
    assert math.isnan(bipartite_clustering(torch.eye(3, dtype=torch.bool)))


def test_path_length_by_hand():
    """out 0 - in 0 - out 1 - in 1: from out 0 at 1, 2, 3; from out 1 at 1, 1, 2."""
    path = torch.tensor([[True, False], [True, True]])
    assert mean_path_length(path) == pytest.approx((1 + 2 + 3 + 1 + 1 + 2) / 6)
    assert math.isnan(mean_path_length(torch.zeros(2, 2, dtype=torch.bool)))


def test_power_law_is_found_again():
    rng = np.random.default_rng(0)
    continuous = 2.5 * (1 - rng.random(20000)) ** (-1 / (2.5 - 1))
    fit = fit_power_law(torch.from_numpy(np.round(continuous).astype(np.int64)))
    assert fit.exponent == pytest.approx(2.5, abs=0.1) and fit.distance < 0.03
    assert fit_power_law(torch.full((50,), 7)) is None
    assert fit_power_law(torch.zeros(50, dtype=torch.int64)) is None


def test_families_have_the_properties_that_they_are_named_for():
    shape, density = (120, 160), 0.06
    small_world = measure(initial_mask("bsw", *shape, density, seed=0, beta=0.1))
    random = measure(initial_mask("er", *shape, density, seed=0))
    scale_free = initial_mask("bsf", *shape, density, seed=0)
    assert small_world.small_worldness > 2 > random.small_worldness
    tails = [int(degrees(mask)[0].max()) for mask in (scale_free, initial_mask("er", *shape, density, seed=0))]
    assert tails[0] > 2.5 * tails[1], "hubs"


def test_active_nodes_and_overlap():
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[0, :3] = mask[1, 0] = True
    other = mask.clone()
    other[0, 0], other[3, 4] = False, True
    found = measure(mask, other)
    assert (found.active_outputs, found.active_inputs, found.density) == pytest.approx((0.5, 0.6, 0.2))
    assert found.overlap == overlap(mask, other) == 0.75


def test_report_holds_curves_and_measures_and_stands_alone():
    masks = {"layer <1>": initial_mask("brf", 24, 32, 0.2, seed=0, r=0.25)}
    log = [{"loss": "2.5", "density": 0.2, "step": 1}, {"loss": 2.0, "density": 0.2, "step": 2}]
    log += [{"sparsity/step": 2, "sparsity/itop": 0.3, "sparsity/fraction": 0.1}]
    trained = Trained(masks, {"layer <1>": initial_mask("er", 24, 32, 0.2, seed=0)}, [], log, 1.0)
    page = training_report(
        "model", trained, {"test_accuracy": 0.98}, measure_graphs(trained), "sparsity: {method: chts}"
    )
    assert page.count("data:image/png;base64,") == 3 and "http" not in page
    assert "layer &lt;1&gt;" in page and "small-worldness" in page and "98.00%" in page and "chts" in page


def test_a_report_leaves_out_what_there_is_no_data_for():
    bare = training_report("model", Trained({}, {}, [], [], 1.0), {"tokens": 64}, {"initial": {}, "final": {}}, "")
    assert "A dense model." in bare and "64 tokens a second" in bare and "data:image" not in bare
    assert all(title not in bare for title in ("Course of the training", "Degrees", "Graphs", "Where the links are"))
    point = training_report(
        "model", Trained({}, {}, [], [{"loss": 2.0, "step": 1}], 1.0), {}, {"initial": {}, "final": {}}, "model: {}"
    )
    assert point.count("data:image") == 1 and "Training loss 2.000 at the end." in point
