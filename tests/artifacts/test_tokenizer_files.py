"""The tokenizer of a model: fast, or a sentencepiece model that is converted; what belongs to it travels along."""

import io
import json
import shutil

import pytest
import sentencepiece
from tiny import make_llama, make_text

from hebbline.artifacts import InputError, read_manifest
from hebbline.artifacts.tokenizer_files import publish_tokenizer, read_tokenizer
from hebbline.cli import main

TEMPLATE = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def llama_directory(tmp_path_factory):
    """A dense Llama with the tokenizer of the first Llamas: sentencepiece's BPE with bytes for what it lacks."""
    path = tmp_path_factory.mktemp("llama") / "model"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make_text(200)),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    make_llama(processor.vocab_size()).save_pretrained(path)
    (path / "tokenizer.model").write_bytes(model.getvalue())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": True,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "temperature": 0.7, "do_sample": True}))
    return path


def test_a_sentencepiece_model_is_converted(llama_directory):
    processor = sentencepiece.SentencePieceProcessor(str(llama_directory / "tokenizer.model"))
    tokenizer = read_tokenizer(llama_directory)
    for text in ("the quick brown fox jumps over 7 lazy dogs", "Grüße, 世界 🦊", "a fox  with two  spaces"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == processor.encode(text)
        assert tokenizer.decode(ids) == text


def test_an_artifact_carries_it_and_what_belongs_to_it(llama_directory, tmp_path, capsys):
    out = tmp_path / "artifact"
    assert main(["export", str(llama_directory), "--out", str(out)]) == 0, capsys.readouterr().err
    files = read_manifest(out).files
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert name in files
    assert (out / "chat_template.jinja").read_text() == TEMPLATE
    (tmp_path / "text.txt").write_text("\n\n".join(make_text(30)))
    values = []
    for target in (llama_directory, out):
        arguments = ["eval", str(target), "--whole", str(tmp_path / "text.txt"), "--max-windows", "3", "--json"]
        assert main(arguments) == 0
        values.append(json.loads(capsys.readouterr().out)["value"])
    assert values[0] == pytest.approx(values[1], rel=1e-4)


@pytest.mark.parametrize("damage", ["absent", "tokenizer.model", "tokenizer.json"])
def test_what_cannot_be_read_is_named_in_one_line(llama_directory, tmp_path, capsys, damage):
    directory = shutil.copytree(llama_directory, tmp_path / "model")
    if damage == "absent":
        (directory / "tokenizer.model").unlink()
    else:
        (directory / damage).write_bytes(b"\x01no tokenizer")
    assert main(["eval", str(directory)]) == 2
    error = capsys.readouterr().err
    assert "tokenizer" in error and str(directory) in error.replace("\n", "") and "Traceback" not in error


def test_a_damaged_companion_is_named(llama_directory, tmp_path):
    directory = shutil.copytree(llama_directory, tmp_path / "model")
    (directory / "tokenizer_config.json").write_text("[]")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"tokenizer_config\.json"):
        publish_tokenizer(directory, tmp_path / "out")
