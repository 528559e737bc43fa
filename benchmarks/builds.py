"""Building the variants of a model.

Legend: N out_features, K in_features.

Named sizes, of the paper's Llamas (arXiv 2501.19107) and of SmolLM2-135M, get random weights and BRF masks: speed
depends on neither weights nor text. A model directory is taken as it is; its dense forms have the same weights, zeros
included.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ..architectures import describe
from ..artifacts import InputError
from ..export.graph import (
    HeadForm,
    SourceModel,
    StockAttention,
    VarlenAttention,
    WeightFile,
    build_decoder,
    load_source,
    save_graph,
)
from ..export.layouts import Aim
from ..train.topology import initial_mask
from .peers import nbits_model
from .variants import MODEL_FILE, Variant

SIZES: dict[str, dict[str, Any]] = {
    "llama-60m": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8},
    "llama-130m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 5461, "num_hidden_layers": 24, "num_attention_heads": 32},
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
    },
}
_PAPER = {"vocab_size": 32_000, "tie_word_embeddings": False}
"""What the paper's sizes have in common."""
_SHORTLIST_EXACT = 3
"""The input of ShortlistHead that it reads the rows of a shortlist from."""


def load_model(name: str, density: float, context: int) -> SourceModel:
    """A named size with random weights, or a model directory.

    Raises:
        InputError: `name` is neither, or the directory is unfit for export.
    """
    if name in SIZES:
        return _random_model(name, density, context)
    if not Path(name).is_dir():
        raise InputError(f"--model '{name}' is neither a directory nor one of {', '.join(SIZES)}")
    return load_source(Path(name))


def mask_weights(source: SourceModel) -> None:
    """Make the weights off the masks zero, so that dense forms have the same weights as sparse ones."""
    for name, mask_NK in source.masks.items():
        source.model.get_parameter(f"{name}.weight").data.masked_fill_(torch.from_numpy(~mask_NK), 0)


def build_variant(source: SourceModel, variant: Variant, directory: Path) -> Path:
    """Write a variant's graph into a folder of its own below `directory`; returns the graph's file.

    The source's weights are as `mask_weights` leaves them.
    """
    folder = directory / variant.name
    folder.mkdir(parents=True)
    if variant.sparse:
        _build_sparse(source, variant, folder)
    else:
        _build_dense(source, variant, folder)
    return folder / MODEL_FILE


def model_bytes(path: Path) -> int:
    """Bytes of a graph and its weights on disk."""
    return sum(file.stat().st_size for file in path.parent.iterdir())


def bytes_a_token(path: Path, kv_bytes_a_position: int, context: int) -> int:
    """Bytes that one decode step must read at batch 1: every weight once, and the cache up to `context`.

    Of the rotary tables, of an embedding that is not also lm_head, and of the exact weights behind a shortlist, a step
    reads some rows only.
    """
    model = onnx.load(path, load_external_data=False)
    uses: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            uses.setdefault(name, set()).add(node.op_type)
        if node.op_type == "ShortlistHead":
            uses[node.input[_SHORTLIST_EXACT]].remove(node.op_type)
    read_whole = [
        tensor
        for tensor in model.graph.initializer
        if not uses.get(tensor.name, set()) <= {"Gather"} and not tensor.name.startswith("rotary.")
    ]
    return sum(map(_tensor_bytes, read_whole)) + context * kv_bytes_a_position


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(np.prod(tensor.dims)) * itemsize


def _random_model(name: str, density: float, context: int) -> SourceModel:
    torch.manual_seed(0)
    config = LlamaConfig(**(_PAPER | SIZES[name]), max_position_embeddings=context)
    model = LlamaForCausalLM(config).eval()
    masks = {
        layer: initial_mask("brf", module.out_features, module.in_features, density, seed=number).numpy()
        for number, (layer, module) in enumerate(model.named_modules())
        if isinstance(module, nn.Linear) and layer != "lm_head"
    }
    if not config.tie_word_embeddings:
        masks["lm_head"] = np.ones(tuple(model.lm_head.weight.shape), bool)
    return SourceModel(Path(name), model, describe(config), masks, masks_stored=True, manifest=None, eos_token_ids=())


def _build_dense(source: SourceModel, variant: Variant, folder: Path) -> None:
    dense = replace(source, masks={name: np.ones_like(mask) for name, mask in source.masks.items()})
    path = folder / MODEL_FILE
    with WeightFile(folder / "weights") as weights:
        save_graph(build_decoder(dense, weights, StockAttention()), path)
    if variant.bits < 32:
        model = nbits_model(_with_head_as_matmul(onnx.load(path)), variant.bits)
        (folder / "weights").unlink()
        onnx.save_model(model, path, save_as_external_data=True, location="weights", size_threshold=1024)


def _with_head_as_matmul(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with lm_head's Gemm as a MatMul with a weight of its own, for ONNX Runtime to quantise it too."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gemm":
            weight_VE = numpy_helper.to_array(tensors[node.input[1]])
            model.graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(weight_VE.T), "lm_head.transposed")
            )
            node.CopyFrom(
                helper.make_node("MatMul", [node.input[0], "lm_head.transposed"], node.output, name=node.name)
            )
    return model


def _build_sparse(source: SourceModel, variant: Variant, folder: Path) -> None:
    with WeightFile(folder / "weights", variant.values, Aim(model_bytes=source.dense_bytes)) as weights:
        head: HeadForm = "int8" if variant.int8_head else "packed"
        save_graph(build_decoder(source, weights, VarlenAttention(), head), folder / MODEL_FILE)
