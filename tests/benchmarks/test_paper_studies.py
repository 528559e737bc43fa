"""Studies at the paper's schedule, from pretrained models, and what the laboratory has for them: variants and twins."""

import shutil
from dataclasses import replace

import pytest
import torch
from arithmetic_study import ArithmeticStudy, arithmetic, finish
from tiny import make_text

from hebbline.data.documents import load_documents
from hebbline.studies import dense_models, language, pretrained
from hebbline.studies.language_paper import LANGUAGE_PAPER, LANGUAGE_PAPER_BFLOAT16, WARM_STARTS
from hebbline.studies.ledger import Ledger
from hebbline.studies.page import write_study
from hebbline.studies.pretrained import PRETRAINED
from hebbline.studies.runner import chosen_run, count_runs, missing_runs
from hebbline.studies.study import DENSE, Arm, Run, Twin
from hebbline.train.tasks import train_language_model
from hebbline.train.tasks.language_model import load_pretrained


class VariantStudy(ArithmeticStudy):
    """As `ArithmeticStudy`; "wide" is better than "narrow" by 1, and its best rate is 0.4."""

    def perform(self, run):
        outcome = super().perform(run)
        wide = run.variant == "wide"
        moved = (abs(run.rate - 0.4) - abs(run.rate - 0.2) if run.purpose == "tuning" else 0.0) - 1
        return replace(outcome, score=outcome.score + moved) if wide else outcome


def with_variants() -> VariantStudy:
    chts = Arm("chts", {"method": "chts"}, variants={"narrow": {}, "wide": {"fraction": {"initial": 0.2}}})
    plain = arithmetic(densities=(0.1,))
    return VariantStudy(
        **{name: getattr(plain, name) for name in plain.__dataclass_fields__}
        | {"arms": (DENSE, Arm("static ER", {"method": "static"}), chts)}
    )


@pytest.fixture
def small_language(monkeypatch, tmp_path):
    """The studies of language on a little text, with models in a folder of their own."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(make_text(60)))
    shape = replace(
        language._MODEL, hidden_size=32, intermediate_size=48, layers=1, heads=2, kv_heads=2, vocab_size=300
    )
    monkeypatch.setattr(language, "_MODEL", shape)
    monkeypatch.setattr(language, "_DATA", language.DataConfig(str(text), validation_share=0.2, sequence_length=32))
    monkeypatch.setattr(language, "_validation_documents", lambda: tuple(load_documents(str(text), 0.2).validation))
    monkeypatch.setattr(pretrained, "models_folder", lambda: tmp_path / "models")
    monkeypatch.setattr(dense_models, "_CALIBRATION", 8)
    return tmp_path / "models"


def test_the_search_chooses_a_variant_together_with_the_rate(tmp_path):
    study = with_variants()
    ledger = Ledger(tmp_path / "a.jsonl", study)
    assert len(study.tuning_runs(study.arm("chts"), 0.1)) == 2 * len(study.rates)
    finish(ledger)
    outcomes = ledger.outcomes()
    assert len(outcomes) == count_runs(study) == 2 * (3 + 3) + (2 * 3 + 3)
    assert missing_runs(study, outcomes) == []
    chosen = chosen_run(study, study.arm("chts"), 0.1, outcomes)
    assert (chosen.variant, chosen.rate) == ("wide", 0.4)
    assert chosen.sparsity == {"method": "chts", "fraction": {"initial": 0.2}}
    assert "chts | 0.1 | report | 0.4 | 2 | wide" in outcomes
    assert "static ER | 0.1 | report | 0.2 | 2" in outcomes
    page = write_study(tmp_path, study, outcomes, "the command").read_text()
    assert "| 0.1 | chts | **8.60** ± 0.10 | -3.80 ± 0.23 | 0.4*, wide |" in page


def test_a_table_says_what_each_method_has_over_its_twin(tmp_path):
    first = Ledger(tmp_path / "results" / "first.jsonl", arithmetic(name="first"))
    first.path.parent.mkdir()
    study = arithmetic(name="second", twin=Twin(first.study, "less first"), arms=first.study.arms[:2], claims=())
    second = Ledger(tmp_path / "results" / "second.jsonl", study)
    finish(second)
    page = write_study(tmp_path, study, second.outcomes(), "the command").read_text()
    assert "| density | method | score | less static ER | less first | rate |" in page
    assert "| 0.1 | static ER | **12.40** ± 0.10 |  |  | 0.2 |" in page, "the twin has no runs yet"
    finish(first)
    page = write_study(tmp_path, study, second.outcomes(), "the command").read_text()
    assert "| 0.1 | static ER | **12.40** ± 0.10 |  | +0.00 ± 0.23 | 0.2 |" in page


def test_the_control_of_a_table_may_have_another_name(tmp_path):
    study = arithmetic(control="chts")
    ledger = Ledger(tmp_path / "a.jsonl", study)
    finish(ledger)
    page = write_study(tmp_path, study, ledger.outcomes(), "the command").read_text()
    assert "| less chts |" in page and "the difference from chts, with" in page
    assert "| 0.1 | static ER | **12.40** ± 0.10 | +3.00 ± 0.23 |" in page


@pytest.mark.parametrize("study", [LANGUAGE_PAPER, LANGUAGE_PAPER_BFLOAT16], ids=lambda study: study.name)
def test_the_paper_schedule_is_the_same_for_all_arms(study):
    for arm, density in study.cells():
        for run in study.tuning_runs(arm, density):
            tuning, report = study.recipe(run), study.recipe(replace(run, purpose="report", seed=1))
            assert report.optimization.steps == 3600 and tuning.optimization.steps == 900
            for recipe, updates in ((report, 27), (tuning, 6)):
                config = recipe.sparsity
                assert config.update.count == updates
                assert config.update.stop <= 0.75 * recipe.optimization.steps < config.update.stop + config.update.every
                assert config.update.warmup == 10
                assert config.new_links == WARM_STARTS
                assert config.decay_share == (0.5 if config.method == "chtss" else 1.0)
                assert recipe.optimization.weights == study.weights
                assert config.for_run(recipe.optimization.steps)


def test_what_starts_from_brf_searches_its_randomness():
    study = LANGUAGE_PAPER
    runs = study.tuning_runs(study.arm("CHTs, from BRF"), 0.3)
    assert {(run.rate, study.recipe(run).sparsity.topology.r) for run in runs} == {
        (rate, r) for rate in study.rates for r in (0.0, 0.25)
    }


def test_a_bfloat16_run_is_scored_in_float32(small_language):
    study = replace(LANGUAGE_PAPER_BFLOAT16, steps=12, tuning_steps=6, updates=2)
    run = Run(study.arm("CHTss, from ER"), 0.3, 1e-3, 1, "report")
    result = study.train(run)
    values = {float(weight) for weight in result.model.model.layers[0].mlp.up_proj.weight.detach().flatten()[:50]}
    assert result.model.dtype == torch.float32
    assert all(float(torch.tensor(value).bfloat16()) == value for value in values) and len(values) > 5
    outcome = study.perform(run)
    assert 1 < outcome.score < 2000
    assert outcome.updates == 2
    assert outcome.facts["density"] == pytest.approx(0.3, abs=1e-3)


def test_runs_of_a_seed_share_one_dense_model_and_move_from_its_pruned_mask(small_language):
    study = replace(PRETRAINED, dense_steps=8, steps=8, updates=2)
    first = study.dense_recipe(1)
    dense = dense_models.dense_model(first, small_language)
    made = (dense / "model.safetensors").stat().st_mtime_ns
    pruned = dense_models.pruned_model(dense, 0.3, first)
    mask = load_pretrained(str(pruned), "model", 32)[0].model.layers[0].mlp.up_proj.weight != 0
    masks = {}
    for name in ("static", "SET", "CHTs"):
        run = Run(study.arm(name), 0.3, 1e-3, 1, "report")
        recipe = study.recipe(run)
        result = train_language_model(replace(recipe, model=replace(recipe.model, pretrained=str(pruned))))
        masks[name] = result.masks["model.layers.0.mlp.up_proj"]
    assert torch.equal(masks["static"], mask)
    for name in ("SET", "CHTs"):
        assert int(masks[name].sum()) == int(mask.sum())
        assert 0.7 < float((masks[name] & mask).sum() / mask.sum()) < 1
    outcome = study.perform(Run(study.arm("RigL"), 0.3, 1e-3, 1, "report"))
    assert outcome.updates == 2 and outcome.facts["density"] == pytest.approx(0.3, abs=0.01)
    assert study.perform(Run(study.arm("dense"), 1.0, 1e-3, 1, "report")).facts["density"] == 1
    assert (dense / "model.safetensors").stat().st_mtime_ns == made
    assert {path.name for path in small_language.iterdir() if path.is_dir() and not path.name.endswith(".run")} == {
        dense.name,
        pruned.name,
    }


def test_a_dense_model_whose_training_was_cut_goes_on(small_language, monkeypatch):
    recipe = replace(PRETRAINED, dense_steps=8).dense_recipe(1)
    whole = dense_models.dense_model(recipe, small_language / "whole")
    monkeypatch.setattr(dense_models, "_STEPS_A_CHECKPOINT", 4)
    published = []
    with monkeypatch.context() as broken:
        broken.setattr("hebbline.train.publish._publish", lambda *_: published.append(1) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dense_models.dense_model(recipe, small_language / "cut")
    first, last = sorted((small_language / "cut").glob("*.run/checkpoints/*"))
    assert published and first.is_dir()
    shutil.rmtree(last)
    resumed = dense_models.dense_model(recipe, small_language / "cut")
    weights = [load_pretrained(str(path), "model", 32)[0].state_dict() for path in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert resumed.name == whole.name
