"""2:4 by structure, and the builder's log. The logs are written after published ones of TensorRT 8 and 10."""

import numpy as np
import pytest

from hebbline.export.tensorrt.sparsity import illegal_groups, layer_sparsity, parse_sparsity_log

TENSORRT_8 = """\
[11/24/2026-08:00:00] [I] [TRT] Detected 1 inputs and 1 output network tensors.
[11/24/2026-08:00:01] [I] [TRT] (Sparsity) Layers eligible for sparse math: up.output, down.output + down.add
[11/24/2026-08:00:02] [I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: up.output
"""
TENSORRT_10 = """\
[I] (Sparsity) Found 3 layer(s) eligible to use sparse tactics: up.output, down.output, q.output
[I] (Sparsity) Chose 2 layer(s) using sparse tactics: up.output, q.output
[V] Tactic selection, second pass
[I] (Sparsity) Found 2 layer(s) eligible to use sparse tactics: up.output, down.output + down.add
[I] (Sparsity) Chose 1 layer(s) using sparse tactics: up.output
"""
NONE_PICKED = """\
[I] [TRT] (Sparsity) Layers eligible for sparse math: up.output
[I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers:
"""
COUNTS_ONLY = """\
[I] (Sparsity) Found 2 layer(s) eligible to use sparse tactics
[I] (Sparsity) Chose 0 layer(s) using sparse tactics
"""
REGION = "[I] (Sparsity) Found 1 layer(s) eligible to use sparse tactics: {ForeignNode[embedded...logits]}\n"


def two_four_mask(rows, columns):
    mask = np.zeros((rows, columns), bool)
    mask[:, 0::4] = mask[:, 3::4] = True
    return mask


@pytest.mark.parametrize("log", [TENSORRT_8, TENSORRT_10], ids=["TensorRT 8", "TensorRT 10"])
def test_the_last_lists_of_a_log_give_each_layers_verdict(log):
    parsed = parse_sparsity_log(log)
    assert parsed.eligible == ("up.output", "down.output + down.add") and parsed.picked == ("up.output",)
    mask = two_four_mask(512, 512)
    up, down, other = (layer_sparsity(name, mask, f"{name}.output", parsed) for name in ("up", "down", "q"))
    assert (up.eligible, up.picked) == (True, True) and "picked it" in up.reason
    assert (down.eligible, down.picked) == (True, False) and "dense tactic as faster" in down.reason
    assert (other.eligible, other.picked) == (False, False) and "does not count it as eligible" in other.reason
    assert up.two_four and down.two_four and other.two_four


def test_a_log_that_picks_none_is_not_a_log_that_says_nothing():
    layer = layer_sparsity("up", two_four_mask(64, 64), "up.output", parse_sparsity_log(NONE_PICKED))
    assert (layer.eligible, layer.picked) == (True, False) and "fewer than 256 channels" in layer.reason
    silent = layer_sparsity("up", two_four_mask(64, 64), "up.output", parse_sparsity_log("[I] no such lines"))
    assert (silent.eligible, silent.picked) == (None, None) and "does not tell" in silent.reason


def test_counts_without_names_say_what_they_can():
    parsed = parse_sparsity_log(COUNTS_ONLY)
    assert (parsed.eligible_count, parsed.picked_count) == (2, 0)
    layer = layer_sparsity("up", two_four_mask(64, 64), "up.output", parsed)
    assert layer.eligible is None and layer.picked is False


def test_a_region_compiled_as_one_leaves_the_verdict_open():
    assert layer_sparsity("up", two_four_mask(64, 64), "up.output", parse_sparsity_log(REGION)).eligible is None


def test_a_runtime_without_a_log_reports_structure_only():
    layer = layer_sparsity("up", two_four_mask(8, 8), "up.output", None)
    assert layer.two_four and layer.eligible is None and "does not report" in layer.reason


def test_groups_run_along_the_inputs_and_the_short_last_one_counts():
    mask = np.zeros((2, 10), bool)
    mask[0, 1:4] = True  # one illegal group
    mask[1, 3:5] = True  # spread over two groups
    assert illegal_groups(mask) == (6, 1)
    assert "1 groups of 4 inputs" in layer_sparsity("q", np.pad(mask, [(0, 0), (0, 2)]), "q", None).reason
    legal = layer_sparsity("q", np.zeros((2, 10), bool), "q", None)
    assert not legal.two_four and "10 inputs are not a multiple of 4" in legal.reason
    rng = np.random.default_rng(0)
    dense = rng.random((40, 64)) < 0.5
    expected = sum(int(dense[row, start : start + 4].sum() > 2) for row in range(40) for start in range(0, 64, 4))
    assert illegal_groups(dense) == (640, expected)
