"""Encoders and encoder-decoders: their own export to ONNX, then `hebbline pack`, as docs/pack.md shows it."""

import re
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

import hebbline
from hebbline.cli import main
from hebbline.export import pack
from hebbline.kernels import library_path

WORDS = 50
WIDE = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = transformers.BertConfig(**WIDE, intermediate_size=64, max_position_embeddings=64)
DISTILBERT = transformers.DistilBertConfig(
    vocab_size=WORDS, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64
)
T5 = transformers.T5Config(
    vocab_size=WORDS, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0
)
MARIAN = transformers.MarianConfig(
    vocab_size=WORDS,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    max_position_embeddings=64,
    pad_token_id=0,
    decoder_start_token_id=0,
)
ENCODERS = {
    "bert": (BERT, transformers.BertForSequenceClassification),
    "distilbert": (DISTILBERT, transformers.DistilBertForMaskedLM),
}
TRANSLATORS = {"t5": (T5, transformers.T5ForConditionalGeneration), "marian": (MARIAN, transformers.MarianMTModel)}


class Logits(torch.nn.Module):
    """The one output, so that the exported graph has tensors in and one tensor out."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors):
        return self.model(**dict(zip(self.names, tensors, strict=True)), use_cache=False).logits


class Encoder(Logits):
    """Encoders keep no cache, and do not know the argument."""

    def forward(self, *tensors):
        return self.model(**dict(zip(self.names, tensors, strict=True))).logits


def sparse_model(config, kind):
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(torch.rand_like(module.weight) < 0.1)
    return model


def exported(wrapper, names, path):
    """Batch and lengths are free; the batch is one for all inputs, a length is one for each side."""
    tensors = tuple(torch.ones(2, 7 if name.startswith("decoder") else 9, dtype=torch.int64) for name in names)
    axes = {name: {0: "batch", 1: "target" if name.startswith("decoder") else "source"} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            wrapper.eval(),
            tensors,
            path,
            dynamo=False,
            opset_version=17,
            input_names=list(names),
            output_names=["logits"],
            dynamic_axes=axes,
        )


def feeds_of(names, rng):
    sizes = {name: (3, 11 if name.startswith("decoder") else 13) for name in names}
    return {
        name: np.ones(size, np.int64) if "mask" in name else rng.integers(1, WORDS, size)
        for name, size in sizes.items()
    }


def session(path, library=False):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if library:
        options.register_custom_ops_library(str(library_path()))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


CASES = [
    *((family, Encoder, ("input_ids", "attention_mask")) for family in ENCODERS),
    *((family, Logits, ("input_ids", "attention_mask", "decoder_input_ids")) for family in TRANSLATORS),
]


@pytest.mark.parametrize(("family", "wrapper", "names"), CASES)
def test_their_own_export_is_packed(family, wrapper, names, tmp_path):
    model = sparse_model(*(ENCODERS | TRANSLATORS)[family])
    path = tmp_path / f"{family}.onnx"
    exported(wrapper(model, names), names, path)
    report = pack(path, tmp_path / "packed", measure=False)
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    tied = family != "bert"  # the head is the embedding
    assert len(report.packed_layers) >= len(linears) - tied, [layer.explained for layer in report.layers]
    feeds = feeds_of(names, np.random.default_rng(0))
    with torch.no_grad():
        expected = wrapper(model, names)(*(torch.from_numpy(array) for array in feeds.values())).numpy()
    for library in (False, True):
        (actual,) = session(tmp_path / "packed/model.onnx", library).run(None, feeds)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_page_shows_code_that_works(tmp_path, monkeypatch):
    """The Python of docs/pack.md: a BERT is exported, packed by the command, and run."""
    page = (Path(hebbline.__file__).parent / "docs/pack.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    running, exporting = blocks
    monkeypatch.chdir(tmp_path)
    model = sparse_model(*ENCODERS["bert"])
    model.save_pretrained("my-bert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(exporting, {})
    (command,) = [line for line in page.splitlines() if line.startswith("hebbline pack bert.onnx")]
    assert main([*command.split()[1:], "--no-measure"]) == 0
    found = {}
    exec(running, found)
    ones = torch.ones(16, 16, dtype=torch.int64)
    with torch.no_grad():
        expected = model(ones, attention_mask=ones).logits.numpy()
    np.testing.assert_allclose(found["outputs"][0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
