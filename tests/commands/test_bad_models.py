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
from damage import content, fields, weights, without
from safetensors.torch import load_file, save_file
from tiny import make_text

from hebbline.artifacts.manifest import MANIFEST_FILE
from hebbline.cli import main
from hebbline.data import train_tokenizer

GATE = "model.layers.1.mlp.gate_proj"
COMMANDS = ("export", "eval", "train", "prune")


def rope(**parameters):
    return fields(rope_parameters={"rope_theta": 1e4} | parameters)


def family(model_type, architecture, **changed):
    return fields(model_type=model_type, architectures=[architecture], **changed)


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
CONFIGURATIONS = {
    "missing": (without("config.json"), "it has no config.json"),
    "empty": (content("config.json", ""), "config.json cannot be read as JSON"),
    "no JSON": (content("config.json", "{"), "config.json cannot be read as JSON"),
    "a list": (content("config.json", "[]"), "config.json is no JSON object, but a list"),
    "no text": (content("config.json", b"\xff\xfe"), "config.json cannot be read as JSON"),
    "deep": (content("config.json", "[" * 5000), "config.json cannot be read as JSON"),
    "no family": (fields(model_type=None), "config.json has no model_type"),
    "a family as a number": (fields(model_type=3), "config.json has no model_type"),
    "a family that nobody knows": (fields(model_type="foo"), "model_type 'foo' is none that transformers knows"),
    "a family with code": (
        fields(model_type="foo", auto_map={"AutoConfig": "evil.Config"}),
        "(code that comes with a model is not run); `hebbline pack`",
    ),
    "a size as a word": (fields(hidden_size="96"), "Field 'hidden_size' expected int, got str"),
    "a size below 1": (fields(num_hidden_layers=0), "num_hidden_layers is 0; it must be at least 1"),
    "negative heads": (fields(num_key_value_heads=-2), "num_key_value_heads is -2; it must be at least 1"),
    "heads that do not divide": (fields(num_attention_heads=5), "The hidden size (96) is not a multiple"),
    "another hidden size": (
        fields(hidden_size=120),
        "'model.embed_tokens.weight' is [320, 96], and should be [320, 120]",
    ),
    "another vocabulary": (fields(vocab_size=1000), "is [320, 96], and should be [1000, 96]"),
    "a million layers": (fields(num_hidden_layers=10**6), "says 1000000 layers, and no tensor of the weights is of"),
    "fewer layers": (fields(num_hidden_layers=1), "tensor 'model.layers.1.input_layernorm.weight' has no place"),
    "biases that are not there": (fields(attention_bias=True), "have no tensor 'model.layers.0.self_attn.k_proj.bias'"),
    "an activation as a number": (fields(hidden_act=3), "Field 'hidden_act' expected str, got int"),
    "a type as a number": (fields(dtype=3), "dtype is 3; it is the name of a type"),
    "end of text as a word": (fields(eos_token_id="</s>"), "Field 'eos_token_id' with value '</s>'"),
    "rotary parameters as a word": (fields(rope_parameters="yarn"), "Field 'rope_parameters' with value 'yarn'"),
    "yarn without a factor": (rope(rope_type="yarn"), "Missing required keys in `rope_parameters`"),
    "longrope without factors": (rope(rope_type="longrope"), "Missing required keys in `rope_parameters`"),
    "layer types of fewer layers": (
        family("qwen2", "Qwen2ForCausalLM", layer_types=["full_attention"]),
        "must be equal to the number of `layer_types`",
    ),
    "quantised by another tool": (fields(quantization_config={"quant_method": "gptq"}), "says 'gptq'"),
}
"""What every command refuses."""

FAMILIES = {
    "another family": (family("bloom", "BloomForCausalLM"), "BloomForCausalLM is of none of the families"),
    "an encoder": (family("bert", "BertModel"), "BertModel is of none of the families"),
    "an encoder-decoder": (family("t5", "T5ForConditionalGeneration"), "is of none of the families"),
    "another head": (fields(architectures=["LlamaForSequenceClassification"]), "is of none of the families"),
    "an architecture as a number": (fields(architectures=[3]), "architecture 3 is of none of the families"),
    "an activation that is not taken": (fields(hidden_act="mish"), "hidden_act 'mish' is not supported"),
    "a rotary type that is not taken": (rope(rope_type="proportional"), "rope_type 'proportional' is not supported"),
    "heads that kernels do not take": (fields(head_dim=20), "attention heads of size 20 are not supported"),
    "layers that attend otherwise": (
        family("qwen2", "Qwen2ForCausalLM", layer_types=["full_attention", "linear_attention"]),
        "layer_types names 'linear_attention'",
    ),
}
"""What is refused before it is trained or exported, by a line that names `hebbline pack`."""

VALUES = {
    "groups of heads that do not divide": (fields(num_key_value_heads=4), "6 query heads are no multiple of 4"),
    "an unknown activation": (fields(hidden_act="swiglu2"), "hidden_act 'swiglu2' is no activation that transformers"),
    "no window": (
        family("mistral", "MistralForCausalLM", sliding_window=0),
        "sliding_window is 0; a window is at least",
    ),
    "a negative window": (family("mistral", "MistralForCausalLM", sliding_window=-1), "sliding_window is -1; a window"),
    "an unknown rotary type": (
        rope(rope_type="spiral"),
        "rope_parameters.rope_type 'spiral' is none that transformers",
    ),
    "a rotary factor as a word": (rope(rope_type="yarn", factor="4"), "factor of rope_type 'yarn' is '4'"),
    "a rotary factor of 0": (rope(rope_type="linear", factor=0), "is 0; it must be a number of at least 1"),
    "a rotary base of 0": (
        rope(rope_type="default", rope_theta=0),
        "rope_theta of rope_type 'default' is 0; it must be",
    ),
    "a negative rotary base": (rope(rope_type="default", rope_theta=-1e4), "is -10000.0; it must be a number above 0"),
    "a rotary base that is no number": (rope(rope_type="default", rope_theta=float("nan")), "is nan; it must be"),
    "an infinite rotary base": (rope(rope_type="default", rope_theta=float("inf")), "is inf; it must be"),
    "a rotary base of an earlier transformers": (
        fields(rope_parameters=None, rope_theta=-1, rope_scaling=None),
        "rope_theta of rope_type 'default' is -1; it must be",
    ),
    "a rotation of more than a head": (
        rope(rope_type="default", partial_rotary_factor=2.0),
        "partial_rotary_factor of rope_type 'default' is 2.0; it must be a number above 0, and at most 1",
    ),
    "no original context": (
        rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=-24),
        "original_max_position_embeddings of rope_type 'yarn' is -24; it must be a whole number of tokens",
    ),
    "bands of frequencies the wrong way round": (
        rope(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=4.0,
            high_freq_factor=1.0,
            original_max_position_embeddings=64,
        ),
        "rope_parameters.high_freq_factor is 1.0; it must be above low_freq_factor, 4.0",
    ),
    "factors of another size": (
        rope(rope_type="longrope", short_factor=[1.0], long_factor=[1.0], original_max_position_embeddings=24),
        "short_factor has 1 numbers, and 8 pairs of places turn",
    ),
    "factors of 0": (
        rope(rope_type="longrope", short_factor=[1.0] * 8, long_factor=[0] * 8, original_max_position_embeddings=24),
        "rope_parameters.long_factor must be a list of numbers above 0",
    ),
    "a negative epsilon": (fields(rms_norm_eps=-1.0), "the epsilon of norms is -1.0"),
    "an epsilon that is no number": (fields(rms_norm_eps=float("nan")), "the epsilon of norms is nan"),
}
"""Values with which transformers would compute nonsense, or stop in the midst of it: every command refuses them."""

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
