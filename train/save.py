"""Publication of a trained model: the Hugging Face layout, with masks, recipe, training log and manifest beside it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..architectures import StoredTransposed
from ..artifacts import CheckError, LayerFacts, Manifest, publish, save_masks
from ..artifacts.masks import MASKS_FILE
from ..artifacts.text_cost import LOG_FILE
from .dynamics.places import find_places
from .dynamics.promise import shortfall
from .sparse_linear import SparseLinear

RECIPE_FILE = "recipe.yaml"


def save_model_directory(
    out: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    masks: Mapping[str, Tensor],
    *,
    method: str,
    recipe: str = "",
    log: Sequence[Mapping[str, Any]] = (),
    extra: Mapping[str, str] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    unfinished: bool = False,
) -> None:
    """Publish a model directory, atomically. Zeros are explicit, so that transformers and vLLM load it as it is.

    Args:
        out: the directory; replaced where hebbline published it before.
        model: the trained model.
        tokenizer: its fast tokenizer, where it has one.
        masks: bool [N, K] by layer name; empty for a dense model.
        method: how it was trained, for the manifest.
        recipe: the whole recipe as YAML.
        log: one record a line of the training log.
        extra: further text files by name.
        weights: whole weights by name, as `state_dict` has them, where those of the model are split over processes.
        unfinished: publish a model too whose density has not yet fallen to what was asked for.

    Raises:
        CheckError: a parameter is not finite, a layer's weights are not 0 off its mask, its links are held alone, or
            its density has not yet fallen to what was asked for.
    """
    if not unfinished and (missed := shortfall(model, masks)):
        raise CheckError(
            f"{missed}: train on until then, give an earlier sparsity.update.stop, or publish it as it is with "
            "save_model_directory(..., unfinished=True)"
        )
    _check_weights(model, masks, weights)
    arrays = {name: mask_NK.cpu().numpy() for name, mask_NK in masks.items()}
    transformers_logging.disable_progress_bar()
    with publish(Path(out)) as publication:
        directory = publication.directory
        model.save_pretrained(directory, state_dict=None if weights is None else dict(weights))
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
        save_masks(directory / MASKS_FILE, arrays)
        (directory / RECIPE_FILE).write_text(recipe)
        (directory / LOG_FILE).write_text("".join(json.dumps(record) + "\n" for record in log))
        for name, content in (extra or {}).items():
            (directory / name).write_text(content)
        layers = tuple(LayerFacts.of_mask(name, mask) for name, mask in arrays.items())
        digest = hashlib.sha256(recipe.encode()).hexdigest() if recipe else None
        publication.finish(Manifest("model", method=method, recipe_digest=digest, layers=layers))


@torch.no_grad()
def _check_weights(model: nn.Module, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None) -> None:
    """Refuse to publish weights that are no numbers, and masks that are not those of the weights."""
    for name, values in (dict(model.named_parameters()) if weights is None else weights).items():
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise CheckError(
                f"'{name}' has values that are NaN or infinite: the training diverged; give a lower learning rate, or "
                "optimization.max_grad_norm"
            )
    places, modules = find_places(model), dict(model.named_modules())
    for name, mask_NK in masks.items():
        if name not in places and isinstance(model.get_submodule(name), SparseLinear):
            raise CheckError(f"layer '{name}' holds its links alone: call Sparsifier.densify() before it is published")
        place = places[name]
        weight = model.get_parameter(place.parameter) if weights is None else weights[place.parameter]
        weight_NK = place.matrix(weight)
        if weights is not None and isinstance(modules.get(name), StoredTransposed):
            weight_NK = weight_NK.T
        off = int(weight_NK.masked_fill(mask_NK.to(weight_NK.device), 0).count_nonzero())
        if off:
            raise CheckError(
                f"layer '{name}' has {off} weights off its mask that are not 0: an optimizer trained it that no "
                "Sparsifier is attached to, or the masks are of another step"
            )
