import json

import pytest
import torch
from tiny import make_text
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForCausalLM, AutoTokenizer

from hebbline.artifacts import InputError, load_masks, read_manifest
from hebbline.data import load_documents, pack_tokens
from hebbline.train.save import save_model_directory
from hebbline.train.tasks import read_recipe, train_language_model

OVERRIDES = [
    "--model.hidden_size=32",
    "--model.intermediate_size=48",
    "--model.layers=1",
    "--model.heads=2",
    "--model.kv_heads=1",
    "--model.context_length=64",
    "--model.vocab_size=300",
    "--data.sequence_length=16",
    "--data.validation_share=0.2",
    "--optimization.steps=40",
    "--optimization.batch_size=4",
    "--optimization.warmup_steps=2",
    "--sparsity.update.every=5",
    "--sparsity.update.stop=30",
]


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(make_text(80)))
    return path


@pytest.fixture
def result(text_file):
    recipe, _ = read_recipe("demo", [*OVERRIDES, f"--data.source={text_file}"])
    return train_language_model(recipe)


def test_training_learns_stays_sparse_and_reports(result):
    losses = [record["loss"] for record in result.log if "loss" in record]
    assert float(losses[-1]) < float(losses[0]) - 0.3
    assert [report.step for report in result.updates] == [5, 10, 15, 20, 25, 30]
    assert all(report.regrown > 0 for report in result.updates[:-1])
    for name, mask in result.masks.items():
        weight = result.model.get_parameter(f"{name}.weight")
        assert int(mask.sum()) == round(0.3 * mask.numel())
        assert not torch.signbit(weight[~mask]).any() and not weight[~mask].any() and weight[mask].any()
    assert len(result.masks) == 7


@pytest.mark.parametrize("own_steps", ["true", "false"])
def test_weights_and_moments_may_be_held_in_bfloat16(text_file, own_steps):
    options = ["--optimization.weights=bfloat16", "--optimization.steps=12", "--sparsity.update.stop=10"]
    options += [f"--sparsity.new_links.own_steps={own_steps}", f"--data.source={text_file}"]
    kept = set()

    def look(optimizer, *_):
        for parameter, state in optimizer.state.items():
            kept.update((parameter.dtype, parameter.grad.dtype, state["exp_avg"].dtype, state["exp_avg_sq"].dtype))

    hook = register_optimizer_step_post_hook(look)
    result = train_language_model(read_recipe("demo", [*OVERRIDES, *options])[0])
    hook.remove()
    assert kept == {torch.bfloat16}
    assert result.model.dtype == torch.bfloat16
    assert {buffer.dtype for buffer in result.model.buffers()} == {torch.float32}, "positions are not rounded"
    assert all(int(mask.sum()) == round(0.3 * mask.numel()) for mask in result.masks.values())
    losses = [float(record["loss"]) for record in result.log if "loss" in record]
    assert 0 < losses[-1] < 7


def test_same_recipe_same_bits(result, text_file):
    recipe, _ = read_recipe("demo", [*OVERRIDES, f"--data.source={text_file}"])
    again = train_language_model(recipe)
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in result.model.state_dict().items())
    assert all(torch.equal(mask, again.masks[name]) for name, mask in result.masks.items())


def test_saved_directory_loads_in_transformers_as_it_is(result, tmp_path):
    out = tmp_path / "model"
    save_model_directory(
        out, result.model, result.tokenizer, result.masks, method="chtss", recipe="a: 1\n", log=result.log
    )
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, value in result.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    text = "the quick brown fox: ünïcode"
    assert AutoTokenizer.from_pretrained(out).decode(result.tokenizer.encode(text)) == text
    masks = load_masks(out / "masks.safetensors")
    assert all((torch.from_numpy(masks[name]) == mask).all() for name, mask in result.masks.items())
    manifest = read_manifest(out)
    assert manifest.method == "chtss" and len(manifest.layers) == 7 and manifest.recipe_digest
    records = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert any("density" in record for record in records) and any("sparsity/removed" in record for record in records)


def test_yaml_of_a_recipe_reads_back_to_the_same_recipe(tmp_path):
    recipe, yaml = read_recipe("demo", ["--sparsity.density=0.2", "--sparsity.removal.temperature=[1, 3]"])
    (tmp_path / "copy.yaml").write_text(yaml)
    assert read_recipe(str(tmp_path / "copy.yaml")) == (recipe, yaml)
    assert recipe.sparsity.density == 0.2 and recipe.sparsity.removal.temperature == (1, 3)


@pytest.mark.parametrize(
    "name", ["demo", "llama-60m", "mnist-mlp", "mnist-mlp-small", "translation-multi30k", "translation-small"]
)
def test_shipped_recipes_are_valid(name):
    assert read_recipe(name)[0].sparsity.method in ("chts", "chtss")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--sparsity.densty=0.3", "densty"),
        ("--sparsity.density=1.5", "sparsity.density 1.5"),
        ("--sparsity.method=magic", "method"),
        ("--model.heads=7", "model.hidden_size 256"),
        ("--model.kv_heads=3", "model.kv_heads 3"),
        ("--data.sequence_length=4096", "data.sequence_length 4096"),
        ("--data.source=/nowhere.txt", "/nowhere.txt"),
    ],
)
def test_bad_fields_are_named(override, message):
    with pytest.raises(InputError, match=message):
        train_language_model(read_recipe("demo", [override])[0])


def test_split_depends_on_the_text_alone(tmp_path):
    texts = make_text(60)
    for name, order in (("a.txt", texts), ("b.txt", texts[::-1])):
        (tmp_path / name).write_text("\n\n".join(order))
    first, second = (load_documents(str(tmp_path / name), 0.3) for name in ("a.txt", "b.txt"))
    assert first == second
    assert not set(first.train) & set(first.validation) and len(first.train) + len(first.validation) == 60
    assert 0.1 < len(first.validation) / 60 < 0.5


def test_jsonl_source_names_the_bad_line(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_text(30)))
    assert len(load_documents(str(path), 0.3).train) > 10
    path.write_text('{"text": "a"}\n{"content": "b"}\n')
    with pytest.raises(InputError, match="line 2"):
        load_documents(str(path), 0.3)


def test_packing_ends_every_document(tokenizer):
    texts = ["the fox", "a dog"]
    blocks = pack_tokens(tokenizer, texts, 3)
    flat = [token for text in texts for token in [*tokenizer.encode(text), tokenizer.eos_token_id]]
    assert blocks.flatten().tolist() == flat[: len(flat) // 3 * 3]
    with pytest.raises(InputError, match="fewer than one block"):
        pack_tokens(tokenizer, texts, 1000)


def test_a_tokenizer_of_ones_own(tokenizer, text_file, tmp_path):
    tokenizer.save_pretrained(tmp_path / "own")
    options = [*OVERRIDES, f"--data.source={text_file}", "--optimization.steps=10", "--sparsity.update.stop=10"]
    recipe, _ = read_recipe("demo", [*options, f"--model.tokenizer={tmp_path / 'own'}"])
    result = train_language_model(recipe)
    assert result.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert result.model.config.vocab_size == len(tokenizer) != 300
    assert result.model.config.eos_token_id == tokenizer.eos_token_id
    with pytest.raises(InputError, match=r"model\.tokenizer: \S+nothing is not a directory"):
        train_language_model(read_recipe("demo", [*options, f"--model.tokenizer={tmp_path / 'nothing'}"])[0])
    tokenizer.save_pretrained(tmp_path / "endless")
    settings = json.loads((tmp_path / "endless/tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (tmp_path / "endless/tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "endless/special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(InputError, match="has no eos_token"):
        train_language_model(read_recipe("demo", [*options, f"--model.tokenizer={tmp_path / 'endless'}"])[0])
    with pytest.raises(InputError, match=r"model\.tokenizer: model\.pretrained comes with its own"):
        read_recipe("demo", ["--model.tokenizer=own", "--model.pretrained=dense"])
