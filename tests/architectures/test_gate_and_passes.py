"""Every family's neurons and heads that have no effect leave, dimensions move, and the gate sees what a family adds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import FAMILIES, MIXTURES, make_model
from family_graphs import assert_close, build, source_of

from hebbline.artifacts import CheckError, UnsupportedModelError
from hebbline.export import export_model
from hebbline.export.graph import StockAttention, VarlenAttention, load_source
from hebbline.export.passes import PassOptions, compact, run_passes
from hebbline.export.verify import check_parity
from hebbline.runtime.portable import PortableRunner
from hebbline.runtime.varlen import VarlenRunner


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def with_dead_places(variant):
    """A model in which 20 neurons lead nowhere, and the output reads nothing of head 0, nor of place 1 of any head."""
    model = make_model(variant)
    source = source_of(model)
    attention = source.decoder.attention
    for layer in source.decoder.layer_paths():
        output = model.get_parameter(f"{layer}.{attention.output}.weight").data
        output[:, : attention.head_size * attention.readers] = 0
        output[:, 1 :: attention.head_size] = 0
        model.get_parameter(f"{layer}.{source.decoder.mlp.output}.weight").data[:, 10:30] = 0
        for part in source.decoder.mlp.parts(layer, source.decoder.mlp.width):
            rows = slice(None) if part.rows is None else part.rows
            if (bias := model.get_submodule(part.module).bias) is not None:
                bias.data[rows] = 0
    return source_of(model)


@pytest.mark.parametrize("variant", [variant for variant in FAMILIES if variant not in MIXTURES])
def test_compacted_and_permuted_it_computes_the_same(variant, tmp_path):
    source = with_dead_places(variant)
    passed, reports = run_passes(source, PassOptions(compact=True, permute="2:4"))
    assert passed.decoder.mlp.width == 56 and reports[0].name == "compact"
    assert reports[1].fit_after >= reports[1].fit_before
    ids = np.random.default_rng(3).integers(0, 64, 30).tolist()
    with torch.inference_mode():
        expected = source.model(torch.tensor([ids])).logits[0].numpy()
    runner = PortableRunner(build(passed, tmp_path, StockAttention()), passed.facts(), slots=1, threads=1)
    assert_close(runner.prefill(0, ids, 0, range(30)), expected)
    normed = source.decoder.attention.norm
    if source.decoder.attention.kv_heads > 1 and not any(has_bias(source, part) for part in source.attention_parts(0)):
        fewer = normed is None or normed.span == "head"
        assert (passed.num_kv_heads < source.num_kv_heads) == fewer


@pytest.mark.parametrize("options", [PassOptions(compact=True), PassOptions(permute="2:4")])
def test_models_with_experts_are_refused_by_the_passes(options):
    with pytest.raises(UnsupportedModelError, match="Mixtral: models with experts"):
        run_passes(source_of(make_model("mixtral")), options)


def has_bias(source, part):
    return source.model.get_submodule(part.module).bias is not None


@pytest.mark.parametrize("variant", ["gpt2", "phi3", "falcon: new", "gemma3", "gpt_neox"])
def test_what_is_compacted_for_a_directory_is_loaded_by_transformers(variant, tmp_path):
    source = with_dead_places(variant)
    passed = compact(source.model, source.masks)
    passed.model.save_pretrained(tmp_path)
    again = type(source.model).from_pretrained(tmp_path).eval()
    ids = torch.arange(30)[None]
    assert_close(again(ids).logits.detach().numpy(), source.model(ids).logits.detach().numpy())
    assert passed.decoder.mlp.width == 56


@pytest.mark.parametrize("form", [StockAttention(), VarlenAttention()], ids=["stock", "op library"])
def test_the_gate_sees_a_wrong_window(form, tmp_path):
    """Behind the 69 tokens that it looks at in any case."""
    model = make_model("mistral", max_position_embeddings=160, sliding_window=90)
    source = source_of(model)
    wrong = replace(source.decoder, layers=tuple(replace(kind, window=0) for kind in source.decoder.layers))
    opened = {}
    for name, decoder in (("right", source.decoder), ("wrong", wrong)):
        (tmp_path / name).mkdir()
        kind = PortableRunner if form.portable else VarlenRunner
        opened[name] = kind(build(replace(source, decoder=decoder), tmp_path / name, form), source.facts(), 3, 1)
    figures = check_parity(model, opened["right"], lambda stage: None, source.decoder.reach)
    assert figures.positions == 90 + 24 and 0 < figures.far <= figures.logit_tolerance
    with pytest.raises(CheckError, match=r"logits far into the context: .* differ"):
        check_parity(model, opened["wrong"], lambda stage: None, source.decoder.reach)
    assert check_parity(model, opened["wrong"], lambda stage: None).far == 0, "it was not seen without"


def test_the_gate_sees_a_rotary_table_that_is_wrong_behind_the_original_context(tmp_path):
    parameters = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 2.0,
        "original_max_position_embeddings": 80,
    }
    model = make_model("llama", max_position_embeddings=160, rope_parameters=parameters)
    source = source_of(model)
    assert source.decoder.reach == 80
    path = build(source, tmp_path, StockAttention())
    figures = check_parity(model, PortableRunner(path, source.facts(), 3, 1), lambda stage: None, 80)
    assert figures.positions == 104 and figures.far > 0


@pytest.mark.parametrize("variant", ["gemma3", "gpt2", "phi3: longrope", "falcon: new", "llama: biases, heads of 24"])
def test_a_directory_is_exported(variant, tokenizer, tmp_path):
    model = make_model(variant, len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    report = export_model(tmp_path / "model", tmp_path / "artifact", passes=PassOptions(compact=True))
    assert report.parity.greedy_tokens > 30 and report.parity.largest <= report.parity.logit_tolerance
    source = load_source(tmp_path / "model")
    assert {layer.name for layer in report.layers} == set(source.projections)


def test_lm_head_is_read_from_the_weights(tokenizer, tmp_path):
    """A file with both, of a configuration that ties them; and one without lm_head, of one that does not."""
    model = make_model("llama", len(tokenizer), tie_word_embeddings=False)
    model.config.tie_word_embeddings = True
    weights = model.state_dict()
    save(tmp_path / "both", model, weights, tokenizer)
    source = load_source(tmp_path / "both")
    assert not source.head_is_tied and torch.equal(source.model.lm_head.weight, weights["lm_head.weight"])
    model.config.tie_word_embeddings = False
    del weights["lm_head.weight"]
    save(tmp_path / "one", model, weights, tokenizer)
    assert load_source(tmp_path / "one").head_is_tied
    for name in ("both", "one"):
        export_model(tmp_path / name, tmp_path / f"artifact-{name}")


def save(directory, model, weights, tokenizer):
    from safetensors.torch import save_file

    directory.mkdir()
    model.config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    save_file(
        {name: value.clone() for name, value in weights.items()}, directory / "model.safetensors", {"format": "pt"}
    )
