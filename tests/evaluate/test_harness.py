"""The lm-evaluation-harness, where it is installed, on a model directory and an artifact: its figures are ours."""

import json

import pytest
import torch
import yaml
from tiny import make_text
from transformers import AutoModelForCausalLM

pytest.importorskip("lm_eval", reason="pip install lm_eval (lm-evaluation-harness)")

from lm_eval.api.instance import Instance

from hebbline.cli import main
from hebbline.data.questions import load_questions
from hebbline.evaluate import open_target, score_choices
from hebbline.evaluate.harness import HarnessModel


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task of the harness's own form over a local file, and the questions of it."""
    folder = tmp_path_factory.mktemp("task")
    rows = []
    for number, text in enumerate(make_text(10, seed=3)):
        words = text.split()
        choices = [" ".join(words[20:22]), "quick", "a lazy dog"]
        rows.append({"context": " ".join(words[:20]), "choices": choices, "answer": number % 3})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spaced = [row | {"choices": [f" {choice}" for choice in row["choices"]]} for row in rows]
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, spaced)))
    fields = {
        "task": "tiny_choices",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(fields))
    return folder


def test_choices_are_scored_alike(task, tiny_model_directory, tiny_artifact, capsys):
    for path in (tiny_model_directory, tiny_artifact):
        ours = score_choices(open_target(str(path)), load_questions(str(task / "asked.jsonl")))
        assert main(["eval", str(path), "--harness", str(task / "task.yaml"), "--json"]) == 0
        [found] = json.loads(capsys.readouterr().out)["harness"].values()
        assert found["acc"] == pytest.approx(ours.accuracy) and found["acc_norm"] == pytest.approx(ours.normalised)


def test_texts_and_whole_likelihoods(tiny_model_directory, tokenizer):
    target = open_target(str(tiny_model_directory))
    model = HarnessModel(target)
    torch_model = AutoModelForCausalLM.from_pretrained(tiny_model_directory, dtype=torch.float32)
    ids = tokenizer.encode("the quick brown")
    following = []
    for _ in range(6):
        with torch.no_grad():
            following.append(int(torch_model(torch.tensor([ids + following])).logits[0, -1].argmax()))
    text = tokenizer.decode(following)
    [made] = model.generate_until([Instance("generate_until", {}, ("the quick brown", {"max_gen_toks": 6}), 0)])
    assert made == text
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    [cut] = model.generate_until(
        [Instance("generate_until", {}, ("the quick brown", {"until": [stop], "max_gen_toks": 6}), 0)]
    )
    assert cut == text[: text.index(stop)]
    pairs = [("the quick brown", text), ("the quick brown", " between between between")]
    found = model.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
    assert [is_greedy for _, is_greedy in found] == [
        tokenizer.encode("the quick brown" + text)[len(ids) :] == following,
        False,
    ]
    long = " ".join(make_text(9))
    [whole] = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (long,), 0)])
    tokens = tokenizer.encode(long)
    assert len(tokens) > 128 and whole == pytest.approx(rolling(target, tokens, model.eot_token_id), rel=1e-5)


def rolling(target, tokens, first):
    """Windows as long as the context, begun by the end token; the last reaches back. Each token is predicted once."""
    total, ids = 0.0, [first, *tokens]
    for begin in range(0, len(tokens), 128):
        end = min(begin + 129, len(ids))
        total += float(target.scorer(ids[end - 129 : end])[begin + 1 - end :].sum())
    return total


def test_an_unknown_task_is_refused(tiny_model_directory, tmp_path, capsys):
    assert main(["eval", str(tiny_model_directory), "--harness", "no_such_task"]) == 2
    assert "'no_such_task' is no task of the lm-evaluation-harness" in " ".join(capsys.readouterr().err.split())
    assert main(["eval", str(tiny_model_directory), "--harness", str(tmp_path / "none.yaml")]) == 2
    assert "is no task" in capsys.readouterr().err
