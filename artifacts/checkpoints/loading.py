"""A model of transformers from a directory, whatever form its weights are stored in."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UnsupportedModelError, one_line
from .configuration import PACK, plain_config, quiet
from .files import WeightFiles, is_floating
from .refusals import check_checkpoint, check_finite, check_weights_fit

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
    model_class: Any, path: Path, dtype: "torch.dtype | Literal['auto'] | None" = None, settle: Settle | None = None
) -> LoadedModel:
    """Load a model directory through transformers, without the network.

    Args:
        model_class: of transformers, with `from_pretrained`.
        path: a directory with `config.json` and weights: safetensors or `pytorch_model.bin`, whole or in shards, plain,
            in a form of compressed-tensors, or under `torch.nn.utils.prune`.
        dtype: of the parameters, "auto" for what they are stored in; float32 unless given.
        settle: called with the model before its weights are said to fit; None: they must fit as they are.

    Raises:
        InputError: the weights cannot be read, are not finite, or do not fit `config.json` (the first tensor is named);
        UnsupportedModelError: they are quantised in a form that is not read here.
    """
    import torch
    from transformers.utils import logging

    check_checkpoint(path)
    logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype or torch.float32, "config": plain_config(path)}
    masks: dict[str, NDArray[np.bool_]] = {}
    expanded = 0
    if needs_expansion(path):
        options["state_dict"], masks, expanded = _expanded(path)
        model, found = from_pretrained(_concrete_class(model_class, options["config"]), None, str(path), **options)
        _set_generation_defaults(model, path)
    else:
        _check_types(path)
        model, found = from_pretrained(model_class, path, str(path), local_files_only=True, **options)
    check_weights_fit(str(path), found if settle is None else settle(model, found))
    for name, parameter in model.named_parameters():
        check_finite(str(path), name, parameter)
    return LoadedModel(model, masks, expanded)


def from_pretrained(
    model_class: Any, source: str | Path | None, where: str, **options: Any
) -> tuple[Any, Mapping[str, Iterable[Any]]]:
    """A model as transformers loads it, and what it says of its weights, as `check_weights_fit` takes it.

    Args:
        model_class: of transformers. source: a directory, a name on the hub, or None where a state dict is among the
        options. where: for the message. options: those of transformers.

    Raises:
        InputError: it cannot be loaded. No code that comes with a model is run.
    """
    try:
        with quiet():
            loaded: tuple[Any, Mapping[str, Iterable[Any]]] = model_class.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **options
            )
    except KeyError as error:
        raise UnsupportedModelError(
            f"{where}: the model cannot be loaded: {_field_of(options.get('config'), error)} names {error}, which "
            "transformers does not have"
        ) from error
    except Exception as error:  # transformers, safetensors and the hub's client raise errors of no common base
        if "Unrecognized configuration class" in str(error):  # which goes on with a list of all that are known
            raise UnsupportedModelError(f"{where}: the model is no causal language model; {PACK}") from error
        raise InputError(f"{where}: the model cannot be loaded: {one_line(error)}") from error
    return loaded


def _field_of(config: "PretrainedConfig | None", error: KeyError) -> str:
    """The field of a configuration that holds the key which was not found, where one does."""
    fields = {} if config is None else config.to_dict()
    named = (name for name, value in fields.items() if isinstance(value, str) and error.args == (value,))
    return next(named, "its configuration")


def _concrete_class(model_class: Any, config: "PretrainedConfig") -> Any:
    """The class of the model itself: the automatic ones of transformers take no weights without a directory."""
    import torch

    if not hasattr(model_class, "from_config"):
        return model_class
    with torch.device("meta"):
        return type(model_class.from_config(config))


def _check_types(path: Path) -> None:
    """transformers takes a weight of any type for its value: one in integers would be meaningless without scales."""
    files = WeightFiles(path)
    for name in files.names:
        if name.endswith(".weight") and not is_floating(kind := files.type(name)):
            raise InputError(f"{path}: tensor '{name}' has the type {kind}, no floating-point number")


def _set_generation_defaults(model: Any, path: Path) -> None:
    """What transformers does by itself where it reads the weights from the directory."""
    from transformers import GenerationConfig

    if (path / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)


def needs_expansion(path: Path) -> bool:
    """Whether some weight of a directory is stored in another form than a plain matrix."""
    from .expansion import part_of

    return any(part_of(name) is not None for name in WeightFiles(path).names)


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
