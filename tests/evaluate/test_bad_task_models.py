"""Models of the other tasks that are broken or foreign: `hebbline eval` says in one line what is wrong, and where."""

import json
import pickle
import shutil

import pytest
import torch
from damage import content, fields, weights, without
from tiny import make_text

from hebbline.cli import main
from hebbline.data.tokens import END_OF_TEXT, PADDING, train_tokenizer
from hebbline.train.tasks.mlp import Mlp, MlpConfig
from hebbline.train.tasks.translation import build_transformer
from hebbline.train.tasks.translation_recipe import TransformerShape


class Code:
    """Raises where it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a checkpoint was run')",))


def pickled(directory):
    (directory / "model.safetensors").unlink()
    torch.save({"x": Code()}, directory / "pytorch_model.bin")


def pickled_of_old(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Code()))


def tokenizer_of_another(directory):
    train_tokenizer(make_text(80), 600, [END_OF_TEXT, PADDING]).save_pretrained(directory)


def no_padding(directory):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (path := directory / name).is_file():
            path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}))


SHARED = {
    "no config": (without("config.json"), "it has no config.json"),
    "no JSON": (content("config.json", "{"), "config.json cannot be read as JSON"),
    "a family that nobody knows": (fields(model_type="foo"), "config.json: model_type is 'foo', and the recipe's task"),
    "a decoder": (fields(model_type="llama"), "config.json: model_type is 'llama', and the recipe's task"),
    "quantised by another tool": (fields(quantization_config={"quant_method": "gptq"}), "says 'gptq'"),
    "no weights": (without("model.safetensors"), "has no weights: none of model.safetensors"),
    "no file of tensors": (content("model.safetensors", "nothing"), "model.safetensors: cannot read the weights"),
    "a tensor of nothing": (weights(lambda t: t.update(x=torch.ones(2))), "tensor 'x' has no place in the model"),
    "code": (pickled, "pytorch_model.bin holds something else than tensors"),
    "code of an old file": (pickled_of_old, "pytorch_model.bin holds something else"),
}

HEAD, LAST = "head.weight", "model.decoder.layers.0.fc2.weight"
IMAGES = {
    "a missing tensor": (weights(lambda t: t.pop(HEAD)), f"they have no tensor '{HEAD}'"),
    "a wrong shape": (
        weights(lambda t: t.update({HEAD: t[HEAD].T.contiguous()})),
        f"'{HEAD}' is [8, 4], and should be [4, 8]",
    ),
    "not a number": (weights(lambda t: t[HEAD].fill_(torch.nan)), f"layer '{HEAD}' has 32 weights that are NaN"),
    "integers": (weights(lambda t: t.update({HEAD: t[HEAD].int()})), f"tensor '{HEAD}' has the type I32"),
    "other sizes": (fields(hidden=[9]), "tensor 'head.weight' is [4, 8], and should be [4, 9]"),
    "sizes as a word": (fields(hidden="eight"), "hidden 'eight' and classes 4 must be"),
    "no features": (fields(features=0), "features 0, hidden [8]"),
}
TRANSLATION = {
    "a missing tensor": (weights(lambda t: t.pop(LAST)), f"they have no tensor '{LAST}'"),
    "a wrong shape": (
        weights(lambda t: t.update({LAST: t[LAST].T.contiguous()})),
        f"'{LAST}' is [24, 16], and should be [16, 24]",
    ),
    "not a number": (
        weights(lambda t: t[LAST].fill_(torch.inf)),
        f"layer '{LAST}' has 384 weights that are NaN or inf",
    ),
    "a million layers": (fields(decoder_layers=10**6), "says 1000000 decoder_layers, and no tensor of the weights is"),
    "a size below 1": (fields(encoder_attention_heads=0), "encoder_attention_heads is 0; it must be at least 1"),
    "another vocabulary": (fields(vocab_size=500), "'final_logits_bias' is [1, 320], and should be [1, 500]"),
    "an unknown activation": (fields(activation_function="swiglu2"), "activation_function names 'swiglu2', which"),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer.json"),
    "a broken tokenizer": (content("tokenizer.json", "{}"), "tokenizer.json: cannot read the tokenizer"),
    "another model's tokenizer": (tokenizer_of_another, "and the model embeddings for 320: it is another model's"),
    "no padding": (no_padding, "the tokenizer has no pad_token of the model's: set it in tokenizer_config.json"),
    "a context that is too short": (
        fields(max_position_embeddings=8),
        "max_position_embeddings is 8, and model.max_tok",
    ),
    "a first token that there is not": (
        content("generation_config.json", json.dumps({"decoder_start_token_id": 9999})),
        "config.json: the model cannot translate as it says: ",
    ),
}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    directory = tmp_path_factory.mktemp("image") / "model"
    Mlp(MlpConfig(36, (8,), 4)).save_pretrained(directory)
    (directory / "recipe.yaml").write_text("task: image\n")
    return directory


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    directory = tmp_path_factory.mktemp("translation") / "model"
    texts = make_text(60)
    tokenizer = train_tokenizer(texts, 320, [END_OF_TEXT, PADDING])
    shape = TransformerShape(hidden_size=16, feed_forward_size=24, layers=1, heads=2, vocab_size=320, max_tokens=12)
    build_transformer(shape, tokenizer).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    pairs = directory.parent / "pairs.tsv"
    pairs.write_text("\n".join(f"{text}\t{text}" for text in texts))
    recipe = {
        "task": "translation",
        "data": {"source": str(pairs), "test_pairs": 2, "test_share": 0.1},
        "model": {"max_tokens": 12},
    }
    (directory / "recipe.yaml").write_text(json.dumps(recipe))
    return directory


def refused(capsys, directory) -> str:
    """The one line that `eval` ends with."""
    capsys.readouterr()
    assert main(["eval", str(directory)]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert captured.out == "" and len(lines) == 1 and lines[0].startswith("hebbline: error: ") and len(lines[0]) < 600
    return lines[0]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        pytest.param(kind, *case, id=f"{kind}: {name}")
        for kind, cases in (("classifier", SHARED | IMAGES), ("translator", SHARED | TRANSLATION))
        for name, case in cases.items()
    ],
)
def test_a_broken_model_of_another_task_is_refused_in_one_line(capsys, request, tmp_path, kind, change, message):
    directory = tmp_path / "model"
    shutil.copytree(request.getfixturevalue(kind), directory)
    change(directory)
    line = refused(capsys, directory)
    assert message in line and str(directory) in line


def test_the_sound_translator_is_scored(capsys, translator):
    """What the cases above change one thing of."""
    assert main(["eval", str(translator), "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert (score["name"], score["examples"]) == ("bleu", 2)


@pytest.mark.parametrize("recipe", ["task: [", "- a", "task: [image]", "default_stage: {}", "\x00"])
def test_a_recipe_of_another_tool_is_none(capsys, tiny_model_directory, tmp_path, recipe):
    shutil.copytree(tiny_model_directory, tmp_path / "model")
    (tmp_path / "model/hebbline.json").unlink(missing_ok=True)
    (tmp_path / "model/recipe.yaml").write_text(recipe)
    (tmp_path / "text.txt").write_text("\n\n".join(make_text(40)))
    arguments = ["--source", str(tmp_path / "text.txt"), "--window", "16", "--validation-share", "1"]
    assert main(["eval", str(tmp_path / "model"), *arguments]) == 0
    assert capsys.readouterr().out.startswith("perplexity ")


def test_a_field_that_recipes_do_not_have_is_named(capsys, classifier, tmp_path):
    shutil.copytree(classifier, tmp_path / "model")
    (tmp_path / "model/recipe.yaml").write_text("task: image\ncolour: red\n")
    assert "recipe.yaml: there is no field 'colour'" in refused(capsys, tmp_path / "model")
