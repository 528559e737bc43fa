"""Models of every family are trained from a configuration and from weights, and what is saved can be exported."""

import pytest
import torch
from families import FAMILIES, make_config, make_model
from tiny import make_text
from transformers import AutoModelForCausalLM

from hebbline.architectures import decoder_of, use_linear_layers
from hebbline.artifacts import InputError, UnsupportedModelError
from hebbline.cli import main
from hebbline.export.graph import load_source
from hebbline.train import Sparsifier, SparsityConfig
from hebbline.train.dynamics import decoder_chains, model_chains, remove_chains
from hebbline.train.dynamics.plan import head_counts
from hebbline.train.save import save_model_directory
from hebbline.train.tasks import read_recipe, train_language_model

ONE_EACH = {model_type: variant for variant, (model_type, _) in reversed(FAMILIES.items())}
OVERRIDES = [
    "--model.vocab_size=300",
    "--data.sequence_length=16",
    "--data.validation_share=0.2",
    "--optimization.steps=4",
    "--optimization.batch_size=2",
    "--optimization.warmup_steps=1",
    "--sparsity.update.every=2",
    "--sparsity.update.stop=4",
    "--sparsity.removal.chains=true",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(make_text(40)))
    return path


def train(text_file, *overrides):
    return train_language_model(read_recipe("demo", [*OVERRIDES, f"--data.source={text_file}", *overrides])[0])


@pytest.mark.parametrize("variant", ONE_EACH.values())
def test_a_configuration_is_trained_saved_and_read(variant, text_file, tmp_path):
    make_config(variant).save_pretrained(tmp_path / "shape")
    result = train(text_file, f"--model.config={tmp_path / 'shape' / 'config.json'}")
    save_model_directory(tmp_path / "model", result.model, result.tokenizer, result.masks, method="chts")
    source = load_source(tmp_path / "model")
    assert source.masks_stored and set(result.masks) == set(source.decoder.projections())
    ids = torch.arange(5, 25)[None]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(loaded(ids).logits, source.model(ids).logits, rtol=0, atol=1e-4)
    assert all(int(mask.sum()) == round(0.3 * mask.numel()) for mask in result.masks.values())


def test_gpt2_is_trained_from_its_weights(tokenizer, text_file, tmp_path, capsys):
    model = make_model("gpt2", len(tokenizer), density=1.0)
    model.save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    static = (
        "--sparsity.method=static",
        "--sparsity.topology.kind=magnitude",
        "--sparsity.density=0.5",
        "--sparsity.removal.chains=false",
    )
    result = train(text_file, f"--model.pretrained={tmp_path / 'dense'}", *static)
    before = dict(model.named_parameters())["transformer.h.0.mlp.c_fc.weight"].T
    mask = result.masks["transformer.h.0.mlp.c_fc"]
    assert mask.shape == before.shape
    save_model_directory(
        tmp_path / "model",
        result.model,
        result.tokenizer,
        result.masks,
        method="static",
        weights=result.model.state_dict(),
    )
    assert main(["inspect", str(tmp_path / "model")]) == 0 and "family GPT-2" in capsys.readouterr().err
    assert before[mask].abs().mean() > 1.5 * before[~mask].abs().mean(), "the largest weights stay"


def test_what_cannot_be_exported_is_refused_before_it_is_trained(text_file, tmp_path):
    config = make_config("llama")
    config.hidden_act = "mish"
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="hidden_act 'mish'"):
        train(text_file, f"--model.config={tmp_path / 'config.json'}")
    with pytest.raises(InputError, match=r"model\.config '/nowhere' is not a file"):
        train(text_file, "--model.config=/nowhere")
    make_config("llama").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"data\.sequence_length 200 is above the context of model.config .*, 96"):
        train(text_file, f"--model.config={tmp_path / 'config.json'}", "--data.sequence_length=200")
    with pytest.raises(InputError, match="both given"):
        train(text_file, "--model.config=a", "--model.pretrained=b")


def test_transposed_layers_are_not_passed_over_in_a_loop_of_ones_own():
    sparsifier = Sparsifier(model := make_model("gpt2"), SparsityConfig(method="static", density=0.5))
    name = "transformer.h.0.attn.c_attn"
    assert sparsifier.masks[name].float().mean() == pytest.approx(0.5, abs=1e-3)
    assert not model.get_submodule(name).weight.T[~sparsifier.masks[name]].any()


@pytest.mark.parametrize("variant", FAMILIES)
def test_chain_removal_changes_no_logit(variant):
    """Biases are 0: a node without links that has one is not dead."""
    model = make_model(variant, density=0.12)
    use_linear_layers(model)
    decoder = decoder_of(model)
    layers = decoder.projections()
    for name in layers:
        if (bias := model.get_submodule(name).bias) is not None:
            bias.data.zero_()
    masks = {name: model.get_submodule(name).weight.data != 0 for name in layers}
    block = next(iter(decoder.mlp.blocks(decoder.layer(0))))
    masks[f"{block}.{decoder.mlp.output}"][:, :20] = False
    masks[f"{decoder.layer(1)}.{decoder.attention.output}"][:, : decoder.attention.head_size] = False
    assert len(model_chains(model, layers)) == len(decoder_chains(decoder)) > 0

    def logits():
        for name, mask in masks.items():
            model.get_submodule(name).weight.data.mul_(mask)
        return model(torch.arange(30)[None]).logits

    with torch.inference_mode():
        before = logits()
        assert remove_chains(masks, model_chains(model, layers)) > 20
        after = logits()
    torch.testing.assert_close(after, before, rtol=0, atol=2e-5 * float(before.abs().max()))


def test_heads_of_a_layer_that_holds_all_three():
    model = make_model("phi3")
    assert head_counts(model) == {f"model.layers.{layer}.self_attn.qkv_proj": 8 for layer in (0, 1)}
