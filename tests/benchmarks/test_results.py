"""The laboratory of results: equal searches, a ledger that workers share and that outlives them, verdicts, the page."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from arithmetic_study import arithmetic, finish

from hebbline.artifacts import InputError
from hebbline.cli import main
from hebbline.data.documents import load_documents
from hebbline.studies import language
from hebbline.studies.catalogue import STUDIES
from hebbline.studies.image import active_share
from hebbline.studies.ledger import Ledger
from hebbline.studies.page import write_study
from hebbline.studies.runner import chosen_run, count_made, count_runs, missing_runs
from hebbline.studies.selectivity import ratios
from hebbline.studies.statistics import Difference, finished_cells, judge
from hebbline.studies.study import DENSE, Claim, Run, sparsity_of
from hebbline.train.tasks.mlp import Mlp, MlpConfig
from hebbline.train.topology import initial_mask


def test_every_cell_has_the_same_search_before_its_reported_runs(tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl", arithmetic())
    study = ledger.study
    first = missing_runs(study, {})
    assert {run.purpose for run in first} == {"tuning"}
    assert len(first) == 5 * len(study.rates)
    finish(ledger)
    outcomes = ledger.outcomes()
    assert len(outcomes) == count_runs(study) == 5 * (3 + 3)
    assert all(chosen_run(study, arm, density, outcomes).rate == 0.2 for arm, density in study.cells())
    assert missing_runs(study, outcomes) == []
    # A wider search may choose another rate: what was reported at the first then counts no more.
    wider = arithmetic(rates=(*study.rates, 0.15))
    assert count_made(wider, outcomes) == 5 * 3
    assert count_made(study, outcomes) == count_runs(study)


def test_runs_come_in_the_order_in_which_they_say_most(tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl", arithmetic())
    order = []
    for _ in range(count_runs(ledger.study)):
        run = missing_runs(ledger.study, ledger.outcomes())[0]
        order.append((run.arm.name == DENSE.name, -run.density, run.purpose == "report", run.seed))
        ledger.append(run, ledger.study.perform(run), "")
    assert order == sorted(order) and order[-1][0] and missing_runs(ledger.study, ledger.outcomes()) == []


def test_a_score_that_is_not_a_number_is_never_the_best():
    study = arithmetic()
    assert study.best({0.1: float("nan"), 0.2: 5.0, 0.4: 4.0}) == 0.4
    assert arithmetic(higher_is_better=True).best({0.1: float("nan"), 0.2: 5.0, 0.4: 4.0}) == 0.2


def test_runs_of_another_budget_do_not_count(tmp_path):
    finish(Ledger(tmp_path / "a.jsonl", arithmetic()))
    longer = Ledger(tmp_path / "a.jsonl", arithmetic(budget="more"))
    assert longer.outcomes() == {}
    finish(longer)
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2 * count_runs(longer.study)


def test_workers_share_the_runs_and_a_killed_one_leaves_its_run_to_others(tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl", arithmetic(pause=0.05))
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=finish, args=(ledger,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    while not ledger.path.exists():
        time.sleep(0.01)
    os.kill(workers[0].pid, signal.SIGKILL)
    for worker in workers:
        worker.join(timeout=60)
    finish(ledger)
    runs = [json.loads(line)["run"] for line in ledger.path.read_text().splitlines()]
    assert len(runs) == len(set(runs)) == count_runs(ledger.study)


def test_a_broken_ledger_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    finish(Ledger(path, arithmetic()))
    path.write_text(path.read_text() + '{"run": "x"\n')
    with pytest.raises(InputError, match=r"a\.jsonl, line 31"):
        Ledger(path, arithmetic()).outcomes()


def test_verdicts_follow_the_interval(tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl", arithmetic())
    finish(ledger)
    cells = finished_cells(ledger.study, ledger.outcomes())
    better, worse = (judge(ledger.study, claim, cells) for claim in ledger.study.claims)
    assert better["static ER"].value == pytest.approx(3)
    # The scores of three seeds are 0.1 apart: a deviation of 0.1 in both, 4 degrees of freedom.
    assert better["static ER"].half_width == pytest.approx(2.776 * 0.1 * (2 / 3) ** 0.5)
    assert {one.verdict for one in better.values()} == {"supported"}
    assert worse["chts"].verdict == "contradicted"
    assert Difference(0.1, 0.2).verdict == "undecided"
    assert judge(ledger.study, ledger.study.claims[0], {}) is None


def test_a_margin_is_granted_as_a_share_of_the_other_score(tmp_path):
    study = arithmetic(claims=(Claim("random costs under 50%", "static ER", ("chts",), 0.1, 0.5),))
    ledger = Ledger(tmp_path / "a.jsonl", study)
    finish(ledger)
    cells = finished_cells(study, ledger.outcomes())
    found = judge(study, study.claims[0], cells)["chts"]
    assert found.value == pytest.approx(-3 + 0.5 * cells["chts", 0.1].mean)


def test_the_page_says_what_is_missing_and_keeps_other_sections(tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl", arithmetic())
    page = write_study(tmp_path, ledger.study, {}, "the command")
    assert "0 of 30 runs are made" in page.read_text()
    assert page.read_text().count("Not yet known") == 2
    page.write_text(page.read_text() + "\nBetween sections.\n")
    finish(ledger)
    write_study(tmp_path, ledger.study, ledger.outcomes(), "the command")
    text = page.read_text()
    assert "runs are made" not in text
    assert "**Supported**" in text
    assert "**Contradicted**" in text
    assert "| 0.1 | chts | **9.40** ± 0.10 | -3.00 ± 0.23 | 0.2 | 1.00 | 10% | 50% |" in text
    assert text.endswith("Between sections.\n")
    assert (tmp_path / "results-arithmetic.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_study_has_its_controls_and_legal_settings(study):
    names = [arm.name for arm in study.arms]
    assert {"dense", study.control} <= set(names)
    assert len(names) == len(set(names))
    assert 0 not in study.seeds
    assert len(study.seeds) >= 3
    for arm, density in study.cells():
        config = sparsity_of(Run(arm, density, study.rates[0], 1, "report"), steps=400, updates=8)
        assert config.update.count == 8
    for claim in study.claims:
        assert {claim.arm, *claim.others} <= set(names)


def test_a_real_run_trains_scores_both_splits_and_measures_its_graphs(monkeypatch):
    monkeypatch.setattr(language, "_STEPS_AN_UPDATE", 2)
    monkeypatch.setattr(language, "_DATA", language.DataConfig("python", validation_share=0.1, sequence_length=32))
    monkeypatch.setattr(language, "_validation_documents", lambda: tuple(load_documents("python", 0.1).validation[:20]))
    study = replace(language.LANGUAGE, steps=10)
    run = Run(study.arm("CHTs"), 0.1, 1e-3, 1, "report")
    outcome = study.perform(run)
    assert 1 < outcome.score < 2000
    assert study.perform(replace(run, purpose="tuning")).score != outcome.score
    assert outcome.updates == 4
    assert 0.1 < outcome.itop < 0.3
    assert 0 <= outcome.survived <= 1
    assert outcome.seconds > 0
    assert outcome.facts["density"] == pytest.approx(0.1, abs=1e-3)


def test_nodes_off_every_path_are_not_active():
    first = torch.tensor([[1, 0], [0, 0], [0, 1]], dtype=torch.bool)
    second = torch.tensor([[1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    # Of 3 + 2 hidden nodes: the first of both layers. The third of the first layer leads nowhere.
    model = Mlp(MlpConfig(2, (3, 2), 2))
    assert active_share(model, {"layers.0": first, "layers.2": second}) == pytest.approx(2 / 5)


def test_the_command_refuses_an_unknown_study(tmp_path, capsys):
    assert main(["bench", "results", "nothing", "--docs", str(tmp_path)]) == 2
    assert "there is no study 'nothing'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_score_decides_more_the_sparser_and_the_more_structured_a_graph_is():
    at_random = ratios(initial_mask("er", 128, 256, 0.3, seed=0))
    structured = ratios(initial_mask("brf", 128, 256, 0.05, seed=0, r=0.0))
    assert at_random["sampled"] == pytest.approx(1, abs=0.1)
    for found in (at_random, structured):
        assert found["sampled"] < found["sharpened"] < found["top"]
    assert structured["sampled"] > 2
