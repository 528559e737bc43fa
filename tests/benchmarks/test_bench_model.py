"""The benchmark of whole models, on a model that takes seconds."""

import json
import signal
import time
from functools import partial

import onnx
import pytest

from hebbline.artifacts import CheckError, InputError, LanguageModelFacts
from hebbline.benchmarks import builds
from hebbline.benchmarks import model as bench
from hebbline.benchmarks.builds import bytes_a_token
from hebbline.benchmarks.model import ModelCase, run_model
from hebbline.benchmarks.processes import Helper
from hebbline.benchmarks.variants import BASELINE, VARIANTS
from hebbline.benchmarks.worker import READY, open_worker
from hebbline.cli import main
from hebbline.kernels.isa import kernels_isa


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    """Numbers of a benchmark are not tested; that they are made is."""
    monkeypatch.setattr(bench, "ROUNDS", 1)


def test_every_variant_of_a_model_directory(tiny_model_directory, tmp_path, capsys):
    options = ["--context", "20", "--prefill", "16", "--batches", "1,3", "--docs", str(tmp_path), "--json"]
    assert main(["bench", "model", str(tiny_model_directory), *options]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["variant"]: row for row in document["rows"]}
    assert list(rows) == list(VARIANTS) and document["left_out"] == 0
    assert {row["isa"] for row in rows.values()} == {kernels_isa()}
    assert rows[BASELINE]["ratios"] == {"prefill 16": 1, "decode 1": 1, "decode 3": 1}
    assert (
        rows["sparse int8"]["bytes_a_token"] < rows["sparse float32"]["bytes_a_token"] < rows[BASELINE]["bytes_a_token"]
    )
    for row in rows.values():
        assert set(row["decode"]) == {"1", "3"}
        assert min(row["prefill"], *row["decode"].values(), row["resident_bytes"], row["roofline"]) > 0
        assert row["share"] == pytest.approx(row["decode"]["1"] / row["roofline"])
    page = (tmp_path / "performance.md").read_text()
    assert f"kernels on {kernels_isa()};" in page
    lines = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith(("| dense", "| sparse"))]
    assert sorted(lines) == sorted(VARIANTS) and [line.split()[0] for line in lines] == ["dense"] * 3 + ["sparse"] * 5


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
    builds.mask_weights(source)
    heads = [onnx.load(builds.build_variant(source, variant, tmp_path)).graph.node[-1] for variant in variants]
    assert [head.op_type for head in heads] == ["MatMulNBits", "DenseHead", "ShortlistHead"]
    assert heads[1].input[1] == heads[2].input[3] == "model.embed_tokens.weight"


def test_bytes_a_token_count_what_a_step_reads(tiny_artifact, tiny_model_directory):
    """Tied embeddings are lm_head too, and read whole; the rotary tables are not."""
    without_cache = bytes_a_token(tiny_artifact / "model.onnx", 0, 10)
    assert bytes_a_token(tiny_artifact / "model.onnx", 7, 10) == without_cache + 70
    data = (tiny_artifact / "model.onnx.data").stat().st_size
    assert 0.8 * data < without_cache < data


def test_a_worker_that_cannot_load_says_why(tmp_path):
    """A graph that is not there ends the worker; the parent says whose."""
    facts = LanguageModelFacts(128, 320, 2, 2, 16)
    arguments = (VARIANTS[BASELINE], tmp_path / "nothing.onnx", facts, 1, 20, 1)
    with Helper(BASELINE, open_worker, *arguments) as worker, pytest.raises(InputError, match="cannot load it"):
        worker.ask(READY)


@pytest.mark.parametrize(
    ("number", "message"),
    [(signal.SIGSEGV, "the process of a fault was ended by SIGSEGV"), (signal.SIGKILL, "is there enough memory")],
)
def test_a_process_that_dies_is_reported(number, message):
    with Helper("a fault", partial, signal.raise_signal) as helper, pytest.raises(CheckError, match=message):
        helper.ask(int(number))


def test_a_process_that_does_not_answer_is_reported_and_killed():
    with Helper("sleep", partial, time.sleep) as helper:
        with pytest.raises(CheckError, match="the process of sleep did not answer in"):
            helper.ask(60, 0.1)
        before = time.monotonic()
    assert time.monotonic() - before < 30


def test_a_budget_leaves_variants_out(tiny_model_directory, capsys):
    options = ["--context", "20", "--prefill", "16", "--batches", "3", "--budget", "0.001", "--json"]
    assert main(["bench", "model", str(tiny_model_directory), *options]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert [row["variant"] for row in document["rows"]] == [BASELINE, "sparse float32"]
    assert document["left_out"] == 6 and document["rows"][0]["share"] is None
    assert "--budget 0.001: the time is over, and 6 of 8 rows were left out" in printed.err


def test_files_are_gone_when_a_row_is_there(tiny_model_directory, tmp_path):
    """What was loaded is needed no more, so that little is left should the process be killed."""
    case = ModelCase(str(tiny_model_directory), variants=(BASELINE, "sparse float32"), context=20, prefill=16)
    for _ in run_model(case, tmp_path):
        assert not list(tmp_path.iterdir())


def test_the_baseline_alone_has_a_row(tiny_model_directory, tmp_path):
    case = ModelCase(str(tiny_model_directory), variants=(BASELINE,), context=20, prefill=16, batches=(1,))
    (row,) = run_model(case, tmp_path)
    assert row.variant == BASELINE and set(row.ratios.values()) == {1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing"], "neither a directory nor one of llama-60m"),
        (["llama-60m", "--density", "0"], "--density 0.0 is outside (0, 1]"),
        (["llama-60m", "--variants", "quick"], "'quick' is none of"),
        (["llama-60m", "--batches", "0"], "must be at least 1"),
        (["llama-60m", "--budget", "-3"], "--budget -3: the time must be above 0 seconds"),
    ],
)
def test_bad_options_are_named(options, message, capsys):
    assert main(["bench", "model", *options]) == 2
    assert message in capsys.readouterr().err
