"""Graphs of tiny models of any family, and steps through them."""

from pathlib import Path

import numpy as np
import torch

from hebbline.architectures import check_fits, describe, settle
from hebbline.export.graph import SourceModel, WeightFile, build_decoder, save_graph

TOKENS = 40
"""Past the windows and the original contexts of the variants, and over two borders of the cache's blocks."""


def source_of(model):
    decoder = describe(model.config)
    settle(model, {}, decoder)
    check_fits(decoder, model)
    tied = model.get_parameter(f"{decoder.head}.weight") is model.get_parameter(f"{decoder.embedding}.weight")
    masks = {
        name: module.weight.detach().numpy() != 0
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not (tied and name == decoder.head)
    }
    return SourceModel(Path("model"), model, decoder, masks, masks_stored=True, manifest=None, eos_token_ids=())


def steps(runner, ids):
    """The logits of all tokens: two pieces of a prompt, and single tokens."""
    logits = [runner.prefill(1, ids[:11], 0, range(11)).copy(), runner.prefill(1, ids[11:34], 11, range(23)).copy()]
    return np.concatenate([*logits, *(runner.decode(1, [ids[past]], [past]).copy() for past in range(34, TOKENS))])


def assert_close(actual, expected):
    assert np.abs(actual - expected).max() <= 3e-5 * max(1.0, np.abs(expected).max())


def build(source, folder, form):
    with WeightFile(folder / "weights") as weights:
        save_graph(build_decoder(source, weights, form), folder / "graph.onnx")
    return folder / "graph.onnx"
