"""The frontier of a tiny model from end to end: measured, cut, gone on with, and what its rows say."""

import json
from dataclasses import replace

import pytest
from tiny import make_llama, make_text

from hebbline.artifacts import InputError
from hebbline.benchmarks import model as bench
from hebbline.benchmarks.frontier import DENSE, FrontierCase
from hebbline.benchmarks.frontier_page import conclusions, pareto
from hebbline.benchmarks.frontier_rows import FrontierRow, FrontierRows
from hebbline.benchmarks.machine import describe_machine
from hebbline.cli import main
from hebbline.data import train_tokenizer
from hebbline.data.questions import load_questions
from hebbline.evaluate import open_target, score_choices
from hebbline.runtime.perplexity import perplexity
from hebbline.runtime.torch_scores import torch_scorer
from hebbline.train.prune.publish import Texts, measured_windows, open_pretrained


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    """Numbers of a benchmark are not tested; that they are made is."""
    monkeypatch.setattr(bench, "ROUNDS", 1)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A dense Llama whose layers admit blocks of 16, its tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("dense")
    tokenizer = train_tokenizer(make_text(50), 320)
    model = make_llama(len(tokenizer), dtype="float32", intermediate_size=112, max_position_embeddings=320)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "text.txt").write_text("\n\n".join(make_text(200)))
    asked = [{"context": text[:60], "choices": [" fox", " lazy dog"], "answer": 1} for text in make_text(4, seed=2)]
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return folder


def run(dense, out, *options):
    text = ["--calibration", str(dense / "text.txt"), "--sequences", "4", "--sequence-length", "32", "--windows", "2"]
    text += ["--zero-shot", str(dense / "asked.jsonl")]
    return main(["bench", "frontier", str(dense / "model"), *text, "--passes", "0", "--out", str(out), *options])


def test_a_frontier_is_measured_stopped_and_gone_on_with(dense, tmp_path, capsys):
    out, small = (
        tmp_path / "out",
        ["--densities", "0.5,0.7", "--structures", "unstructured,2:4", "--values", "int8,float32"],
    )
    assert run(dense, out, *small, "--budget", "0.01", "--json") == 0
    printed = capsys.readouterr()
    first = json.loads(printed.out)
    assert [row["variant"] for row in first["rows"]] == ["dense float32", "dense 4-bit"] and first["left_out"] == 7
    assert "rows were left out" in printed.err
    kept = (out / "rows.jsonl").read_text()
    assert run(dense, out, *small, "--evaluate", str(dense / "text.txt")) == 2, "another text"
    assert "holds rows of another texts" in " ".join(capsys.readouterr().err.split())

    trained = out / "models/unstructured-0.5"
    assert run(dense, out, *small, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert (out / "rows.jsonl").read_text().startswith(kept), "what was measured is not measured again"
    assert [(row["model"], row["variant"]) for row in rows] == [
        (DENSE, "dense float32"),
        (DENSE, "dense 4-bit"),
        (DENSE, "dense 8-bit"),
        *(
            (name, f"sparse {values}")
            for name in ("unstructured, 50%", "unstructured, 70%", "2:4, 50%")
            for values in ("int8", "float32")
        ),
    ]
    assert {round(row["density"], 2) for row in rows} == {1.0, 0.5, 0.7}
    for row in rows:
        assert set(row["rates"]) == set(row["ratios"]) == {"prefill 128", "decode 1", "decode 16"}
        assert min(*row["rates"].values(), *row["perplexity"].values(), row["resident_bytes"], row["file_bytes"]) > 0
        assert row["accuracy"].keys() == {str(dense / "asked.jsonl")} and 0 <= min(row["accuracy"].values()) <= 1
    by_form = {row["variant"]: row["perplexity"][str(dense / "text.txt")] for row in rows[:3]}
    assert by_form["dense 4-bit"] != by_form["dense float32"] == pytest.approx(perplexity_by_torch(dense), rel=1e-5)
    assert rows[0]["accuracy"] == {str(dense / "asked.jsonl"): accuracy_by_torch(dense)}
    page = (out / "frontier.md").read_text()
    assert "4 questions of" in page
    assert page.count("| unstructured, 50% |") == 2 and "kernels on" in page and "hebbline bench frontier" in page
    assert len(list(out.glob("frontier-model-*.png"))) == 1

    named = ["--densities", "", "--models", str(trained)]
    assert run(dense, out, *small, *named, "--docs", str(tmp_path / "docs")) == 0
    assert "unstructured-0.5 (50%)" not in (tmp_path / "docs/frontier.md").read_text(), "the same weights, once"


def test_a_directory_that_is_called_like_a_named_size_is_itself(dense, tmp_path, monkeypatch):
    (tmp_path / "smollm2-135m").symlink_to(dense / "model")
    monkeypatch.chdir(tmp_path)
    text = ["--calibration", str(dense / "text.txt"), "--sequence-length", "32", "--windows", "2"]
    options = ["--densities", "", "--budget", "0.01", "--out", "out"]
    assert main(["bench", "frontier", "smollm2-135m", *text, *options]) == 0
    row = json.loads((tmp_path / "out/rows.jsonl").read_text().splitlines()[0])
    assert row["file_bytes"] < 10_000_000


def test_a_number_of_questions_tells_folders_apart_only_where_questions_are_asked(dense, tmp_path):
    machine, texts = describe_machine(), Texts(str(dense / "text.txt"))

    def folder(out, **options):
        return FrontierRows(tmp_path / out, FrontierCase(dense / "model", texts, **options).common(machine))

    folder("none")
    folder("none", questions=17)
    folder("asked", zero_shot=("quartz",), questions=17)
    with pytest.raises(InputError, match="holds rows of another questions"):
        folder("asked", zero_shot=("quartz",), questions=18)


def perplexity_by_torch(dense):
    """Of the dense model, on the windows that the frontier takes."""
    model, tokenizer = open_pretrained(str(dense / "model"), 32)
    texts = Texts(str(dense / "text.txt"), sequence_length=32, windows=2)
    return perplexity(measured_windows(tokenizer, texts.calibration, texts).tolist(), torch_scorer(model)).value


def accuracy_by_torch(dense):
    return score_choices(open_target(str(dense / "model")), load_questions(str(dense / "asked.jsonl"))).accuracy


def made(variant, perplexity, rate, model="2:4, 50%"):
    name = DENSE if variant.startswith("dense") else model
    rates = {"decode 1": rate}
    return FrontierRow(
        name, name, False, 1, variant, {"text": perplexity}, {}, rates, {"decode 1": rate / 20}, 1, 1, "commit"
    )


DENSE_ROWS = [made("dense float32", 10.0, 20.0), made("dense 4-bit", 12.0, 80.0)]


@pytest.mark.parametrize(
    ("sparse", "said"),
    [
        (
            [("int8", 11.0, 100.0), ("int4", 11.5, 120.0)],
            "ahead of dense 4-bit at its quality or better: `2:4, 50%, sparse int4` is 1.50 times",
        ),
        (
            [("int8", 15.0, 100.0), ("int4", 20.0, 160.0)],
            "not ahead of dense 4-bit at its quality (12.00, 1.20 times that of dense float32)",
        ),
        (
            [("int8", 15.0, 100.0), ("int4", 20.0, 160.0)],
            "`2:4, 50%, sparse int8`: 1.25 times as fast, at 15.00 (1.50 times)",
        ),
        ([("float32", 10.5, 60.0)], "not ahead of dense 4-bit at any quality: no sparse form here is faster"),
    ],
)
def test_the_sentence_says_what_the_rows_support(sparse, said):
    rows = DENSE_ROWS + [made(f"sparse {values}", *figures) for values, *figures in sparse]
    [line] = conclusions(rows, ["text"], "avx2")
    assert line.startswith("decode 1 on avx2, by text: sparse is") and said in line


def test_each_text_decides_by_itself():
    rows = [
        replace(row, perplexity={"text": row.perplexity["text"], "other": other})
        for row, other in zip([*DENSE_ROWS, made("sparse int8", 11.0, 100.0)], (10.0, 12.0, 13.0), strict=True)
    ]
    by_text, by_other = conclusions(rows, ["text", "other"], "avx2")
    assert "by text: sparse is ahead" in by_text and "by other: sparse is not ahead" in by_other


def test_nothing_is_said_before_the_peers_are_measured():
    assert "nothing can be said" in conclusions(DENSE_ROWS, ["text"], "avx2")[0]
    assert "nothing can be said" in conclusions([made("sparse int8", 11.0, 9.0)], ["text"], "avx2")[0]


def test_the_front_is_what_no_other_row_beats():
    rows = [
        *DENSE_ROWS,
        made("sparse int8", 15.0, 70.0),
        made("sparse int4", 20.0, 90.0),
        made("sparse float32", 10.0, 15.0),
    ]
    assert [row.variant for row in pareto(rows, "decode 1", "text")] == ["sparse int4", "dense 4-bit", "dense float32"]


def test_what_tells_most_comes_first(tmp_path):
    case = FrontierCase(tmp_path, Texts("python"))
    assert case.one_shot[:3] == [("unstructured", 0.5), ("unstructured", 0.7), ("2:4", 0.5)]
    assert ("2:4", 0.7) not in case.one_shot and ("block", 0.3) in case.one_shot
    assert len(case.planned) == 3 + 8 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--values", "int3"], "--values: 'int3' is none of"),
        (["--structures", "round"], "--structures: 'round' is none of"),
        (["--densities", "1.5"], "density 1.5 is outside (0, 1]"),
        (["--models", "nowhere"], "nowhere is not a directory"),
    ],
)
def test_bad_options_are_named(dense, tmp_path, capsys, options, message):
    assert run(dense, tmp_path / "out", *options, "--budget", "60") == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_damaged_file_of_rows_is_named(tmp_path):
    rows = FrontierRows(tmp_path / "out", {"isa": "avx2"})
    rows.add(DENSE_ROWS[0])
    (tmp_path / "out/rows.jsonl").open("a").write('{"model": 1}\n')
    with pytest.raises(InputError, match=r"rows\.jsonl, line 2: not a row of a frontier"):
        rows.rows()
    with pytest.raises(InputError, match="holds rows of another isa"):
        FrontierRows(tmp_path / "out", {"isa": "avx512"})
