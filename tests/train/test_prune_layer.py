"""Methods that prune one layer: exact links, structures, and errors that stand in the order they must."""

import numpy as np
import pytest
import torch

from hebbline.artifacts import CheckError, InputError
from hebbline.artifacts.scales import group_count, group_width
from hebbline.export.layouts.values import VALUE_TYPES, Places
from hebbline.train.prune.alps import refine
from hebbline.train.prune.gram import damped, relative_error
from hebbline.train.prune.methods import METHODS
from hebbline.train.prune.rounding import round_links
from hebbline.train.prune.selection import select
from hebbline.train.topology.initial import link_count
from hebbline.train.topology.structure import Structure

N, K = 32, 64
STRUCTURES = {
    "unstructured": (Structure(), 0.43),
    "2:4": (Structure("2:4"), 0.5),
    "2:4 below": (Structure("2:4"), 0.37),
    "block": (Structure("block", 8), 0.4),
}


def make_layer(seed=0, dead=()):
    """A weight [N, K], and the Gram matrix of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mixing_KK = torch.randn(K, K, generator=generator) / 4 + torch.eye(K)
    inputs_TK = torch.randn(400, K, generator=generator) @ mixing_KK
    inputs_TK[:, list(dead)] = 0
    return torch.randn(N, K, generator=generator) / 8, inputs_TK.T @ inputs_TK / 400


def prune(method, structure, density, weight_NK, gram_KK):
    units = link_count(*structure.grid(*weight_NK.shape), density)
    pruned_NK, mask_NK = METHODS[method](weight_NK, damped(gram_KK, 0.01, "layer"), units, structure)
    return pruned_NK, mask_NK, units * structure.side**2


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("method", METHODS)
def test_links_are_exact_and_legal(method, structure):
    kind, density = STRUCTURES[structure]
    weight_NK, gram_KK = make_layer()
    before = weight_NK.clone()
    pruned_NK, mask_NK, links = prune(method, kind, density, weight_NK, gram_KK)
    assert mask_NK.dtype == torch.bool and int(mask_NK.sum()) == links
    assert kind.is_legal(mask_NK)
    assert not pruned_NK[~mask_NK].any() and torch.isfinite(pruned_NK).all()
    assert torch.equal(weight_NK, before)
    again_NK, mask_again_NK, _ = prune(method, kind, density, weight_NK, gram_KK)
    assert torch.equal(pruned_NK, again_NK) and torch.equal(mask_NK, mask_again_NK)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_better_methods_lose_less_of_the_output(structure):
    kind, density = STRUCTURES[structure]
    errors = dict.fromkeys(METHODS, 0.0)
    for seed in range(5):
        weight_NK, gram_KK = make_layer(seed)
        for method in METHODS:
            errors[method] += relative_error(weight_NK, prune(method, kind, density, weight_NK, gram_KK)[0], gram_KK)
    assert errors["alps"] < errors["sparsegpt"] < min(errors["wanda"], errors["magnitude"])


def test_sparsegpt_is_the_definition_in_float64():
    """Column by column on one strip: choose on updated weights, and solve for what the rest should become."""
    weight_NK, gram_KK = make_layer(3)
    gram = damped(gram_KK, 0.01, "layer")
    pruned_NK, mask_NK, _ = prune("sparsegpt", Structure(), 0.5, weight_NK, gram_KK)
    expected_NK, rest = weight_NK.double().numpy().copy(), gram.matrix_KK.double().numpy()
    mask = mask_NK.numpy()
    for column in range(K):
        # The best change of the later columns for an error in this one, with all earlier ones fixed.
        tail = rest[column:, column:]
        inverse = np.linalg.inv(tail)
        lost = np.where(mask[:, column], 0, expected_NK[:, column])
        expected_NK[:, column:] -= np.outer(lost / inverse[0, 0], inverse[0])
    np.testing.assert_allclose(pruned_NK.numpy(), np.where(mask, expected_NK, 0), atol=2e-5)


def test_refined_weights_are_least_squares_on_the_links():
    weight_NK, gram_KK = make_layer(1)
    mask_NK = select(weight_NK.abs(), N * K // 2, Structure())
    found_NK = refine(weight_NK * mask_NK, weight_NK, gram_KK, mask_NK, 200)
    gram, weight = gram_KK.double().numpy(), weight_NK.double().numpy()
    for row in range(N):
        links = np.flatnonzero(mask_NK[row].numpy())
        best = np.linalg.solve(gram[np.ix_(links, links)], gram[links] @ weight[row])
        np.testing.assert_allclose(found_NK[row, links].numpy(), best, atol=1e-3)


def test_dead_inputs_and_singular_matrices_are_damped_and_counted():
    weight_NK, gram_KK = make_layer(dead=[3, 40])
    gram = damped(gram_KK, 0.01, "layer")
    assert gram.dead == 2 and gram.damping == 0.01
    for method in ("alps", "sparsegpt", "wanda"):
        pruned_NK, mask_NK, _ = prune(method, Structure(), 0.5, weight_NK, gram_KK)
        assert torch.isfinite(pruned_NK).all()
        assert not mask_NK[:, [3, 40]].any()
    ones_KK = torch.ones(K, K)
    raised = damped(ones_KK, 1e-12, "layer")
    assert 1e-12 < raised.damping < 1e-3
    with pytest.raises(CheckError, match=r"layer 'one': .*cannot be factored"):
        damped(torch.full((K, K), torch.nan), 0.01, "one")


@pytest.mark.parametrize("values", ["int8", "int4"])
@pytest.mark.parametrize("columns", [64, 200])
def test_rounded_links_are_what_export_stores(values, columns):
    generator = torch.Generator().manual_seed(columns)
    inputs_TK = torch.randn(600, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    gram_KK = inputs_TK.T @ inputs_TK / 600
    weight_NK = torch.randn(48, columns, generator=generator)
    mask_NK = select(weight_NK.abs(), 48 * columns // 2, Structure())
    weight_NK *= mask_NK
    rounded_NK = round_links(weight_NK, damped(gram_KK, 0.01, "layer").matrix_KK, mask_NK, values)
    assert torch.equal(rounded_NK != 0, mask_NK)
    places = Places(*np.nonzero(mask_NK.numpy()), (48, columns))
    stored_S = rounded_NK[mask_NK].numpy()
    decoded_S = VALUE_TYPES[values].decode(VALUE_TYPES[values].encode(stored_S, places), places)
    np.testing.assert_allclose(decoded_S, stored_S, rtol=1e-6)
    plain_S = VALUE_TYPES[values].decode(VALUE_TYPES[values].encode(weight_NK[mask_NK].numpy(), places), places)
    plain_NK = torch.zeros_like(weight_NK)
    plain_NK[mask_NK] = torch.from_numpy(plain_S)
    better = relative_error(weight_NK, rounded_NK, gram_KK)
    assert 0 < better < 0.8 * relative_error(weight_NK, plain_NK, gram_KK)


def test_groups_of_scales_are_multiples_of_64_columns():
    assert group_count((48, 576), 48 * 288) == 9 and group_width(576, 9) == 64
    assert group_count((4, 100), 8) == 1 and group_width(100, 1) == 128


def test_a_structure_that_a_layer_does_not_admit_is_named():
    with pytest.raises(InputError, match=r"'2:4' in layer 'x' \(4x8\): a density of 0\.6 is infeasible"):
        Structure("2:4").check("x", 4, 8, 0.6)
