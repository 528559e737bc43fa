"""What the report of an export says of the model's quality beside a dense one: what is known, or what tells it."""

import html
import json
import re

import pytest
from tiny import make_llama

from hebbline.cli import main
from hebbline.train import Sparsifier, SparsityConfig
from hebbline.train.save import save_model_directory

NOT_KNOWN = (
    "What its missing links cost is not known here: run `hebbline eval` on it and on a dense one, with the same "
    "--source."
)


def how_good(artifact) -> str:
    """The line of the page's head."""
    [line] = re.findall(r"<dt>how good</dt><dd>(.*?)</dd>", (artifact / "report.html").read_text())
    return html.unescape(re.sub(r"</?code>", "`", line))


def trained(tokenizer, out, record, density=0.3):
    model = make_llama(len(tokenizer))
    masks = Sparsifier(model, SparsityConfig(method="static", density=density)).masks if density < 1 else {}
    save_model_directory(out, model, tokenizer, masks, method="static", log=[{"loss": 3.0}, record])
    return out


def test_where_nothing_is_known_the_report_says_what_tells(tiny_artifact):
    assert how_good(tiny_artifact).startswith(f"{NOT_KNOWN} The weights are the model's, bit for bit")
    assert json.loads((tiny_artifact / "report.json").read_text())["training"] is None


@pytest.mark.parametrize(
    ("record", "density", "words"),
    [
        (
            {"held_out_perplexity": 12.5, "held_out_tokens": 900, "dense_perplexity": 11.25},
            0.3,
            "Perplexity of held-out text when it was trained: 12.50, and 11.25 of the dense model before.",
        ),
        (
            {"held_out_perplexity": 12.5, "held_out_tokens": 900},
            0.3,
            f"Perplexity of held-out text when it was trained: 12.50; {NOT_KNOWN[0].lower()}{NOT_KNOWN[1:]}",
        ),
        (
            {"held_out_perplexity": 12.5, "held_out_tokens": 900},
            1,
            "Perplexity of held-out text when it was trained: 12.50.",
        ),
        ({}, 1, "The weights are the model's, bit for bit"),
    ],
)
def test_what_training_measured_is_said(tokenizer, tmp_path, capsys, record, density, words):
    model = trained(tokenizer, tmp_path / "model", record, density)
    assert main(["export", str(model), "--out", str(tmp_path / "out")]) == 0
    assert how_good(tmp_path / "out").startswith(words)
    said = " ".join(capsys.readouterr().err.split())
    assert (words.removesuffix(".")[1:] in said) == ("bit for bit" not in words)
    assert ("not known here" in said) == ("not known here" in words)
