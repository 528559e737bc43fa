"""Which layouts are chosen, and what is said and promised of their speed. Nothing is timed."""

import dataclasses
import json
import re

import pytest
from pack_models import K, N, make_model, node, save, sparse, value

from hebbline.artifacts import InputError
from hebbline.cli import main
from hebbline.export import pack
from hebbline.export.forecast import forecast
from hebbline.export.layouts import Aim, choose_layout
from hebbline.export.layouts.choose import CACHE_BYTES
from hebbline.kernels import OVERRIDE
from hebbline.kernels.cost import Work, predicted_speedup
from hebbline.kernels.isa import kernels_isa

AVX512, LARGE = Aim("avx512-amd"), Aim("avx512-amd", CACHE_BYTES + 1)
ISAS = ("scalar", "avx2", "avx2-vnni", "avx512-amd", "amx")


def test_choice_is_the_smallest_and_says_why():
    assert choose_layout(512, 512, round(0.3 * 512**2), aim=AVX512).layout.name == "bitmask"
    assert choose_layout(512, 512, round(0.01 * 512**2), aim=AVX512).layout.name == "csr"
    dense = choose_layout(512, 512, 512**2, aim=AVX512)
    assert dense.layout is None and "left dense" in dense.reason and dense.packed_bytes == dense.dense_bytes
    assert dense.speedup == 1
    choice = choose_layout(512, 512, 26_214, aim=AVX512)
    assert choice.packed_bytes == 512 * 64 + 4 * 26_214 and "bitmask 0.131" in choice.reason
    assert f"{choice.speedup:.1f} times as fast at 1 token, predicted for avx512-amd" in choice.reason


def test_choice_follows_values_objective_and_blocks():
    links = round(0.3 * 2048**2)
    types = ("float32", "bfloat16", "int8")
    speedups = [choose_layout(2048, 2048, links, values=values, aim=LARGE).speedup for values in types]
    assert speedups == sorted(speedups)
    assert choose_layout(2048, 2048, links, values="int4", aim=LARGE).layout.name == "bitmask-int4"
    assert choose_layout(2048, 2048, links, whole_blocks=True, aim=LARGE).layout.name == "block"
    with pytest.raises(ValueError, match="no values 'int2'"):
        choose_layout(1, 1, 1, values="int2")


def test_a_layer_is_left_dense_where_sparse_does_not_pay():
    """At 90% portable code loses, and says so; where bytes are what is asked for, it is packed all the same."""
    links, aim = round(0.9 * 2048**2), Aim("scalar", CACHE_BYTES + 1)
    choice = choose_layout(2048, 2048, links, objective="throughput", aim=aim)
    assert choice.layout is None and choice.speedup == 1
    assert "left dense: bitmask would be 0." in choice.reason and "64 tokens, predicted for scalar" in choice.reason
    assert choose_layout(2048, 2048, links, objective="size", aim=aim).layout.name == "bitmask"


def test_a_model_that_fits_a_cache_is_judged_from_there():
    """Dense weights are read faster from a cache than from memory: what gains from memory may lose there."""
    links = round(0.7 * 768**2)
    assert choose_layout(768, 768, links, aim=LARGE).layout.name == "bitmask"
    choice = choose_layout(768, 768, links, aim=Aim("avx512-amd", CACHE_BYTES))
    assert choice.layout is None and "with weights in the cache" in choice.reason
    assert choose_layout(768, 768, links, aim=AVX512).reason == choice.reason


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("values", ["float32", "bfloat16", "int8", "int4"])
def test_what_is_packed_gains_on_its_instruction_set(isa, values):
    """The promise of every choice is what the cost model predicts for that instruction set, and above 1."""
    for density in (0.01, 0.1, 0.3, 0.5, 0.9):
        links = round(density * 1024**2)
        choice = choose_layout(1024, 1024, links, values=values, aim=Aim(isa, CACHE_BYTES + 1))
        predicted = predicted_speedup(Work(1024, 1024, links, values), 1, isa)
        if choice.layout is None:
            assert choice.speedup == 1 and (predicted <= 1 or choice.packed_bytes == choice.dense_bytes)
        else:
            assert choice.speedup == predicted > 1 and f"predicted for {isa}" in choice.reason


def test_without_the_library_the_smallest_is_taken_and_nothing_promised(monkeypatch):
    monkeypatch.setenv(OVERRIDE, "/nowhere")
    choice = choose_layout(512, 512, 26_214)
    assert choice.layout.name == "bitmask" and choice.speedup is None and "no speed is predicted" in choice.reason
    assert forecast([choice]) is None
    with pytest.raises(InputError, match="no such file"):
        choose_layout(512, 512, 26_214, aim=AVX512)


def test_a_forecast_sums_layers_and_names_where_sparse_does_not_pay():
    gain = choose_layout(2048, 2048, 40_000, aim=LARGE)
    left = choose_layout(2048, 2048, 2048**2, aim=LARGE)
    both = forecast([gain, left], "avx512-amd")
    assert 1 < both.one_token < 2 < gain.speedup and both.layers == 2 and both.dense_layers == 1
    assert "predicted for avx512-amd, on one core" in both.words
    assert "1 of 2 are left dense, where sparse does not pay" in both.words
    none = forecast([left], "avx512-amd")
    assert none.words == "for avx512-amd: sparse does not pay, and all 1 projections are left dense"
    slow = dataclasses.replace(both, many_tokens=0.8)
    assert slow.words.endswith("with 64 tokens sparse does not pay there")
    unknown = forecast([gain], "neon")
    assert not unknown.is_measured and "not measured on hardware" in unknown.words


def test_export_predicts_for_another_machine(tiny_model_directory, tmp_path, capsys):
    out = str(tmp_path / "artifact")
    assert main(["export", str(tiny_model_directory), "--out", out, "--for-isa", "avx2"]) == 0
    assert re.search("speed (predicted )?for avx2", " ".join(capsys.readouterr().err.split()))
    page = (tmp_path / "artifact" / "report.html").read_text()
    assert re.search("[.] (Predicted for|For) avx2", page)
    report = json.loads((tmp_path / "artifact" / "report.json").read_text())
    assert report["forecast"]["isa"] == "avx2" and report["forecast"]["layers"] == len(report["layers"])
    assert main(["export", str(tiny_model_directory), "--out", out, "--for-isa", "avx9"]) == 2
    assert "instruction set 'avx9' is not one of scalar, avx2, avx2-vnni, avx512, amx" in " ".join(
        capsys.readouterr().err.split()
    )


def test_pack_predicts_for_another_machine(tmp_path):
    nodes = [node("MatMul", ["X", "A"], ["Y"])]
    path = save(make_model(nodes, [value("X", "n", K)], [value("Y", "n", N)], {"A": sparse(K, N)}), tmp_path)
    here = pack(path, tmp_path / "here")
    assert {layer.time_unit for layer in here.layers} == {f"us predicted for {kernels_isa()}"}
    there = pack(path, tmp_path / "there", for_isa="amx")
    assert {layer.time_unit for layer in there.layers} == {"us predicted for amx"}
    with pytest.raises(InputError, match="instruction set 'sse' is not one of"):
        pack(path, tmp_path / "nowhere", for_isa="sse")
    with pytest.raises(InputError, match="autotune measures this machine"):
        pack(path, tmp_path / "nowhere", for_isa="amx", autotune=True)
