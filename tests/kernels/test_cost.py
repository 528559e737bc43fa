"""The cost model: one for C++ and Python, its answers and refusals, and that the kernels choose by it."""

import re
from pathlib import Path

import numpy as np
import pytest
from packed import LAYOUTS, make_layer, make_model, open_session

from hebbline.artifacts import InputError
from hebbline.kernels.cost import BASELINE, FAMILIES, TERMS, Work, is_measured, predict, predicted_speedup, table_name
from hebbline.kernels.isa import kernels_isa

TABLES = Path(__file__).parents[2] / "kernels" / "linear" / "cost_tables"
ISAS = ("scalar", "avx2", "avx2-vnni", "avx512", "amx")
TABLE_NAMES = (
    "scalar",
    "avx2-amd",
    "avx2-intel",
    "avx2-vnni",
    "avx2-zen5",
    "avx512-amd",
    "avx512-intel",
    "avx512-zen5",
    "amx",
)
VALUES = ("float32", "bfloat16", "int8", "int4")


def families_of(work, isa):
    found = []
    for family in FAMILIES:
        try:
            predict(work, 1, isa, family)
        except InputError:
            continue
        found.append(family)
    return found


def numbers(text):
    return [float(number) for number in text.split(",")]


@pytest.mark.parametrize("isa", TABLE_NAMES)
def test_a_prediction_is_amounts_times_the_table(isa):
    text = (TABLES / f"{isa}.inc").read_text()
    rows = {
        (family.lower(), values.lower()): numbers(found)
        for family, values, found in re.findall(r"\{Family::k(\w+), ValueType::k(\w+), \{([^}]+)\}\}", text)
    }
    assert len(rows) >= 4
    rows |= {(BASELINE, values): numbers(re.search(r"(?:true|false),\n    \{([^}]+)\}", text)[1]) for values in VALUES}
    for values in VALUES:
        work = Work(300, 700, 40_000, values)
        for family in (*families_of(work, isa), BASELINE):
            if (family, values) not in rows:  # not measured there: never the cheapest
                assert predict(work, 1, isa, family).microseconds > 1e6
                continue
            for tokens, cached in ((1, False), (1, True), (3, False), (17, False), (200, False)):
                found = predict(work, tokens, isa, family, cached=cached)
                assert len(found.amounts) == len(TERMS)
                if (family, values) not in rows:  # never measured on such a processor, and never chosen
                    assert found.microseconds > 1e11
                    continue
                wanted = np.dot(found.amounts, rows[family, values]) / 1e3
                assert found.microseconds == pytest.approx(wanted) and found.microseconds > 0


def test_an_instruction_set_alone_is_that_of_this_machines_design():
    work = Work(2048, 2048, 400_000)
    for isa in ISAS:
        assert predict(work, 8, isa) == predict(work, 8, table_name(isa)) and table_name(isa) in TABLE_NAMES
    assert predict(work, 8, "avx512-amd").table == "avx512-amd"


@pytest.mark.parametrize("isa", TABLE_NAMES)
@pytest.mark.parametrize("tokens", [1, 8, 64, 256])
def test_predicted_time_rises_with_the_work(isa, tokens):
    for values in VALUES:
        works = [Work(2048, 2048, round(density * 2048**2), values) for density in (0.01, 0.05, 0.1, 0.3)]
        times = [predict(work, tokens, isa).microseconds for work in works]
        assert times == sorted(times)
    assert predicted_speedup(Work(2048, 2048, 40_000), tokens, isa) > 5


def test_what_a_call_of_no_work_costs():
    assert predict(Work(0, 0, 0), 1, "avx512").microseconds >= 0
    assert predict(Work(5, 7, 35), 0, "avx512").microseconds >= 0


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ((Work(1, 1, 1), 1, "sse"), "instruction set 'sse' is not one of scalar, avx2, avx2-vnni, avx512, amx"),
        ((Work(1, 1, 1, "float8"), 1, "avx2"), "values 'float8' is not one of float32"),
        ((Work(1, 1, 1), 1, "avx2", "coo"), f"family 'coo' is not one of {', '.join((*FAMILIES, BASELINE))}"),
        ((Work(1, 1, 1), 1, "scalar", "pick"), "family 'pick' has no kernels for scalar"),
    ],
)
def test_what_is_not_there_is_refused(question, message):
    with pytest.raises(InputError, match=message):
        predict(*question)


def test_tables_say_whether_they_were_measured():
    for table in TABLE_NAMES:
        assert is_measured(table) == ("Costs{\n    true," in (TABLES / f"{table}.inc").read_text())
    assert is_measured("avx2-amd") and is_measured("amx") and not is_measured("neon")


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
@pytest.mark.parametrize("values", ["float32", "bfloat16"])
def test_kernels_take_the_packing_that_is_predicted(isa, values, monkeypatch):
    """Sums of another packing come in another order: equal bits tell which one a call went to."""
    monkeypatch.setenv("HEBBLINE_ISA", isa)
    layout = LAYOUTS["bitmask" if values == "float32" else f"bitmask-{values}"]
    weight, mask = make_layer(layout, (320, 640), 0.25)
    links = int(np.count_nonzero(mask))
    model = make_model(layout, layout.encode(weight, mask), 640, None, function=False)
    try:
        sessions = {"": open_session(model)}
    except Exception as failure:
        if "this processor lacks it" in str(failure):
            pytest.skip(f"no {isa} here")
        raise
    work = Work(320, 640, links, values)
    for family in (names := [name for name in families_of(work, isa) if name != "panel"]):
        monkeypatch.setenv("HEBBLINE_FAMILY", family)
        sessions[family] = open_session(model)
    for tokens in (1, 2, 8, 64):
        x = np.random.default_rng(tokens).standard_normal((1, tokens, 640)).astype(np.float32)
        results = {name: session.run(None, {"X": x})[0].tobytes() for name, session in sessions.items()}
        taken = predict(work, tokens, isa).family
        assert results[""] == results[taken]
        assert len(names) == 1 or len({results[name] for name in names}) > 1


def test_a_weight_has_no_more_packings_than_are_asked_for(monkeypatch):
    """With one, every number of tokens goes to the same; equal bits tell which, as above."""
    layout = LAYOUTS["bitmask"]
    weight, mask = make_layer(layout, (320, 640), 0.25)
    model = make_model(layout, layout.encode(weight, mask), 640, None, function=False)
    xs = [np.random.default_rng(n).standard_normal((1, n, 640)).astype(np.float32) for n in (1, 2, 4, 8, 16, 64, 256)]

    def results():
        session = open_session(model)
        return [session.run(None, {"X": x})[0].tobytes() for x in xs]

    forced = []
    for family in families_of(Work(320, 640, int(np.count_nonzero(mask))), kernels_isa()):
        if family != "panel":
            monkeypatch.setenv("HEBBLINE_FAMILY", family)
            forced.append(results())
    monkeypatch.delenv("HEBBLINE_FAMILY")
    monkeypatch.setenv("HEBBLINE_PACKINGS", "1")
    assert results() in forced
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("HEBBLINE_PACKINGS", wrong)
        with pytest.raises(Exception, match=f"HEBBLINE_PACKINGS={wrong} is no whole number from 1"):
            open_session(model)
