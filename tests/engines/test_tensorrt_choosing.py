"""Which form a layer of an engine gets, and why: predictions, which no GPU was asked about."""

import numpy as np
import pytest

from hebbline.export.tensorrt.choosing import LEAST_GAIN, choose_form, layer_reports, measured_layer, stay_dense
from hebbline.kernels.gpu.packing import PACKERS
from hebbline.kernels.gpu.roofline import GPUS, predict
from hebbline.runtime.engines import Gpu

A100, L4 = Gpu("NVIDIA A100-SXM4-80GB", "8.0"), Gpu("NVIDIA L4", "8.9")
SHAPE = (768, 2048)


def random_mask(density):
    return np.random.default_rng(0).random(SHAPE) < density


@pytest.mark.parametrize(
    ("gpu", "density", "form"),
    [
        (A100, 0.02, "csr"),
        (A100, 0.1, "gap"),
        (A100, 0.3, "gap"),
        (A100, 0.5, "gap"),
        (A100, 0.7, "dense"),
        (A100, 1.0, "dense"),
        (L4, 0.1, "gap"),
        (L4, 0.5, "bitmask"),
    ],
)
def test_the_fastest_form_is_taken_where_it_gains_enough(gpu, density, form):
    mask = random_mask(density)
    choice, layer = choose_form(mask, gpu), measured_layer(mask)
    assert choice.form == form
    model = GPUS["A100" if gpu is A100 else "L4"]
    seconds = {name: predict(name, layer, 1, model).seconds for name in ("dense", *PACKERS)}
    if form != "dense":
        assert seconds[form] == min(seconds.values()) <= seconds["dense"] / LEAST_GAIN
        weight = mask.astype(np.float16)
        assert choice.bytes == PACKERS[form](weight, mask).bytes < choice.dense_bytes
    else:
        assert min(seconds.values()) > seconds["dense"] / LEAST_GAIN and choice.bytes == choice.dense_bytes


def test_the_reason_names_what_was_predicted():
    choice = choose_form(random_mask(0.3), A100)
    assert choice.form == "gap" and "predicted for A100 (times as fast as dense: gap 2.6" in choice.reason
    assert choice.reason.startswith("gap is the fastest at 1 token") and "92.3% of the links are 2:4" in choice.reason
    assert "at 256 tokens 0." in choice.reason


def test_whole_blocks_are_found():
    active = np.random.default_rng(0).random((24, 64)) < 0.3
    mask = np.kron(active, np.ones((32, 32), bool))
    choice = choose_form(mask, A100)
    assert choice.form == "block" and choice.bytes < choice.dense_bytes / 3


@pytest.mark.parametrize(
    ("gpu", "model"),
    [(Gpu("NVIDIA A10", "8.6"), "L4"), (Gpu("NVIDIA B200", "10.0"), "H100"), (Gpu("NVIDIA A30", "8.0"), "A100")],
)
def test_a_gpu_without_a_model_has_a_stand_in_that_is_named(gpu, model):
    assert f"predicted for {model}, which stands in for {gpu.name}" in choose_form(random_mask(0.1), gpu).reason


def test_sizes_that_the_nodes_do_not_take_stay_dense():
    assert choose_form(np.zeros((1, 70_000), bool), A100).form == "dense"


def test_the_report_has_a_line_for_each_layer():
    masks = {"up": random_mask(0.3), "down": random_mask(0.02)}
    choices = {"up": choose_form(masks["up"], A100), "down": stay_dense(masks["down"], "no plugins")}
    down, up = layer_reports(masks, choices)
    assert (up.name, up.layout, up.out_features, up.in_features) == ("up", "gap", *SHAPE)
    assert up.density == pytest.approx(0.3, abs=0.01) and up.links == masks["up"].sum()
    assert (down.layout, down.bytes) == ("dense", 2 * 768 * 2048) and "no plugins; 100.0% of the links" in down.reason
