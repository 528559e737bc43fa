"""The benchmark of whole models, on a model that takes seconds."""

import json

import onnx
import pytest

from hebbline.artifacts import CheckError
from hebbline.benchmarks import builds
from hebbline.benchmarks import model as bench
from hebbline.benchmarks.builds import bytes_a_token
from hebbline.benchmarks.variants import BASELINE, VARIANTS, graph_file
from hebbline.cli import main


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    """Numbers of a benchmark are not tested; that they are made is."""
    monkeypatch.setattr(bench, "ROUNDS", 1)


def test_every_variant_of_a_model_directory(tiny_model_directory, tmp_path, capsys):
    options = ["--context", "20", "--prefill", "16", "--batches", "1,3", "--docs", str(tmp_path), "--json"]
    assert main(["bench", "model", str(tiny_model_directory), *options]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["variant"]: row for row in document["rows"]}
    assert set(rows) == set(VARIANTS)
    assert rows[BASELINE]["ratios"] == {"prefill 16": 1, "decode 1": 1, "decode 3": 1}
    assert (
        rows["sparse int8"]["bytes_a_token"] < rows["sparse float32"]["bytes_a_token"] < rows[BASELINE]["bytes_a_token"]
    )
    for row in rows.values():
        assert set(row["decode"]) == {"1", "3"}
        assert min(row["prefill"], *row["decode"].values(), row["resident_bytes"], row["roofline"]) > 0
        assert row["share"] == pytest.approx(row["decode"]["1"] / row["roofline"])
    assert "| sparse int4 |" in (tmp_path / "performance.md").read_text()


def test_a_named_size_is_built_at_its_shape(tmp_path, monkeypatch):
    """A tied lm_head is the embedding everywhere, with quantised weights of its own in the dense low-bit forms."""
    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    tied = {**size, "num_key_value_heads": 2, "vocab_size": 128, "tie_word_embeddings": True}
    monkeypatch.setitem(builds.SIZES, "tiny-tied", tied)
    source = builds.load_model("tiny-tied", 0.3, 32)
    assert "lm_head" not in source.masks and len(source.masks) == 7
    shares = [mask.mean() for mask in source.masks.values()]
    assert min(shares) == pytest.approx(0.3, abs=0.02) and max(shares) == pytest.approx(0.3, abs=0.02)
    variants = [VARIANTS[name] for name in ("dense 4-bit", "sparse float32", "sparse float32 int8-head")]
    assert len(list(builds.build_variants(source, variants, tmp_path))) == 3
    heads = [onnx.load(graph_file(tmp_path, variant)).graph.node[-1] for variant in variants]
    assert [head.op_type for head in heads] == ["MatMulNBits", "DenseHead", "ShortlistHead"]
    assert heads[1].input[1] == heads[2].input[3] == "model.embed_tokens.weight"


def test_bytes_a_token_count_what_a_step_reads(tiny_artifact, tiny_model_directory):
    """Tied embeddings are lm_head too, and read whole; the rotary tables are not."""
    without_cache = bytes_a_token(tiny_artifact / "model.onnx", 0, 10)
    assert bytes_a_token(tiny_artifact / "model.onnx", 7, 10) == without_cache + 70
    data = (tiny_artifact / "model.onnx.data").stat().st_size
    assert 0.8 * data < without_cache < data


def test_a_worker_that_dies_is_reported(tmp_path):
    """A graph that is not there ends the worker; the parent says whose."""
    case = bench.ModelCase("llama-60m")
    facts = bench.LanguageModelFacts(128, 320, 2, 2, 16)
    worker = bench.Worker(VARIANTS[BASELINE], tmp_path / "nothing.onnx", facts, case)
    with pytest.raises(Exception, match="cannot load it") as caught, worker:
        pass
    assert isinstance(caught.value, CheckError | bench.InputError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing"], "neither a directory nor one of llama-60m"),
        (["llama-60m", "--density", "0"], "--density 0.0 is outside (0, 1]"),
        (["llama-60m", "--variants", "quick"], "'quick' is none of"),
        (["llama-60m", "--batches", "0"], "must be at least 1"),
    ],
)
def test_bad_options_are_named(options, message, capsys):
    assert main(["bench", "model", *options]) == 2
    assert message in capsys.readouterr().err
