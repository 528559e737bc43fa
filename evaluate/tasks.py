"""Models of the other tasks on the data that their recipes hold out: accuracy of classifiers, BLEU of translators."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import InputError, read_manifest
from ..artifacts.manifest import MANIFEST_FILE

if TYPE_CHECKING:
    from ..train.tasks import ImageRecipe, TranslationRecipe


@dataclass(frozen=True)
class Score:
    """A figure ("accuracy", from 0 to 1, or "bleu", from 0 to 100) over so many examples, and the seconds it took.

    `signature` says how sacrebleu counted.
    """

    name: str
    value: float
    examples: int
    seconds: float
    signature: str = ""


def recipe_of(path: Path) -> "ImageRecipe | TranslationRecipe | None":
    """The recipe that a published model directory was trained by, where its task is not language modelling.

    Raises:
        InputError: the directory is damaged, or its recipe cannot be read.
    """
    if not (path / MANIFEST_FILE).is_file() or read_manifest(path).kind != "model":
        return None
    from ..train.save import RECIPE_FILE
    from ..train.tasks import ImageRecipe, TranslationRecipe, read_recipe

    if not (path / RECIPE_FILE).is_file() or not (path / RECIPE_FILE).read_text():
        return None
    recipe, _ = read_recipe(str(path / RECIPE_FILE))
    return recipe if isinstance(recipe, ImageRecipe | TranslationRecipe) else None


def score_task(path: Path, recipe: "ImageRecipe | TranslationRecipe", threads: int | None = None) -> Score:
    """Load the data of a model directory's recipe, and score the model on the part that is held out.

    Args:
        path: the model directory.
        recipe: from `recipe_of`.
        threads: of torch; None takes all cores.

    Raises:
        InputError: the data cannot be loaded, or the model is not one of the recipe's task.
    """
    import torch

    from ..train.tasks import ImageRecipe

    if threads:
        torch.set_num_threads(threads)
    try:
        return _accuracy(path, recipe) if isinstance(recipe, ImageRecipe) else _bleu(path, recipe)
    except (OSError, RuntimeError) as error:
        raise InputError(f"the model in {path} cannot be loaded: {' '.join(str(error).split())}") from error


def _accuracy(path: Path, recipe: "ImageRecipe") -> Score:
    from ..train.data.images import load_images
    from ..train.tasks.image import test_accuracy
    from ..train.tasks.mlp import Mlp

    model = Mlp.from_pretrained(path, local_files_only=True).eval()
    images = load_images(recipe.data.name, recipe.data.source, recipe.data.train_images)
    started = time.perf_counter()
    return Score("accuracy", test_accuracy(model, images), len(images.test), time.perf_counter() - started)


def _bleu(path: Path, recipe: "TranslationRecipe") -> Score:
    from transformers import MarianMTModel, PreTrainedTokenizerFast

    from ..train.data.pairs import load_pairs
    from ..train.tasks.translation import score_bleu

    model = MarianMTModel.from_pretrained(path, local_files_only=True).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    pairs = load_pairs(recipe.data.source, recipe.data.languages, recipe.data.test_share)
    test = pairs.test[: recipe.data.test_pairs or None]
    started = time.perf_counter()
    bleu, signature = score_bleu(model, tokenizer, test, recipe.search, recipe.model.max_tokens)
    return Score("bleu", bleu, len(test), time.perf_counter() - started, signature)
