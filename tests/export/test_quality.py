"""Rounded values are published with their cost in perplexity, and not at any cost."""

import json

import pytest

from hebbline.artifacts import CheckError, read_manifest
from hebbline.export import export_model, quality
from hebbline.export.quality import QualityFigures, Rounding, _check
from hebbline.runtime.onnxruntime import (
    KERNELS_MODEL_FILE,
    MODEL_FILE,
    cache_bytes_per_slot,
    language_model_facts,
)
from hebbline.runtime.opening import open_onnx


@pytest.fixture(autouse=True)
def few_windows(monkeypatch):
    monkeypatch.setattr(quality, "_WINDOWS", 8)


@pytest.mark.parametrize("values", ["bfloat16", "int8", "int4"])
def test_the_report_states_the_cost(tiny_model_directory, tmp_path, values):
    report = export_model(tiny_model_directory, tmp_path / "artifact", values=values)
    written = json.loads((tmp_path / "artifact/report.json").read_text())
    assert written["quality"]["values"] == values
    assert set(written["quality"]["perplexity"]) == {MODEL_FILE, KERNELS_MODEL_FILE}
    assert written["quality"]["cost"] == pytest.approx(report.quality.cost)
    assert 0.8 < report.quality.cost < 1.5
    assert report.quality.perplexity_float32 not in report.quality.perplexity.values(), "something was rounded"
    assert report.parity.greedy_tokens == 64, "the same graphs with exact values passed the gate"
    layouts = {layer.layout for layer in read_manifest(tmp_path / "artifact").layers}
    assert layouts == {f"bitmask-{values}"}
    assert not (tmp_path / "artifact/exact").exists()
    assert "What rounding costs" in (tmp_path / "artifact/report.html").read_text()


def test_exact_exports_have_no_cost(tiny_artifact):
    assert json.loads((tiny_artifact / "report.json").read_text())["quality"] is None


def test_an_int8_lm_head_has_its_cost_measured(tiny_model_directory, tmp_path):
    report = export_model(tiny_model_directory, tmp_path / "artifact", lm_head="int8")
    assert report.quality.lm_head == "int8"
    assert report.quality.cost == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kv_cache", ["bfloat16", "int8"])
def test_a_narrow_cache_has_its_cost_measured_and_is_what_a_runner_takes(tiny_model_directory, tmp_path, kv_cache):
    report = export_model(tiny_model_directory, tmp_path / "artifact", kv_cache=kv_cache)
    assert report.quality.kv_cache == kv_cache
    assert report.quality.cost == pytest.approx(1, abs=0.05)
    exact, narrow = (report.quality.perplexity[file] for file in (MODEL_FILE, KERNELS_MODEL_FILE))
    assert exact == pytest.approx(report.quality.perplexity_float32, rel=1e-5) and narrow != exact
    assert report.parity.full_forward < 1e-4, "parity is that of exact keys and values"
    facts = language_model_facts(tmp_path / "artifact")
    assert facts.kv_cache == kv_cache
    runner = open_onnx(tmp_path / "artifact", slots=2, threads=1)
    assert sum(cache.nbytes for cache in runner._caches) == 2 * cache_bytes_per_slot(facts, kv_cache)


def test_too_high_a_cost_publishes_nothing(tiny_model_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "LARGEST_COST", 0.5)
    with pytest.raises(CheckError, match="choose a more exact type"):
        export_model(tiny_model_directory, tmp_path / "artifact", values="int4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("perplexity", "message"),
    [
        ({"a": 30.0, "b": 10.0}, "values in int8, keys and values in int8 raise the perplexity"),
        ({"a": 10.0, "b": 10.5}, "disagree"),
        ({"a": float("nan")}, "raise"),
    ],
)
def test_the_gate(perplexity, message):
    with pytest.raises(CheckError, match=message):
        rounding = Rounding("int8", "float32", "int8")
        _check(QualityFigures("int8", "float32", "int8", 10.0, perplexity, 100), rounding)
