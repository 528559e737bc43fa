"""Publication of a trained model: the Hugging Face layout, with masks, recipe, training log and manifest beside it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..artifacts import LayerFacts, Manifest, publish, save_masks
from ..artifacts.masks import MASKS_FILE

RECIPE_FILE = "recipe.yaml"
LOG_FILE = "training.jsonl"


def save_model_directory(
    out: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    masks: Mapping[str, Tensor],
    *,
    method: str,
    recipe: str = "",
    log: Sequence[Mapping[str, Any]] = (),
    extra: Mapping[str, str] | None = None,
    weights: Mapping[str, Tensor] | None = None,
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
        weights: whole weights by name, where those of the model are split over processes.
    """
    arrays = {name: mask_NK.cpu().numpy() for name, mask_NK in masks.items()}
    transformers_logging.disable_progress_bar()
    with publish(out) as publication:
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
