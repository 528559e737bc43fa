"""A model of transformers from a directory, whatever form its weights are stored in."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UnsupportedModelError
from .files import WeightFiles
from .refusals import COMPRESSION_FIELDS, check_checkpoint, check_weights_fit

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class LoadedModel:
    """A model of transformers, and the masks (bool [N, K] by layer) that its checkpoint holds beside the weights.

    `expanded` counts the weights that were stored in another form (see `expansion`).
    """

    model: Any
    masks: dict[str, NDArray[np.bool_]]
    expanded: int


Settle = Callable[[Any, Mapping[str, Iterable[Any]]], Mapping[str, Iterable[Any]]]
"""Puts a loaded model into order, given what `from_pretrained` did not find; returns what is then still missing."""


def load_model(
    model_class: Any, path: Path, dtype: "torch.dtype | None" = None, settle: Settle | None = None
) -> LoadedModel:
    """Load a model directory through transformers, without the network.

    Args:
        model_class: of transformers, with `from_pretrained`.
        path: a directory with `config.json` and weights: safetensors or `pytorch_model.bin`, whole or in shards, plain,
            in a form of compressed-tensors, or under `torch.nn.utils.prune`.
        dtype: of the parameters; float32 unless given.
        settle: called with the model before its weights are said to fit; None: they must fit as they are.

    Raises:
        InputError: the weights cannot be read, or do not fit `config.json` (the first tensor is named);
        UnsupportedModelError: they are quantised in a form that is not read here.
    """
    import torch
    from transformers.utils import logging

    check_checkpoint(path)
    logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype or torch.float32, "local_files_only": True, "output_loading_info": True}
    options["config"] = plain_config(path)
    masks: dict[str, NDArray[np.bool_]] = {}
    expanded = 0
    try:
        if needs_expansion(path):
            options["state_dict"], masks, expanded = _expanded(path)
            concrete = _concrete_class(model_class, options["config"])
            model, found = concrete.from_pretrained(None, **options)
            _set_generation_defaults(model, path)
        else:
            model, found = model_class.from_pretrained(path, **options)
    except (OSError, RuntimeError, ValueError, ImportError, KeyError) as error:
        raise InputError(f"{path}: the model cannot be loaded: {' '.join(str(error).split())}") from error
    check_weights_fit(str(path), found if settle is None else settle(model, found))
    return LoadedModel(model, masks, expanded)


def _concrete_class(model_class: Any, config: "PretrainedConfig") -> Any:
    """The class of the model itself: the automatic ones of transformers take no weights without a directory."""
    import torch

    if not hasattr(model_class, "from_config"):
        return model_class
    with torch.device("meta"):
        return type(model_class.from_config(config))


def _set_generation_defaults(model: Any, path: Path) -> None:
    """What transformers does by itself where it reads the weights from the directory."""
    from transformers import GenerationConfig

    if (path / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)


def needs_expansion(path: Path) -> bool:
    """Whether some weight of a directory is stored in another form than a plain matrix."""
    from .expansion import part_of

    return any(part_of(name) is not None for name in WeightFiles(path).names)


def plain_config(path: Path) -> "PretrainedConfig":
    """The configuration of the model that the expanded weights are."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise UnsupportedModelError(f"{path}/config.json: {' '.join(str(error).split())}") from error
    for field in COMPRESSION_FIELDS:
        if hasattr(config, field):
            delattr(config, field)
    return config


def _expanded(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.bool_]], int]:
    from .expansion import expand, part_of

    files = WeightFiles(path)
    layers = {named[0] for name in files.names if (named := part_of(name)) is not None}
    weights, masks = {}, {}
    try:
        for name, weight, mask in expand(files.tensors()):
            weights[name] = weight
            if mask is not None:
                masks[name.removesuffix(".weight")] = mask.numpy()
    except (InputError, UnsupportedModelError) as error:
        raise type(error)(f"{path}: {error}") from error
    return weights, masks, len(layers)
