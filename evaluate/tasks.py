"""Models of the other tasks on the data that their recipes hold out: accuracy of classifiers, BLEU of translators."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..artifacts import InputError, read_manifest
from ..artifacts.checkpoints import WeightFiles, config_file, load_model
from ..artifacts.errors import one_line
from ..artifacts.json_files import read_json_object
from ..artifacts.manifest import MANIFEST_FILE
from ..artifacts.tokenizer_files import check_tokenizer_fits, fast_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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
    """The recipe that a model directory was trained by, where its task is not language modelling.

    Raises:
        InputError: the directory is damaged, or its recipe has a field that recipes do not have.
    """
    if (path / MANIFEST_FILE).is_file() and read_manifest(path).kind != "model":
        return None
    from ..train.save import RECIPE_FILE
    from ..train.tasks import ImageRecipe, TranslationRecipe, read_recipe

    if not _names_a_task(path / RECIPE_FILE):
        return None
    recipe, _ = read_recipe(str(path / RECIPE_FILE))
    return recipe if isinstance(recipe, ImageRecipe | TranslationRecipe) else None


def _names_a_task(path: Path) -> bool:
    """Whether a file is there and of a training; other tools have files of that name too, and so has a pruning."""
    from ..train.tasks.reading import RECIPES

    if not path.is_file():
        return False
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return False
    task = content.get("task") if isinstance(content, dict) else None
    return isinstance(task, str) and task in RECIPES


def score_task(path: Path, recipe: "ImageRecipe | TranslationRecipe", threads: int | None = None) -> Score:
    """Load a model directory and the data of its recipe, and score the model on the part that is held out.

    Args:
        path: the model directory.
        recipe: from `recipe_of`.
        threads: of torch; None takes all cores.

    Raises:
        InputError: the model is damaged or not one of the recipe's task (the file, field or tensor is named), or the
            data cannot be loaded or is not what the model takes.
    """
    import torch

    from ..train.tasks import ImageRecipe

    if threads:
        torch.set_num_threads(threads)
    return _accuracy(path, recipe) if isinstance(recipe, ImageRecipe) else _bleu(path, recipe)


def _accuracy(path: Path, recipe: "ImageRecipe") -> Score:
    from ..data.images import load_images
    from ..train.tasks.image import test_accuracy
    from ..train.tasks.mlp import Mlp

    model = _load(Mlp, path, "image")
    images = load_images(recipe.data.name, recipe.data.source, recipe.data.train_images)
    for field, found in (("features", images.test.shape[1]), ("classes", images.classes)):
        if (expected := getattr(model.config, field)) != found:
            raise InputError(f"{path / 'config.json'}: {field} is {expected}, and {recipe.data.name} has {found}")
    started = time.perf_counter()
    return Score("accuracy", test_accuracy(model, images), len(images.test), time.perf_counter() - started)


def _bleu(path: Path, recipe: "TranslationRecipe") -> Score:
    from transformers import MarianMTModel

    from ..data.pairs import load_pairs
    from ..train.tasks.translation import score_bleu

    config, longest = path / "config.json", recipe.model.max_tokens
    for part in ("encoder", "decoder"):
        _check_layers(path, part)
    model = _load(MarianMTModel, path, "translation")
    tokenizer = _translation_tokenizer(path, model.config.vocab_size)
    if model.config.max_position_embeddings < longest:
        raise InputError(
            f"{config}: max_position_embeddings is {model.config.max_position_embeddings}, and model.max_tokens of the "
            f"recipe {longest}"
        )
    pairs = load_pairs(recipe.data.source, recipe.data.languages, recipe.data.test_share)
    test = pairs.test[: recipe.data.test_pairs or None]
    started = time.perf_counter()
    try:
        bleu, signature = score_bleu(model, tokenizer, test, recipe.search, longest)
    except (IndexError, ValueError, RuntimeError) as error:  # of numbers in config.json and generation_config.json
        raise InputError(f"{config}: the model cannot translate as it says: {one_line(error)}") from error
    return Score("bleu", bleu, len(test), time.perf_counter() - started, signature)


def _load(model_class: Any, path: Path, task: str) -> Any:
    """A model of a task in float32, from a directory that says that it is of that class."""
    config, kind = config_file(path), model_class.config_class.model_type
    found = read_json_object(config).get("model_type")
    if found != kind:
        raise InputError(f"{config}: model_type is '{found}', and the recipe's task '{task}' takes '{kind}'")
    return load_model(model_class, path).model.eval()


def _check_layers(path: Path, part: str) -> None:
    """Refuse a number of layers that the weights do not have, before a model of so many is built."""
    config = config_file(path)
    count = read_json_object(config).get(f"{part}_layers")
    if isinstance(count, int) and count > 0:
        last = f"{part}.layers.{count - 1}."
        if not any(last in name for name in WeightFiles(path).names):
            raise InputError(f"{config} says {count} {part}_layers, and no tensor of the weights is of '{last}'")


def _translation_tokenizer(path: Path, vocab_size: int) -> "PreTrainedTokenizerFast":
    tokenizer: PreTrainedTokenizerFast = fast_tokenizer(path)
    check_tokenizer_fits(path, vocab_size)
    for name in ("pad_token", "eos_token"):
        token = getattr(tokenizer, f"{name}_id")
        if token is None or token >= vocab_size:
            raise InputError(f"{path}: the tokenizer has no {name} of the model's: set it in tokenizer_config.json")
    return tokenizer
