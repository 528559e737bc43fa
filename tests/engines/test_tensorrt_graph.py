"""The graph for NVIDIA's parser: typed throughout, stock operators only, and equal to torch."""

import copy
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from tiny import make_llama

from hebbline.artifacts import CheckError
from hebbline.export.graph import load_source
from hebbline.export.tensorrt.decoder import build_static_decoder, step_profiles
from hebbline.export.tensorrt.parity import OnnxStepExecutor, check_graph, check_precision, open_graph, widened
from hebbline.export.tensorrt.typed_graph import PRECISIONS, save_typed_model
from hebbline.runtime.engines import is_installed
from hebbline.runtime.static_cache import StaticCacheRunner, StepLimits


def check(source, folder, precision):
    save_typed_model(build_static_decoder(source, PRECISIONS[precision]), folder / "graph.onnx")
    return check_graph(source.model, source, folder / "graph.onnx", PRECISIONS[precision], lambda stage: None)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_every_number_is_of_the_precision_and_weights_are_the_rounded_ones(source, precision):
    model = build_static_decoder(source, PRECISIONS[precision])
    element = PRECISIONS[precision].element_type
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert kinds == {element, onnx.TensorProto.INT64}
    assert {node.domain for node in model.graph.node} == {""}
    caches = [value for value in model.graph.input if value.name.startswith("past")]
    assert len(caches) == 4 and {value.type.tensor_type.elem_type for value in caches} == {element}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, mask_NK in source.masks.items():
        weight_KN = stored[f"{name}.weight"]
        np.testing.assert_array_equal(weight_KN, source.weight(name).T.astype(PRECISIONS[precision].numpy))
        assert not weight_KN[~mask_NK.T].astype(np.float32).any()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_the_gate_passes_and_measures(source, tmp_path, precision, request):
    is_exported = precision == "float16" and is_installed("tensorrt_rtx")
    parity = request.getfixturevalue("engine_export")[1].parity if is_exported else check(source, tmp_path, precision)
    assert parity.float32.greedy_tokens == 64 and 0 < parity.float32.chunked <= parity.float32.logit_tolerance
    assert 1e-4 < parity.in_precision <= 4 * parity.torch_in_precision


VARIANTS = {
    "untied, all key heads": {"tie_word_embeddings": False, "num_key_value_heads": 6},
    "biases, wide heads, one key head": {
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 32,
        "num_key_value_heads": 1,
    },
}


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=list(VARIANTS))
def test_every_variant_of_the_architecture_passes_the_gate(overrides, tokenizer, tmp_path):
    model = make_llama(len(tokenizer), max_position_embeddings=48, **overrides)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    check(load_source(tmp_path / "model"), tmp_path, "float16")


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_the_gate_sees_one_wrong_weight_of_the_file_that_is_built(source, tmp_path, precision):
    model = build_static_decoder(source, PRECISIONS[precision])
    tensor = next(t for t in model.graph.initializer if t.name == "model.layers.1.mlp.down_proj.weight")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[5, 7] += 3
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    save_typed_model(model, tmp_path / "graph.onnx")
    runner = open_graph(source, tmp_path / "graph.onnx", PRECISIONS[precision])
    with pytest.raises(CheckError, match=f"the graph in {precision}"):
        check_precision(source.model, runner, PRECISIONS[precision], "the graph")


def test_the_gate_compares_with_the_model_before_passes(source, tmp_path):
    """A pass that changed the function would be seen, though the graph is that of the model it made."""
    changed = copy.deepcopy(source.model)
    changed.get_parameter("model.layers.1.mlp.down_proj.weight").data[5, 7] += 1
    passed = replace(source, model=changed)
    save_typed_model(build_static_decoder(passed, PRECISIONS["float16"]), tmp_path / "graph.onnx")
    arguments = (passed, tmp_path / "graph.onnx", PRECISIONS["float16"], lambda stage: None)
    with pytest.raises(CheckError, match=r"parity with torch: logits of .*, differ by"):
        check_graph(source.model, *arguments)
    assert check_graph(changed, *arguments).float32.greedy_tokens == 64


def test_a_widened_graph_holds_the_rounded_values_in_float32(source):
    model = build_static_decoder(source, PRECISIONS["bfloat16"])
    wide = widened(model)
    before = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for tensor in wide.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        assert values.dtype in (np.float32, np.int64)
        np.testing.assert_array_equal(values, before[tensor.name].astype(values.dtype))
    assert before["rotary.cos"].dtype == ml_dtypes.bfloat16


@pytest.fixture(scope="module")
def runner(source, tmp_path_factory):
    """Three slots, steps of at most 2 slots or 5 tokens: most calls are cut into several steps."""
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    save_typed_model(build_static_decoder(source, PRECISIONS["float32"]), path)
    facts = source.facts()
    return StaticCacheRunner(facts, 3, StepLimits(batch=2, tokens=5), OnnxStepExecutor(path, facts, 3, threads=1))


def torch_logits(source, ids):
    with torch.inference_mode():
        return source.model(torch.tensor([ids])).logits[0].numpy()


def test_long_prompts_and_wide_batches_are_cut_into_steps(source, runner):
    prompts = [[5, 9, 200, 3, 17, 8, 30, 31, 32, 33, 34, 2], [7, 7, 7], [250, 1, 90, 4, 4, 4, 5]]
    for slot, prompt in enumerate(prompts):
        rows = [len(prompt) - 2, 0, 0, len(prompt) - 2]
        logits = runner.prefill(slot, prompt[:-1], 0, rows)
        np.testing.assert_allclose(logits, torch_logits(source, prompt)[rows], rtol=0, atol=1e-4)
    assert runner.prefill(1, prompts[1][:-1], 0, []).shape == (0, runner.vocab_size)
    logits = runner.decode(0, [prompt[-1] for prompt in prompts], [len(prompt) - 1 for prompt in prompts])
    expected = np.stack([torch_logits(source, prompt)[-1] for prompt in prompts])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda r: r.prefill(3, [1], 0, []), "slot 3 does not fit"),
        (lambda r: r.prefill(0, [1], -1, []), "exceed the context"),
        (lambda r: r.prefill(0, [1, 2], 127, []), "exceed the context"),
        (lambda r: r.prefill(0, [], 0, []), "does not fit"),
        (lambda r: r.prefill(0, [1], 0, [1]), "not within the 1 tokens"),
        (lambda r: r.prefill(0, [100_000], 0, []), "outside the vocabulary"),
        (lambda r: r.decode(2, [1, 1], [0, 0]), "does not fit 3 slots"),
        (lambda r: r.decode(0, [1, 1], [0]), "does not fit"),
    ],
)
def test_a_step_outside_the_cache_or_vocabulary_is_refused(runner, call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call(runner)


def test_profiles_cover_the_limits_and_no_more_than_the_context(source):
    prefill, decode = step_profiles(source.facts(), StepLimits(batch=8, tokens=1000))
    assert prefill["input_ids"] == ((1, 1), (1, 128), (1, 128)) and prefill["logit_rows"] == ((1,), (1,), (128,))
    assert decode["input_ids"] == ((1, 1), (8, 1), (8, 1)) and decode["past.1.value"][2] == (8, 2, 128, 16)
