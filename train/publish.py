"""From a recipe to a published model directory, for every task."""

import shutil
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from .save import save_model_directory
from .settings import RunSettings
from .state import is_split, model_tensors
from .tasks.image import train_image_classifier
from .tasks.image_recipe import ImageRecipe
from .tasks.language_model import train_language_model
from .tasks.reading import Recipe, recipe_digest
from .tasks.result import TrainingResult
from .tasks.translation import train_translation
from .tasks.translation_recipe import TranslationRecipe
from .training import check_run


def train_and_publish(recipe: Recipe, yaml: str, out: Path, *, resume: bool = False) -> TrainingResult:
    """Train by a recipe and publish the model directory; the run's checkpoints go once it is there.

    Args:
        recipe: of any task.
        yaml: all of it, to be kept beside the model.
        out: the model directory.
        resume: go on from the newest checkpoint.

    Raises:
        InputError: the recipe does not fit its data or model, or there is nothing to resume from.
    """
    settings = RunSettings(out, recipe_digest(recipe), recipe.checkpoint, recipe.logging, resume)
    check_run(settings, recipe.sparsity)
    if not isinstance(recipe, ImageRecipe):
        # A perceptron's steps are known once its images are there.
        recipe.sparsity.for_run(recipe.optimization.steps)
    result = _train(recipe, settings)
    weights = model_tensors(result.model) if is_split(result.model) else None
    if not dist.is_initialized() or dist.get_rank() == 0:
        _publish(result, weights, recipe, yaml, out)
        shutil.rmtree(settings.checkpoints, ignore_errors=True)
    return result


def _train(recipe: Recipe, settings: RunSettings) -> TrainingResult:
    if isinstance(recipe, ImageRecipe):
        return train_image_classifier(recipe, settings)
    if isinstance(recipe, TranslationRecipe):
        return train_translation(recipe, settings)
    return train_language_model(recipe, settings)


def _publish(result: TrainingResult, weights: dict[str, Tensor] | None, recipe: Recipe, yaml: str, out: Path) -> None:
    extra: dict[str, str] = {}
    log = [*result.trained.log]
    if recipe.logging.report:
        from .report import REPORT_FILE, graph_records, measure_graphs, training_report

        graphs = measure_graphs(result.trained)
        log += graph_records(graphs)
        extra[REPORT_FILE] = training_report(out.name, result.trained, result.facts, graphs, yaml)
    save_model_directory(
        out,
        result.model,
        result.tokenizer,
        result.trained.masks,
        method=recipe.sparsity.method,
        recipe=yaml,
        log=[*log, dict(result.facts)],
        extra=extra,
        weights=weights,
    )
