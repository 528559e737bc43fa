"""The benchmark of linear layers: what it prints, what it writes, and that it fails where a result is wrong."""

import json

import pytest

from hebbline.benchmarks import linear, timing
from hebbline.benchmarks.machine import describe_machine, read_bandwidth
from hebbline.benchmarks.peers import PeerRow
from hebbline.benchmarks.performance import plot_speedups
from hebbline.benchmarks.timing import interleaved
from hebbline.cli import main

SMALL = ["--shapes", "64x96,40x33", "--densities", "0.3,0.05", "--tokens", "1,3"]
FIELDS = {
    "out_features",
    "in_features",
    "density",
    "tokens",
    "threads",
    "values",
    "layout",
    "us",
    "dense_us",
    "ratio",
    "max_rel_err",
}


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    """Numbers of a benchmark are not tested; that they are made is."""
    monkeypatch.setattr(timing, "SECONDS_A_ROUND", 0.001)


def test_rows_have_the_promised_fields(capsys):
    assert main(["bench", "linear", *SMALL, "--values", "float32,bfloat16,int8,int4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["machine"]["versions"]["onnxruntime"]
    assert len(document["rows"]) == 2 * 2 * 2 * 4
    for row in document["rows"]:
        assert set(row) == FIELDS
        assert row["ratio"] == pytest.approx(row["dense_us"] / row["us"])
        assert row["max_rel_err"] <= linear.LARGEST_ERROR[row["values"]]


def test_page_has_one_section_of_the_same_cases_however_often_it_is_written(tmp_path, capsys):
    (tmp_path / "performance.md").write_text(
        "# Performance\n\nWritten by hand.\n\n<!-- other -->\nkept\n<!-- end of other -->\n"
    )
    for _ in range(2):
        assert main(["bench", "linear", *SMALL, "--values", "float32", "--peers", "--docs", str(tmp_path)]) == 0
    page = (tmp_path / "performance.md").read_text()
    assert page.count("## Linear layers") == 1
    assert page.count("hebbline bench linear --shapes") == 1
    assert "Written by hand." in page
    assert "kept" in page
    assert "onnxruntime 4-bit weights" in page
    assert not list(tmp_path.glob("*.png"))  # two densities make no line
    others = ["--shapes", "32x48", "--densities", "0.3,0.1,0.05", "--tokens", "1", "--threads", "1,2"]
    assert main(["bench", "linear", *others, "--values", "int8", "--docs", str(tmp_path)]) == 0
    page = (tmp_path / "performance.md").read_text()
    assert page.count("## Linear layers") == 2
    assert "## Linear layers, 32x48; 1 and 2 threads" in page
    assert page.count("x one thread") == 3
    assert (tmp_path / "performance-linear-32x48-1.png").read_bytes().startswith(b"\x89PNG")


def test_any_number_of_peers_is_drawn(tmp_path):
    case = {"out_features": 64, "in_features": 96, "threads": 1, "us": 1.0, "dense_us": 2.0, "ratio": 2.0}
    rows = [
        linear.LinearRow(**case, density=density, tokens=tokens, values="int8", layout="csr-int8", max_rel_err=0)
        for density in (0.3, 0.1, 0.05)
        for tokens in (1, 8)
    ]
    drawn = [PeerRow(**case, density=1, tokens=tokens, peer=f"peer {n}") for tokens in (1, 8) for n in range(12)]
    plot_speedups(rows, drawn, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_result_fails(monkeypatch, capsys):
    monkeypatch.setitem(linear.LARGEST_ERROR, "int8", 1e-9)
    assert main(["bench", "linear", *SMALL, "--values", "int8"]) == 1
    assert "differs from float64 by" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["linear", "--shapes", "64"], "--shapes takes OUTxIN"),
        (["linear", "--densities", "0"], "each must be in (0, 1]"),
        (["linear", "--densities", "x"], "--densities takes numbers"),
        (["linear", "--values", "int9"], "'int9' is none of"),
        (["linear", "--threads", "0"], "--tokens and --threads must be at least 1"),
        (["liner"], "there is no benchmark 'liner'"),
    ],
)
def test_bad_options_are_named(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_timing_counts_calls_and_keeps_the_order_of_magnitude():
    counts = {"slow": 0, "fast": 0}

    def work(name, size):
        def call():
            counts[name] += 1
            sum(range(size))

        return call

    seconds = interleaved({"slow": work("slow", 200_000), "fast": work("fast", 2_000)})
    assert seconds["slow"] > 10 * seconds["fast"]
    assert counts["fast"] > counts["slow"] > 7


def test_machine_and_bandwidth():
    machine = describe_machine()
    assert machine.cores >= 1
    assert machine.processor
    assert 1e9 < read_bandwidth(threads=1, rounds=1) < 1e13
