"""The GPU's training benchmark as far as a CPU goes: models, steps, gradients, rows and the page."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import hebbline
from hebbline.artifacts import InputError
from hebbline.benchmarks import gpu_training
from hebbline.benchmarks.gpu_llama import SHAPES, Llama, LlamaShape
from hebbline.benchmarks.gpu_training import (
    TrainingRow,
    TwoFourLinear,
    TwoFourProduct,
    describe,
    random_masks,
    render,
    time_model,
)

TINY = LlamaShape("tiny", hidden=64, inner=128, layers=1, heads=2, vocabulary=50)
ROOT = Path(hebbline.__file__).parent


def same(weight):
    """In place of torch's 2:4 tensors, which a CPU has not: a dense weight multiplies to the same product."""
    return weight


def test_the_models_are_those_of_the_paper():
    assert [(shape.hidden, shape.inner, shape.layers) for shape in SHAPES] == [
        (512, 1376, 8),
        (768, 2048, 12),
        (2048, 5461, 24),
    ]
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in Llama(shape, 8).layers.parameters()) for shape in SHAPES]
    assert [round(size / 1e6) for size in sizes] == [25, 85, 1208]
    with pytest.raises(ValueError, match="hidden size 64 does not give 3 heads"):
        LlamaShape("odd", 64, 128, 1, 3)


def test_every_row_is_timed():
    rows = time_model(TINY, "cpu", batch=2, tokens=16, rounds=1, pack=same)
    assert [row.what for row in rows] == [
        "masked, 30%",
        "2:4",
        "link scores, all layers",
        "topology update, all layers",
    ]
    assert all(row.seconds > 0 and row.dense_seconds > 0 for row in rows)
    assert rows[1].remark == "7 projections 2:4"


def test_what_torch_does_not_take_is_a_row_with_the_reason():
    """The CPU has no 2:4 tensors; sizes that are no multiple of 64 stay dense."""
    rows = time_model(TINY, "cpu", batch=1, tokens=8, rounds=1)
    assert math.isnan(rows[1].seconds) and ": not timed: " in describe(rows[1])
    odd = LlamaShape("odd", hidden=64, inner=100, layers=1, heads=2, vocabulary=50)
    (row,) = (row for row in time_model(odd, "cpu", batch=1, tokens=8, rounds=1, pack=same) if row.what == "2:4")
    assert row.remark == "4 projections 2:4, 3 dense: sizes are no multiple of 64"


def test_the_layer_is_two_of_four_and_its_gradients_are_those_of_a_dense_one():
    torch.manual_seed(0)
    layer = TwoFourLinear(torch.nn.Linear(64, 64, bias=False), same)
    assert (layer.weight.detach().reshape(-1, 4).count_nonzero(dim=1) == 2).all()
    x, weight = torch.randn(3, 5, 64, requires_grad=True), layer.weight.detach().clone().requires_grad_()
    upstream = torch.randn(3, 5, 64)
    found = torch.autograd.grad(TwoFourProduct.apply(x, weight, same), (x, weight), upstream)
    expected = torch.autograd.grad(functional.linear(x, weight), (x, weight), upstream)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_without_the_library_only_the_update_is_missing(monkeypatch):
    """The draws of an update are the library's; the scores and the steps are torch's."""
    from hebbline.train.native import draws

    def missing():
        raise InputError("libhebbline_train.so is not here; reinstall hebbline, which builds it")

    monkeypatch.setattr(draws, "_functions", missing)
    rows = time_model(TINY, "cpu", batch=1, tokens=8, rounds=1, pack=same)
    assert [math.isnan(row.seconds) for row in rows] == [False, False, False, True]
    assert "libhebbline_train.so is not here" in describe(rows[-1])


def test_masks_have_their_links():
    masks = random_masks(Llama(TINY, 8))
    assert len(masks) == 7 and all(int(mask.sum()) == round(0.3 * mask.numel()) for mask in masks.values())


def test_the_page_has_a_line_for_each_row():
    rows = [
        TrainingRow("LLaMA-60M", "2:4", 0.02, 0.04, "56 projections 2:4"),
        TrainingRow("LLaMA-1B", "2:4", math.nan, math.nan, "OutOfMemoryError: no memory"),
    ]
    page = render("NVIDIA H100", rows)
    assert "- LLaMA-60M, 2:4: 20.0 ms, 0.50 of a dense step (56 projections 2:4)" in page
    assert "- LLaMA-1B, 2:4: not timed: OutOfMemoryError: no memory" in page and page.startswith("# Training on NVIDIA")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has an NVIDIA GPU")
def test_without_a_gpu_it_ends_with_2(capsys, tmp_path):
    assert gpu_training.main(["--docs", str(tmp_path)]) == 2
    assert "sees no NVIDIA GPU" in capsys.readouterr().err and not list(tmp_path.iterdir())
    command = [sys.executable, str(ROOT / "from_source.py"), "benchmarks.gpu_training"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
