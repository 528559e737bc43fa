"""Mixtures of experts as artifacts."""

import numpy as np
from families import make_model
from safetensors.numpy import load_file

from hebbline.export import export_model


def test_experts_are_sparse_layers_of_the_artifact(tokenizer, tmp_path):
    """From the names that Mixtral's checkpoints have, past the sliding window."""
    model = make_model("mixtral", len(tokenizer), max_position_embeddings=160, sliding_window=90)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    stored = load_file(tmp_path / "model/model.safetensors")
    assert "model.layers.0.block_sparse_moe.experts.3.w1.weight" in stored
    report = export_model(tmp_path / "model", tmp_path / "artifact")
    layers = {layer.name: layer for layer in report.layers}
    gate = layers["model.layers.0.mlp.experts.3.gate_proj"]
    assert gate.links == np.count_nonzero(stored["model.layers.0.block_sparse_moe.experts.3.w1.weight"])
    assert gate.layout == "bitmask" and len(layers) == 2 * (4 + 3 * 4) + 1
    assert 0 < report.parity.far <= report.parity.logit_tolerance and report.parity.greedy_tokens == 64
