"""Models that are broken, or of a kind that is not taken: every command says in one line what is wrong, and where.

Each case changes one thing of a sound directory. The commands are run on it as a newcomer would run them; each must end
with exit code 2 and one line that names the file, field or tensor, and leave nothing behind.
"""

import hashlib
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
import yaml
from bad_configurations import CONFIGURATIONS, FAMILIES, VALUES, family, rope
from damage import content, fields, weights, without
from safetensors.torch import load_file, save_file
from tiny import make_text

from hebbline.artifacts.manifest import MANIFEST_FILE
from hebbline.cli import main
from hebbline.data import train_tokenizer

GATE = "model.layers.1.mlp.gate_proj"
COMMANDS = ("export", "eval", "train", "prune")


def gate(change):
    return weights(lambda tensors: tensors.update({f"{GATE}.weight": change(tensors[f"{GATE}.weight"])}))


def truncated(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def indexed(index):
    """Two shards, and what `index` makes of their list."""

    def split(directory):
        tensors = load_file(directory / "model.safetensors")
        (directory / "model.safetensors").unlink()
        names = sorted(tensors)
        shards = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
        for file, held in shards.items():
            save_file({name: tensors[name] for name in held}, directory / file, {"format": "pt"})
        placed = {"weight_map": {name: file for file, held in shards.items() for name in held}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index(placed)))

    return split


def lost_shard(directory):
    indexed(lambda index: index)(directory)
    (directory / "b.safetensors").unlink()


def saved_by_torch(made):
    def save(directory):
        tensors = load_file(directory / "model.safetensors")
        (directory / "model.safetensors").unlink()
        content = made(tensors)
        path = directory / "pytorch_model.bin"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)

    return save


class Code:
    """Raises where it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a checkpoint was run')",))


def bitmask(**changed):
    """The gate as compressed-tensors stores it, with parts changed, or taken out by None."""

    def store(tensors):
        weight = tensors.pop(f"{GATE}.weight")
        parts = {
            "compressed": weight[weight != 0],
            "bitmask": torch.from_numpy(np.packbits((weight != 0).numpy(), axis=1, bitorder="little")),
            "shape": torch.tensor(weight.shape),
        }
        made = {name: changed.get(name, lambda part: part) for name in parts}
        tensors.update({f"{GATE}.{name}": make(parts[name]) for name, make in made.items() if make is not None})

    return weights(store)


def pruned_by_torch(mask):
    def store(tensors):
        tensors[f"{GATE}.weight_orig"] = weight = tensors.pop(f"{GATE}.weight")
        if mask is not None:
            tensors[f"{GATE}.weight_mask"] = mask(weight)

    return weights(store)


NOT_FINITE = f"layer '{GATE}.weight' has 96 weights that are NaN or infinite"
WEIGHTS = {
    "none": (without("model.safetensors"), "has no weights: none of model.safetensors"),
    "an empty file": (content("model.safetensors", ""), "model.safetensors: cannot read the weights"),
    "a truncated file": (truncated, "model.safetensors: cannot read the weights"),
    "another file": (content("model.safetensors", b"\xff" * 64), "model.safetensors: cannot read the weights"),
    "a note of Git LFS": (
        content("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "model.safetensors was not fetched",
    ),
    "a missing tensor": (weights(lambda t: t.pop(f"{GATE}.weight")), f"they have no tensor '{GATE}.weight'"),
    "a missing norm": (weights(lambda t: t.pop("model.norm.weight")), "they have no tensor 'model.norm.weight'"),
    "a tensor of nothing": (weights(lambda t: t.update(x=torch.ones(2))), "tensor 'x' has no place in the model"),
    "a bias of nothing": (
        weights(lambda t: t.update({f"{GATE}.bias": torch.ones(104)})),
        f"tensor '{GATE}.bias' has no place in the model",
    ),
    "a turned matrix": (gate(lambda w: w.T.contiguous()), f"'{GATE}.weight' is [96, 104], and should be [104, 96]"),
    "a flat matrix": (gate(torch.flatten), f"'{GATE}.weight' is [9984], and should be [104, 96]"),
    "an empty matrix": (gate(lambda w: w[:0]), f"'{GATE}.weight' is [0, 96], and should be [104, 96]"),
    "integers without scales": (gate(lambda w: w.to(torch.int8)), f"tensor '{GATE}.weight' has the type"),
    "complex numbers": (gate(lambda w: w.to(torch.complex64)), f"tensor '{GATE}.weight' has the type"),
    "not a number": (gate(lambda w: w.index_fill(0, torch.tensor([3]), torch.nan)), NOT_FINITE),
    "infinite": (gate(lambda w: w.index_fill(0, torch.tensor([3]), torch.inf)), NOT_FINITE),
    "a lost shard": (lost_shard, "model.safetensors.index.json names b.safetensors, which is not there"),
    "an index that is a list": (indexed(lambda index: []), "index.json is no JSON object, but a list"),
    "an index of nothing": (indexed(lambda index: {}), "index.json has no 'weight_map'"),
    "an index of numbers": (indexed(lambda index: {"weight_map": {"a": 3}}), "index.json has no 'weight_map'"),
    "an index that leads away": (
        indexed(lambda index: {"weight_map": {"a": "../../etc/passwd"}}),
        "names ../../etc/passwd, which is not there",
    ),
    "code": (saved_by_torch(lambda t: t | {"x": Code()}), "pytorch_model.bin holds something else than tensors"),
    "code of an old file": (saved_by_torch(lambda t: pickle.dumps(Code())), "pytorch_model.bin holds something else"),
    "no pickle": (
        saved_by_torch(lambda t: b"hello world"),
        "pytorch_model.bin cannot be read as weights that torch saved",
    ),
    "an empty pickle": (saved_by_torch(lambda t: b""), "the file is empty"),
    "a dictionary in a dictionary": (saved_by_torch(lambda t: {"state": t}), "is no dictionary of plain tensors"),
    "numbers as names": (saved_by_torch(lambda t: {1: torch.ones(2)}), "is no dictionary of plain tensors"),
    "a bitmask without values": (bitmask(compressed=None), f"tensor '{GATE}.bitmask' belongs to a weight of which"),
    "a bitmask without a shape": (bitmask(shape=None), f"no tensor '{GATE}.shape'"),
    "a bitmask of other bits": (bitmask(bitmask=lambda b: 255 - b), f"tensor '{GATE}.compressed' has"),
    "a bitmask of other rows": (bitmask(bitmask=lambda b: b[:-1].clone()), f"'{GATE}.bitmask' is uint8 [103, 12]"),
    "a bitmask of another type": (bitmask(bitmask=lambda b: b.int()), f"'{GATE}.bitmask' is int32 [104, 12]"),
    "a bitmask of another shape": (
        bitmask(shape=lambda shape: torch.tensor([1 << 40, 1 << 40])),
        "a matrix of 1099511627776 x 1099511627776 takes uint8",
    ),
    "a bitmask of no shape": (bitmask(shape=lambda s: torch.tensor([torch.nan, 1])), "must be the two sizes"),
    "a value too few": (bitmask(compressed=lambda v: v[:-1].clone()), f"tensor '{GATE}.compressed' has"),
    "a mask of another shape": (pruned_by_torch(lambda w: torch.ones(3, 3)), f"tensor '{GATE}.weight_mask' is [3, 3]"),
    "a mask of halves": (pruned_by_torch(lambda w: w * 0 + 0.5), "has values that are neither 0 nor 1"),
    "no mask": (pruned_by_torch(None), f"no tensor '{GATE}.weight_mask'"),
}

TOKENIZERS = {
    "none": (without("tokenizer.json"), "has no tokenizer.json, nor tokenizer.model"),
    "empty": (content("tokenizer.json", ""), "tokenizer.json: cannot read the tokenizer"),
    "a list": (content("tokenizer.json", "[]"), "tokenizer.json: cannot read the tokenizer"),
    "nothing in it": (content("tokenizer.json", "{}"), "tokenizer.json: cannot read the tokenizer"),
    "another model's": (
        lambda directory: train_tokenizer(make_text(50), 600).save_pretrained(directory),
        "and the model embeddings for 320: it is another model's",
    ),
    "settings that are a list": (content("tokenizer_config.json", "[]"), "tokenizer_config.json is no JSON object"),
    "generation that is no JSON": (content("generation_config.json", "{"), "generation_config.json cannot be read"),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(make_text(60)))
    return path


@pytest.fixture
def model(tiny_model_directory, tmp_path):
    """What another tool would have saved, of 320 tokens."""
    shutil.copytree(tiny_model_directory, tmp_path / "model")
    for name in ("hebbline.json", "masks.safetensors", "recipe.yaml", "training.jsonl"):
        (tmp_path / "model" / name).unlink(missing_ok=True)
    return tmp_path / "model"


def arguments(command, model, text):
    folder = model.parent
    if command == "export":
        return [model, "--out", folder / "out"]
    if command == "eval":
        return [model, "--source", text, "--window", "16", "--validation-share", "0.5"]
    if command == "prune":
        return [model, "--calibration", text, "--out", folder / "out", "--sequences", "2", "--sequence-length", "16"]
    recipe = {
        "model": {"pretrained": str(model)},
        "data": {"source": str(text), "sequence_length": 16},
        "optimization": {"steps": 1},
        "sparsity": {"method": "static"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return [folder / "recipe.yaml", "--out", folder / "out"]


def refused(capsys, model, text, command) -> str:
    """The one line that a command ends with; it leaves nothing behind."""
    given = [str(argument) for argument in arguments(command, model, text)]
    before = sorted(model.parent.rglob("*"))
    capsys.readouterr()
    assert main([command, *given]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and sorted(model.parent.rglob("*")) == before
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("hebbline: error: ") and len(lines[0]) < 600
    return lines[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(*case, id=f"{kind}: {name}")
        for kind, cases in (
            ("config", CONFIGURATIONS),
            ("value", VALUES),
            ("weights", WEIGHTS),
            ("tokenizer", TOKENIZERS),
        )
        for name, case in cases.items()
    ],
)
def test_every_command_names_what_is_wrong(capsys, model, text, change, message):
    change(model)
    for command in COMMANDS:
        assert message in refused(capsys, model, text, command)


@pytest.mark.parametrize(("change", "message"), FAMILIES.values(), ids=FAMILIES)
def test_what_is_not_taken_is_named_before_it_is_trained(capsys, model, text, change, message):
    change(model)
    for command in ("export", "train"):
        line = refused(capsys, model, text, command)
        assert message in line and "`hebbline pack` takes the model's own ONNX export" in line


@pytest.mark.parametrize(("change", "message"), VALUES.values(), ids=VALUES)
def test_values_that_make_no_sense_are_named_with_their_file(capsys, model, text, change, message):
    change(model)
    for command in ("export", "eval", "prune"):
        assert f"{model / 'config.json'}: " in refused(capsys, model, text, command)


def test_a_rotation_that_the_family_does_not_have_is_refused_where_a_model_is_described(capsys, model, text):
    """transformers' Llama turns every place of a head, whatever the field says: what it computes is evaluated."""
    rope(rope_type="default", partial_rotary_factor=0.5)(model)
    for command in ("export", "train"):
        line = refused(capsys, model, text, command)
        assert "by partial_rotary_factor 8 places of each head turn, and by transformers' Llama 16" in line


def test_a_benchmark_names_the_field_and_the_file(capsys, model):
    """What it prints of the machine goes before."""
    rope(rope_type="default", rope_theta=0)(model)
    capsys.readouterr()
    assert main(["bench", "model", str(model), "--context", "32", "--prefill", "16"]) == 2
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert captured.out == "" and last.startswith(f"hebbline: error: {model / 'config.json'}: rope_parameters.rope_th")
    assert "left out" not in captured.err


def test_inspect_names_the_field_of_a_published_model(capsys, model, tmp_path, text):
    """The digests of its files are right: it was published so."""
    assert main(["prune", *(str(one) for one in arguments("prune", model, text))]) == 0
    published = tmp_path / "out"
    rope(rope_type="default", rope_theta=0)(published)
    manifest = json.loads((published / MANIFEST_FILE).read_text())
    content = (published / "config.json").read_bytes()
    manifest["files"]["config.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (published / MANIFEST_FILE).write_text(json.dumps(manifest))
    capsys.readouterr()
    assert main(["inspect", str(published)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and f"{published / 'config.json'}: rope_parameters.rope_theta" in captured.err


def test_a_context_that_was_cut_below_the_original_one_is_taken(model, text, tmp_path):
    """Whoever lacks the memory for a model's context makes it smaller: the frequencies stay those of the original."""
    rope(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=4096,
    )(model)
    assert main(["eval", *(str(one) for one in arguments("eval", model, text))]) == 0
    assert main(["export", str(model), "--out", str(tmp_path / "exported")]) == 0


def test_a_context_too_short_to_be_checked_is_named_at_once(capsys, model, text):
    fields(max_position_embeddings=20)(model)
    assert "the model's context of 20 tokens is too short to be checked" in refused(capsys, model, text, "export")


def test_a_window_larger_than_the_context_is_said_and_exported(model, tmp_path, caplog):
    family("mistral", "MistralForCausalLM", sliding_window=4096)(model)
    assert main(["export", str(model), "--out", str(tmp_path / "out")]) == 0
    assert "sliding_window 4096 is no smaller than the context of 128 tokens" in caplog.text


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_say_whether_lm_head_is_tied(model, tmp_path, tied):
    """A configuration that ties over a file that does not, and the other way round."""
    fields(tie_word_embeddings=tied)(model)
    if tied:
        weights(lambda t: t.update({"lm_head.weight": torch.randn_like(t["model.embed_tokens.weight"])}))(model)
    assert main(["export", str(model), "--out", str(tmp_path / "out")]) == 0
    layers = json.loads((tmp_path / "out/hebbline.json").read_text())["layers"]
    assert ("lm_head" in [layer["name"] for layer in layers]) == tied


def test_what_is_no_directory_is_not_looked_for_on_the_hub(capsys, tmp_path, text):
    for command in COMMANDS:
        assert "is not a directory" in refused(capsys, tmp_path / "nothing", text, command)
