"""The command that fits the cost model: what it measures, fits, writes and judges."""

import dataclasses
import json

import numpy as np
import pytest

from hebbline.benchmarks import fit_cost
from hebbline.benchmarks.cost import cells, check, measure
from hebbline.benchmarks.cost.fit import fit, non_negative
from hebbline.benchmarks.cost.ledger import Ledger
from hebbline.benchmarks.cost.tables import write_table
from hebbline.kernels.cost import table_name
from hebbline.kernels.isa import kernels_isa


@pytest.fixture
def small_cells(monkeypatch):
    """Layers that take milliseconds."""
    monkeypatch.setattr(cells, "SQUARE", (64, 96))
    monkeypatch.setattr(cells, "OBLONG", ((48, 32),))
    monkeypatch.setattr(cells, "SMALL", (16, 16))
    monkeypatch.setattr(cells, "DENSITIES", (0.3,))
    monkeypatch.setattr(cells, "OTHER_DENSITIES", (0.3,))
    monkeypatch.setattr(cells, "TOKENS", (1, 3))
    monkeypatch.setattr(measure, "_SECONDS", 0.0)
    monkeypatch.setattr(measure, "_MOST", 4)
    monkeypatch.setattr(measure, "_DENSE_BYTES", 1 << 16)
    monkeypatch.setattr(measure, "_PACKED_BYTES", 1 << 14)


LOSSY = {
    "avx2-amd": 0,
    "avx2-intel": 0,
    "avx2-vnni": 0,
    "avx2-zen5": 0,
    "avx512-amd": 0,
    "avx512-intel": 2,
    "avx512-zen5": 0,
    "amx": 0,
    "scalar": 0,
}
"""Choices of each table that lose over 15% in the cells of `bench linear`; docs/performance.md says which do."""


@pytest.mark.parametrize("table", LOSSY)
def test_the_library_predicts_and_chooses_well(table):
    """Against the samples that its tables were fitted to: within 25% in the median, and few choices lose 15%."""
    samples = Ledger(fit_cost.LEDGERS / f"{table}.jsonl").samples()
    verdict = check.check(table, samples)
    assert verdict.samples > 200 and verdict.median_error <= 0.25, verdict.summary
    assert verdict.lossy <= LOSSY[table] and verdict.choices > 50, "\n".join(verdict.worst)


def test_a_wrong_table_is_found():
    """A model that has one family twice as fast as it is chooses it where it loses."""
    samples = Ledger(fit_cost.LEDGERS / "avx512-amd.jsonl").samples()
    flattered = [
        dataclasses.replace(sample, us=sample.us * (3 if sample.family == "pick" else 1)) for sample in samples
    ]
    verdict = check.check("avx512-amd", flattered)
    assert verdict.lossy > 10 and not verdict.holds and any("slower than" in line for line in verdict.worst)


def test_non_negative_least_squares():
    rng = np.random.default_rng(0)
    a_st, wanted = rng.random((60, 5)), np.array([0.5, 0, 3, 0, 1])
    np.testing.assert_allclose(non_negative(a_st, a_st @ wanted), wanted, atol=1e-8)
    # Where the least value lies outside, the gradient points out of the border at the zeros.
    b_s = a_st @ np.array([1, -1, 1, 0.5, -0.2]) + 0.01 * rng.standard_normal(60)
    found = non_negative(a_st, b_s)
    gradient = a_st.T @ (a_st @ found - b_s)
    assert (found >= 0).all() and (gradient > -1e-7).all() and abs(gradient @ found) < 1e-7


def test_measure_fit_write_and_check(small_cells, tmp_path, capsys):
    isa = kernels_isa()
    ledger = tmp_path / "ledger.jsonl"
    options = ["--isa", isa, "--ledger", str(ledger)]
    assert fit_cost.main([*options, "--budget", "1e-9"]) == 0
    assert "cells to measure; the same command goes on" in capsys.readouterr().out
    assert fit_cost.main(options) in (0, 1)  # which of the two is a matter of timing
    lines = ledger.read_text().splitlines()
    planned = cells.plan_cells(isa)
    assert len(lines) == sum(len(cell.calls()) for cell in planned)
    assert all(json.loads(line)["us"] > 0 for line in lines)
    # What was measured before is kept, and what a stopped run left out is measured.
    ledger.write_text("\n".join(lines[:-3]) + "\n")
    capsys.readouterr()
    fit_cost.main(options)
    assert len(capsys.readouterr().err.splitlines()) <= 2
    samples = Ledger(ledger).samples()
    table = table_name(isa)
    path = write_table(fit(table, samples), "a processor", tmp_path)
    text = path.read_text()
    assert path.stem == table and f"--isa {table} --write" in text
    assert text.count("Family::kCsr") == 4 and ", -" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--isa", "sse"], "instruction set 'sse' is not one of"),
        (["--isa", "avx2-amd", "--check"], "there are no samples of avx2-amd"),
        (["--isa", "avx2-arm", "--check"], "instruction set 'avx2-arm' is not one of"),
        (["--isa", "avx2", "--budget", "-1"], "must be above 0"),
    ],
)
def test_bad_options_are_named(arguments, message, tmp_path, capsys):
    assert fit_cost.main([*arguments, "--ledger", str(tmp_path / "none.jsonl")]) == 2
    assert message in capsys.readouterr().err


def test_only_its_own_table_is_measured_on_a_machine(tmp_path, capsys):
    other = next(name for name in ("avx2-amd", "avx2-intel") if name != table_name("avx2"))
    assert fit_cost.main(["--isa", other, "--ledger", str(tmp_path / "none.jsonl")]) == 2
    assert "this processor is not of that design" in capsys.readouterr().err


def test_a_damaged_ledger_is_refused(tmp_path, capsys):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"isa": "avx2"}\n')
    assert fit_cost.main(["--isa", "avx2", "--check", "--ledger", str(path)]) == 2
    assert "line 1: not a sample" in capsys.readouterr().err
