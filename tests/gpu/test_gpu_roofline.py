"""The model of when a form wins: it must count what the packed tensors hold, and follow from its own bounds."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import hebbline

pytest.importorskip("triton", reason="the Triton language is not installed: pip install 'hebbline[gpu-build]'")

from hebbline.kernels.gpu.packing import PACKERS, gap_padding, pack_block
from hebbline.kernels.gpu.roofline import (
    GPUS,
    Layer,
    predict,
    prediction_table,
    random_gap_padding,
    random_layer,
    random_residual_share,
    weight_bytes,
)


def make(density, size=(512, 1024)):
    rng = np.random.default_rng(0)
    mask = rng.random(size) < density
    weight = np.where(mask, 1, 0).astype(ml_dtypes.bfloat16)
    residual = PACKERS["nm24"](weight, mask).tensors["residual_values"].size / mask.sum()
    return weight, mask, Layer(*size, mask.mean(), 1.0, residual, gap_padding(mask))


@pytest.mark.parametrize("density", [0.05, 0.3])
@pytest.mark.parametrize("form", ["gap", "bitmask", "csr", "block", "nm24"])
def test_the_bytes_are_those_of_the_packed_tensors(form, density):
    weight, mask, layer = make(density)
    assert weight_bytes(form, layer) == pytest.approx(PACKERS[form](weight, mask).bytes, rel=0.015)
    assert weight_bytes("dense", layer) == weight.nbytes


def test_whole_blocks_are_counted_once():
    active = np.random.default_rng(0).random((16, 32)) < 0.25
    mask = np.kron(active, np.ones((32, 32), bool))
    packed = pack_block(mask.astype(np.float16), mask)
    assert weight_bytes("block", Layer(*mask.shape, active.mean(), active.mean(), 0, 0)) == pytest.approx(
        packed.bytes, rel=0.01
    )


def test_the_residual_of_a_random_mask():
    for density in (0.05, 0.3):
        assert make(density, (2048, 2048))[2].residual_share == pytest.approx(random_residual_share(density), rel=0.1)
        assert gap_padding(make(density)[1]) == pytest.approx(random_gap_padding(density, 1024), rel=0.05)
    assert random_gap_padding(0, 8) == 0
    assert random_residual_share(0) == 0 and random_residual_share(1) == 0.5


def test_a_prediction_is_its_largest_bound():
    layer = random_layer(4096, 4096, 0.1)
    for form in ("dense", "gap", "bitmask", "csr", "block", "nm24"):
        for tokens in (1, 64, 2048):
            found = predict(form, layer, tokens, GPUS["A100"])
            bounds = {"memory": found.memory_seconds, "tensor": found.tensor_seconds, "issue": found.issue_seconds}
            assert found.seconds == max(bounds.values()) == bounds[found.bound]
    assert predict("dense", layer, 1, GPUS["L4"]).bound == "memory"
    assert predict("dense", layer, 8192, GPUS["L4"]).bound == "tensor"
    # 33.6 MB over 2.039 TB/s.
    assert predict("dense", layer, 1, GPUS["A100"]).seconds == pytest.approx(16.46e-6, rel=1e-2)


def test_the_table_has_a_line_for_each_case():
    lines = prediction_table(GPUS["H100"]).splitlines()
    assert len(lines) == 2 + 4 * 5 and all(line.count("|") == 9 for line in lines)


def test_the_documented_predictions_are_those_of_the_model():
    page = (Path(hebbline.__file__).parent / "docs/gpu/README.md").read_text()
    for gpu in GPUS.values():
        assert prediction_table(gpu) in page
