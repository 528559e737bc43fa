"""Opening the model to export: configuration, weights and masks, checked before anything is built.

Legend: N out_features, K in_features of a linear layer.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ...architectures import (
    EARLIER_NAMES,
    Decoder,
    StoredTransposed,
    check_fits,
    check_layers,
    describe_at,
    settle,
    use_linear_layers,
)
from ...artifacts import InputError
from ...artifacts.checkpoints import check_finite, check_weights_fit, load_model, plain_config
from ...artifacts.checkpoints.stored import StoredParameters
from ...artifacts.model_directory import ModelDirectory, end_tokens, open_model_directory
from ...artifacts.tokenizer_files import check_tokenizer_fits
from ..progress import each
from .source import SourceModel

Masks = Mapping[str, NDArray[np.bool_]]
_UNUSED = (r"rotary_emb\.inv_freq$", r"\.attn\.(bias|masked_bias)$", r"\.attention\.(bias|masked_bias)$")
"""Tensors of earlier versions of transformers, which later ones compute."""


def open_source(path: Path, progress: Callable[[str], None] = lambda stage: None) -> SourceModel:
    """Open a model directory, whose weights stay in its files: each is read once to be checked, and is not kept.

    Raises:
        InputError: no model, no tokenizer, unreadable weights, NaN or infinite weights (the layer is named), weights
            off the mask; UnsupportedModelError: another architecture or a variant that the graph does not cover.
    """
    directory, config, decoder = _described(path)
    model = _without_values(config)
    stored = _stored_parameters(path, model)
    found = _tie_head(model, decoder, stored)
    check_weights_fit(str(path), found)
    settle(model, found, decoder)
    check_fits(decoder, model)
    masks = _LazyMasks(_linear_layers(model, decoder), directory.masks or {}, stored)
    _check_names(path, directory, masks)
    has_masks = bool(directory.masks) or any(stored.has_mask(f"{name}.weight") for name in masks)
    eos = _eos_token_ids(path, config)
    source = SourceModel(path, model, decoder, masks, has_masks, directory.manifest, eos, stored)
    _check_stored(source, directory.masks or {}, progress)
    return source


def load_source(path: Path) -> SourceModel:
    """Load a model directory in float32, with its masks.

    Raises:
        InputError, UnsupportedModelError: as `open_source`.
    """
    directory, _, decoder = _described(path)
    loaded = load_model(AutoModelForCausalLM, path, settle=partial(settle, decoder=decoder))
    model = loaded.model.eval()
    check_fits(decoder, model)
    projections = _linear_layers(model, decoder)
    masks = dict(directory.masks or {name: mask for name, mask in loaded.masks.items() if name in projections})
    stored = bool(masks)
    for name in projections:
        weight_NK = model.get_parameter(f"{name}.weight").detach().numpy()
        masks.setdefault(name, weight_NK != 0)
        _check_mask(path, name, weight_NK, masks[name])
    _check_names(path, directory, projections)
    return SourceModel(path, model, decoder, masks, stored, directory.manifest, _eos_token_ids(path, model.config))


def _described(path: Path) -> tuple[ModelDirectory, PretrainedConfig, Decoder]:
    """What the files beside the weights say, which is checked before a weight is read."""
    directory = open_model_directory(path)
    config = plain_config(path)
    decoder = describe_at(str(path / "config.json"), config)
    check_tokenizer_fits(path, decoder.vocab_size)
    check_layers(decoder, path)
    return directory, config, decoder


def _without_values(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a configuration whose parameters have shapes only. Buffers, such as rotary frequencies, are real."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    use_linear_layers(model)
    return model


def _stored_parameters(path: Path, model: PreTrainedModel) -> StoredParameters:
    turned = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, StoredTransposed)]
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    shapes |= {name: shapes[name][::-1] for name in turned}
    buffers = [rf"^{name}$" for name, _ in model.named_buffers()]
    ignored = [*_UNUSED, *buffers, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]
    return StoredParameters(path, shapes, model.base_model_prefix, turned, ignored, EARLIER_NAMES)


def _tie_head(model: PreTrainedModel, decoder: Decoder, stored: StoredParameters) -> dict[str, list[Any]]:
    """Let lm_head share the embedding where the checkpoint has one of the two, or both alike and the configuration
    ties them; otherwise let it have a weight of its own. Returns what the checkpoint does not have then."""
    head: Any = model.get_submodule(decoder.head)
    embedding, own, found = f"{decoder.embedding}.weight", f"{decoder.head}.weight", dict(stored.found)
    shared, tied = model.get_parameter(embedding), bool(getattr(model.config, "tie_word_embeddings", False))
    if tied and own in stored and embedding not in stored:
        stored.rename(own, embedding)
        found["missing_keys"] = [name for name in found["missing_keys"] if name != embedding]
    if own not in stored or (tied and torch.equal(stored.read(own), stored.read(embedding))):
        head.weight = shared
        found["missing_keys"] = [name for name in found["missing_keys"] if name != own]
    else:
        head.weight = torch.nn.Parameter(torch.empty_like(shared, device="meta"))
    return found


def _linear_layers(model: PreTrainedModel, decoder: Decoder) -> list[str]:
    """The names of linear layers that have a weight of their own."""
    embedding = model.get_parameter(f"{decoder.embedding}.weight")
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module.weight is not embedding
    ]


class _LazyMasks(Masks):
    """Masks as the directory has them, else as the checkpoint has them, else the weights that are not zero."""

    def __init__(self, names: list[str], given: Masks, stored: StoredParameters) -> None:
        self._names = dict.fromkeys(names)
        self._given = given
        self._stored = stored

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        if name not in self._names:
            raise KeyError(name)
        if name in self._given:
            return self._given[name]
        mask_NK = self._stored.mask(f"{name}.weight")
        return (self._stored.read(f"{name}.weight") != 0 if mask_NK is None else mask_NK).numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check_names(path: Path, directory: ModelDirectory, layers: Collection[str]) -> None:
    unknown = sorted(set(directory.masks or ()) - set(layers))
    if unknown:
        raise InputError(f"{path}: masks.safetensors names '{unknown[0]}', which is not a linear layer of the model")


def _check_stored(source: SourceModel, given: Masks, progress: Callable[[str], None]) -> None:
    """Read every parameter once. `given`: masks that weights could lie off."""
    names = [name for name, _ in source.model.named_parameters()]
    for name in each(names, "reading the model", progress):
        tensor, expected = source.tensor(name), source.model.get_parameter(name).shape
        if tensor.shape != expected:
            raise InputError(f"{source.path}: tensor '{name}' is {list(tensor.shape)}, not {list(expected)}")
        check_finite(str(source.path), name, tensor)
        layer = name.removesuffix(".weight")
        if layer in given:
            _check_mask(source.path, layer, tensor.numpy(), given[layer])


def _check_mask(path: Path, name: str, weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> None:
    if mask_NK.shape != weight_NK.shape:
        raise InputError(f"{path}: the mask of '{name}' is {mask_NK.shape}, its weight {weight_NK.shape}")
    lost = int(np.count_nonzero(weight_NK[~mask_NK]))
    if lost:
        raise InputError(f"{path}: layer '{name}' has {lost} non-zero weights off its mask")


def _eos_token_ids(path: Path, config: PretrainedConfig) -> tuple[int, ...]:
    """End tokens: those of generation_config.json, else those of config.json."""
    return end_tokens(path, config.eos_token_id)
