"""The ways to form the node-based scores, and the path-based ones, against their definitions and the authors'."""

import authors
import numpy as np
import pytest
import torch

from hebbline.train.native.link_scores import native_scores
from hebbline.train.topology import initial_mask, link_scores
from hebbline.train.topology import link_prediction as module
from hebbline.train.topology.link_prediction import NODE_SCORES, PATH_SCORES

WAYS = {
    "float": module._float_scores,
    "links": lambda mask, kind: native(mask, kind, "links"),
    "pairs": lambda mask, kind: native(mask, kind, "pairs"),
    "chosen": link_scores,
}


def native(mask, kind, way, threads=2):
    found = native_scores(mask.numpy(), ch3=kind == "CH3_L3n", threads=threads, way=way)
    if found is None:
        pytest.skip("this processor has no AVX-512F")
    return torch.from_numpy(found)


def definition(mask, kind):
    """In float64, term by term."""

    def similarity(a):
        common = a @ a.T
        linked = common != 0
        external = np.maximum((a.sum(axis=1)[None, :] - common) * linked, 1) - 1
        return ((common + linked) if kind == "CH2_L3n" else linked) / (external + 1)

    a = mask.numpy().astype(np.float64)
    return similarity(a) @ a + (similarity(a.T) @ a.T).T


def hubs(rows, columns, density, seed):
    """Degrees over two orders of magnitude: the widest range of similarities."""
    rng = np.random.default_rng(seed)
    weight = np.outer(rng.pareto(1.0, rows) + 0.05, rng.pareto(1.0, columns) + 0.05)
    keys = rng.standard_exponential((rows, columns)) / weight
    mask = np.zeros(rows * columns, bool)
    mask[np.argsort(keys, axis=None)[: int(density * mask.size)]] = True
    return torch.from_numpy(mask.reshape(rows, columns))


GRAPHS = {
    "random": initial_mask("er", 150, 260, 0.3, seed=0),
    "field": initial_mask("brf", 260, 150, 0.1, seed=0, r=0.1),
    "nearest": initial_mask("brf", 140, 200, 0.3, seed=0, r=0.0),
    "ultra-sparse": initial_mask("er", 300, 200, 0.01, seed=0),
    "hubs": hubs(200, 150, 0.1, 0),
    "full": torch.ones(9, 7, dtype=torch.bool),
    "empty": torch.zeros(9, 7, dtype=torch.bool),
    "one link": torch.eye(6, dtype=torch.bool) & (torch.arange(6) == 2),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", NODE_SCORES)
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_way_gives_the_definition(way, kind, graph):
    mask = GRAPHS[graph]
    found, expected = WAYS[way](mask, kind).double().numpy(), definition(mask, kind)
    absent = ~mask.numpy()
    np.testing.assert_allclose(found[absent], expected[absent], rtol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("way", ["links", "pairs"])
def test_threads_change_no_bit(way):
    mask = GRAPHS["field"]
    assert torch.equal(native(mask, "CH2_L3n", way, threads=1), native(mask, "CH2_L3n", way, threads=3))


@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (64, 5), (65, 513)])
def test_sizes_that_fill_no_block(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4
    np.testing.assert_allclose(native(mask, "CH2_L3n", "pairs"), definition(mask, "CH2_L3n"), rtol=1e-5)
    np.testing.assert_allclose(native(mask, "CH2_L3n", "links"), definition(mask, "CH2_L3n"), rtol=1e-5)


def test_a_mask_in_columns_is_read_as_it_is():
    mask = GRAPHS["random"]
    assert torch.equal(link_scores(mask.T, "CH2_L3n"), link_scores(mask.T.contiguous(), "CH2_L3n"))


def test_without_a_fast_way_the_products_are_dense(monkeypatch):
    monkeypatch.setattr(module, "native_scores", lambda mask_NK, **rest: None)
    mask = GRAPHS["random"]
    np.testing.assert_allclose(link_scores(mask, "CH3_L3n"), definition(mask, "CH3_L3n"), rtol=1e-5)


@pytest.mark.parametrize("kind", PATH_SCORES)
def test_path_scores_agree_with_the_authors_code(kind):
    assert len(authors.cases(kind)) == 3
    for case in authors.cases(kind):
        scores = link_scores(torch.from_numpy(authors.mask_of(f"{case}/mask")), kind)
        authors.assert_agrees(scores.numpy(), f"{case}/{kind}", rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", PATH_SCORES)
@pytest.mark.parametrize("graph", ["hubs small", "full", "empty", "one link"])
def test_path_scores_by_their_definition(kind, graph):
    mask = hubs(14, 23, 0.25, 1) if graph == "hubs small" else GRAPHS[graph]
    expected = np.zeros(mask.shape)
    a = mask.numpy()
    for u in range(a.shape[0]):
        for v in range(a.shape[1]):
            inputs = [x for x in np.flatnonzero(a[u]) if x != v]
            outputs = [x for x in np.flatnonzero(a[:, v]) if x != u]
            between = a[np.ix_(outputs, inputs)]
            for i, b in enumerate(outputs):
                for j, c in enumerate(inputs):
                    if between[i, j]:
                        inside = (1 + between[:, j].sum()) * (1 + between[i].sum())
                        outside = (a[:, c].sum() - between[:, j].sum()) * (a[b].sum() - between[i].sum())
                        expected[u, v] += np.sqrt((inside if kind == "CH2_L3p" else 1) / outside)
    np.testing.assert_allclose(link_scores(mask, kind).numpy(), expected, rtol=1e-5)
    assert torch.equal(link_scores(mask, kind), link_scores(mask.clone(), kind))
    np.testing.assert_allclose(link_scores(mask.T, kind).numpy().T, expected, rtol=1e-5)
