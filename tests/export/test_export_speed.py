"""The speed that an export reports: measured while its graphs are checked."""

import json

from hebbline.export.speed import speed_of
from hebbline.kernels.isa import kernels_isa
from hebbline.runtime.fastest import GraphTimes


def test_the_report_states_what_was_measured(tiny_artifact):
    speed = json.loads((tiny_artifact / "report.json").read_text())["speed"]
    assert speed["isa"] == kernels_isa()
    assert all(speed[name] > 0 for name in ("prompt", "generated", "dense_prompt", "dense_generated"))
    page = (tiny_artifact / "report.html").read_text()
    ratio = speed["prompt"] / speed["dense_prompt"]
    assert "Measured on this machine" in page and f"({ratio:.2f} times as many as dense ONNX Runtime)" in page


def test_words():
    kernels, dense = GraphTimes(prompt=0.032, token=0.01), GraphTimes(prompt=0.064, token=0.03)
    both = speed_of({"model.hebbline.onnx": kernels, "model.onnx": dense})
    assert "at 2,000 tokens a second (2.00 times as many as dense ONNX Runtime), and generates 100 (3.00" in both.words
    alone = speed_of({"model.hebbline.onnx": kernels})
    assert alone.words.endswith("it reads a prompt at 2,000 tokens a second, and generates 100")
    assert speed_of({"model.onnx": dense}) is None
