"""A whole text is scored as the field scores WikiText-2: one stream, in file order, with window and stride."""

import json
import math

import pytest
import torch
from tiny import make_text
from transformers import AutoModelForCausalLM

from hebbline.artifacts import InputError
from hebbline.cli import main
from hebbline.evaluate import stream_windows


@pytest.fixture
def text(tmp_path):
    """A text with a repeated paragraph, blank lines and carriage returns: all of it counts."""
    path = tmp_path / "wiki.raw"
    path.write_bytes(("\r\n\n".join([*make_text(6), *make_text(2)]) + " \n").encode())
    return path


def published_procedure(model, ids, window, stride):
    """The loop of the documentation of transformers on perplexity of fixed-length models, with token counts."""
    total, count, previous_end = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        inputs = torch.tensor([ids[begin:end]])
        targets = inputs.clone()
        targets[:, : -(end - previous_end)] = -100
        counted = int((targets[:, 1:] != -100).sum())
        if counted:
            with torch.no_grad():
                total += float(model(inputs, labels=targets).loss) * counted
        count, previous_end = count + counted, end
        if end == len(ids):
            break
    return math.exp(total / count), count


@pytest.mark.parametrize(("window", "stride"), [(32, 32), (32, 8), (48, 47), (128, 128)])
def test_the_figure_is_that_of_the_published_procedure(tiny_model_directory, tokenizer, text, capsys, window, stride):
    arguments = ["eval", str(tiny_model_directory), "--whole", str(text), "--json"]
    assert main([*arguments, "--window", str(window), "--stride", str(stride)]) == 0
    found = json.loads(capsys.readouterr().out)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_directory, dtype=torch.float32)
    expected, count = published_procedure(model, tokenizer.encode(text.read_bytes().decode()), window, stride)
    assert found["tokens"] == count
    assert found["value"] == pytest.approx(expected, rel=1e-5)


def test_an_artifact_scores_the_same_text_the_same(tiny_model_directory, tiny_artifact, text, capsys):
    values = []
    for target in (tiny_model_directory, tiny_artifact):
        assert main(["eval", str(target), "--whole", str(text), "--stride", "64", "--json"]) == 0
        values.append(json.loads(capsys.readouterr().out)["value"])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize(("tokens", "window", "stride"), [(2, 8, 8), (100, 16, 16), (100, 16, 5), (97, 96, 96)])
def test_each_token_is_predicted_at_most_once_and_in_order(tokens, window, stride):
    ids = list(range(tokens))
    predicted = [token for part in stream_windows(ids, window, stride) for token in part.ids[-part.predicted :]]
    assert predicted == sorted(set(predicted))
    given = set(range(0, tokens, window)) if stride == window else {0}
    assert set(ids) - set(predicted) == given


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--source", "brown"], "--source selects documents"),
        (["--validation-share", "0.5"], "--validation-share selects documents"),
        (["--stride", "0"], "stride of 0 tokens is outside [1, 128]"),
        (["--window", "16", "--stride", "17"], "stride of 17 tokens is outside [1, 16]"),
        (["--window", "4096"], "--window 4096 is outside [2, 128]"),
    ],
)
def test_options_that_do_not_fit_are_refused(tiny_model_directory, text, capsys, options, said):
    assert main(["eval", str(tiny_model_directory), "--whole", str(text), *options]) == 2
    assert said in capsys.readouterr().err


def test_texts_that_cannot_be_scored_are_refused(tiny_model_directory, tmp_path, capsys):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 50)
    for name, said in (("latin.txt", "cannot be read as UTF-8"), ("none.txt", "cannot be read")):
        assert main(["eval", str(tiny_model_directory), "--whole", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(InputError, match="1 tokens"):
        stream_windows([7], 8, 8)
    assert main(["eval", str(tiny_model_directory), "--stride", "8"]) == 2
    assert "--stride goes with --whole" in capsys.readouterr().err


def test_a_share_of_one_scores_every_document(tiny_model_directory, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n\n".join(make_text(12)))
    arguments = ["eval", str(tiny_model_directory), "--source", str(tmp_path / "texts.txt"), "--window", "16", "--json"]
    tokens = []
    for share in ("0.5", "1"):
        assert main([*arguments, "--validation-share", share]) == 0
        tokens.append(json.loads(capsys.readouterr().out)["tokens"])
    assert tokens[1] > 1.2 * tokens[0]
