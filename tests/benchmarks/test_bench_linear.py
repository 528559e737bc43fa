"""The benchmark of linear layers: what it prints, what it writes, and that it fails where a result is wrong."""

import gc
import json
import time

import pytest

from hebbline.benchmarks import layers, linear, timing
from hebbline.benchmarks.budget import NO_BUDGET, Budget
from hebbline.benchmarks.cases import LinearCases, plan_cells
from hebbline.benchmarks.machine import describe_machine, read_bandwidth
from hebbline.benchmarks.peers import PeerRow
from hebbline.benchmarks.performance import linear_section, plot_speedups
from hebbline.benchmarks.timing import interleaved
from hebbline.cli import main
from hebbline.kernels.cost import table_name
from hebbline.kernels.isa import kernels_isa

SMALL = ["--shapes", "64x96,40x33", "--densities", "0.3,0.05", "--tokens", "1,3"]
FIELDS = {
    "out_features",
    "in_features",
    "density",
    "tokens",
    "threads",
    "isa",
    "values",
    "layout",
    "us",
    "dense_us",
    "ratio",
    "max_rel_err",
    "outlook",
}


CASE = {"out_features": 64, "in_features": 96, "threads": 1, "isa": "avx2", "us": 1.0, "dense_us": 2.0, "ratio": 2.0}


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    """Numbers of a benchmark are not tested; that they are made is."""
    monkeypatch.setattr(timing, "SECONDS_A_ROUND", 0.001)


def test_rows_have_the_promised_fields(capsys):
    assert main(["bench", "linear", *SMALL, "--values", "float32,bfloat16,int8,int4", "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["machine"]["versions"]["onnxruntime"]
    assert f"kernels on {kernels_isa()}; " in printed.err
    assert document["left_out"] == 0 and not document["peers"]
    assert len(document["rows"]) == 2 * 2 * 2 * 4
    for row in document["rows"]:
        assert set(row) == FIELDS
        assert row["isa"] == kernels_isa()
        assert row["ratio"] == pytest.approx(row["dense_us"] / row["us"])
        assert row["max_rel_err"] <= layers.LARGEST_ERROR[row["values"]]


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
    assert f"## Linear layers, 32x48; 1 and 2 threads; {table_name(kernels_isa())}\n" in page
    assert page.count("x one thread") == 3
    assert (
        (tmp_path / f"performance-linear-32x48-1-{table_name(kernels_isa())}.png").read_bytes().startswith(b"\x89PNG")
    )


def test_what_tells_most_comes_first():
    """The least number of tokens for everything, peers too; first the first value type at the median density."""
    cells = plan_cells(LinearCases(tokens=(8, 1, 64), values=("float32", "int8"), peers=True))
    first, second, *_ = cells
    assert (first.what, first.density, first.tokens) == ("float32", 0.1, (1,))
    assert (second.what, second.density) == ("float32", 0.3)
    half = len(cells) // 2
    assert {cell.tokens for cell in cells[:half]} == {(1,)} and {cell.tokens for cell in cells[half:]} == {(8, 64)}
    assert [cell.is_peer for cell in cells[:half]] == sorted(cell.is_peer for cell in cells[:half])
    assert any(cell.is_peer for cell in cells[:half])
    assert len(set(cells)) == len(cells)


def test_a_budget_ends_the_run_and_says_what_was_left_out(tmp_path, capsys):
    options = ["--shapes", "64x96", "--budget", "1e-9", "--peers", "--json", "--docs", str(tmp_path)]
    assert main(["bench", "linear", *options]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    (row,) = document["rows"]
    assert (row["density"], row["tokens"], row["values"]) == (0.1, 1, "float32")
    assert document["left_out"] >= 4 * 4 * 3 - 1
    left_out, planned = document["left_out"], document["left_out"] + 1
    assert f"--budget 1e-09: the time is over, and {left_out} of {planned} rows were left out" in printed.err
    assert "| 0.1 | float32 (bitmask) |" in (tmp_path / "performance.md").read_text()


def test_rows_within_the_budget_are_measured():
    """A budget that is over in the middle: some rows are there, each whole, and the rest is counted."""
    cases = LinearCases(shapes=((64, 96),), densities=(0.3, 0.1), tokens=(1, 3), values=("float32",))
    whole = list(linear.run_linear(cases))
    assert len(whole) == 4

    class Ending(Budget):
        def left(self):
            return 60.0 if len(begun) < 3 else 0.0

    begun = []
    for row in linear.run_linear(cases, Ending()):
        begun.append(row)
    assert [(row.density, row.tokens) for row in begun] == [(row.density, row.tokens) for row in whole[:3]]
    assert NO_BUDGET.left() == float("inf")


def test_a_table_with_cells_left_out_is_written():
    rows = [
        linear.LinearRow(**CASE, density=density, tokens=tokens, values="int8", layout="csr-int8", max_rel_err=0)
        for density, tokens in ((0.1, 1), (0.3, 1), (0.3, 8))
    ]
    peers = [PeerRow(**CASE, density=1, tokens=8, peer="a peer")]
    page = linear_section(describe_machine(), "command", rows, peers, None)
    assert f"kernels on {kernels_isa()};" in page
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert lines[2] == "| 0.3 | int8 (csr-int8) | **2.00** (1 µs) | **2.00** (1 µs) |"
    assert lines[3] == "| 0.1 | int8 (csr-int8) | **2.00** (1 µs) | - |"
    assert lines[4] == "| 1 | *a peer* | - | 2.00 (1 µs) |"


def test_layers_are_released_before_the_next_are_built():
    """Nothing is in memory where dense layers are built, those alone where a candidate is, both when a row is there."""
    cases = LinearCases(shapes=((64, 96), (40, 33)), densities=(0.3,), tokens=(1,), threads=(1, 2))
    seen = set()

    def count():
        return sum(issubclass(type(thing), layers.Layers) for thing in gc.get_objects())

    def on_step(step):
        seen.add(("dense" if step.startswith("building the dense") else "candidate", count()))

    for _ in linear.run_linear(cases, on_step=on_step):
        seen.add(("row", count()))
    assert seen == {("dense", 0), ("candidate", 1), ("row", 2)}


def test_any_number_of_peers_is_drawn(tmp_path):
    case = CASE
    rows = [
        linear.LinearRow(**case, density=density, tokens=tokens, values="int8", layout="csr-int8", max_rel_err=0)
        for density in (0.3, 0.1, 0.05)
        for tokens in (1, 8)
    ]
    drawn = [PeerRow(**case, density=1, tokens=tokens, peer=f"peer {n}") for tokens in (1, 8) for n in range(12)]
    plot_speedups(rows, drawn, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_result_fails(monkeypatch, capsys):
    monkeypatch.setitem(layers.LARGEST_ERROR, "int8", 1e-9)
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
        (["linear", "--budget", "0"], "--budget 0: the time must be above 0 seconds"),
        (["liner"], "there is no benchmark 'liner'"),
        ([], "name a benchmark; there are linear, model"),
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


def test_slow_candidates_are_timed_less_often():
    calls = []

    def slow():
        calls.append(None)
        time.sleep(0.4)

    seconds = interleaved({"slow": slow}, most_seconds=0.5)
    assert seconds["slow"] == pytest.approx(0.4, rel=0.5)
    assert len(calls) == 2  # where there are seven rounds, each with a call before it


def test_machine_and_bandwidth():
    here = describe_machine()
    assert here.cores >= 1
    assert here.processor
    assert 1e9 < read_bandwidth(threads=1, rounds=1) < 1e13
