"""Reading recipes: one YAML file, every field of which can be overridden on the command line."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from jsonargparse import Namespace

from ...artifacts import InputError
from ...console import Parser
from .image_recipe import ImageRecipe
from .recipe import LanguageModelRecipe
from .translation_recipe import TranslationRecipe

Recipe = LanguageModelRecipe | ImageRecipe | TranslationRecipe
RECIPES: dict[str, type[Recipe]] = {
    "language-model": LanguageModelRecipe,
    "image": ImageRecipe,
    "translation": TranslationRecipe,
}
DEFAULT_TASK = "language-model"
_SHIPPED = Path(__file__).parents[1] / "recipes"
_SECTIONS_BESIDE_THE_RESULT = ("checkpoint", "logging")
# The parts of jsonargparse's complaint about a value that is none of a Literal's.
_KEY = re.compile(r'Parser key "([\w.]+)"')
_CHOICES = re.compile(r"typing\.Literal\[('[^\]]*')\]")
_VALUE = re.compile(r"(?:Got|Given) value: (.*)\Z", re.DOTALL)


class _RecipeParser(Parser):
    """Says of a value that is none of a field's choices which those are, and not how Python types them."""

    def error(self, message: str, exception: BaseException | None = None) -> NoReturn:
        """See `Parser.error`."""
        key, choices = _KEY.search(message), _CHOICES.search(message)
        value = _VALUE.search(message)
        if key and choices and value:
            names = ", ".join(choices.group(1).replace("'", "").split(", "))
            message = f"{key.group(1)} '{value.group(1).strip()}' is none of {names}"
        super().error(message, exception)


def recipe_parser(task: str = DEFAULT_TASK) -> Parser:
    """A parser of every field of the recipe, as `--model.layers 4` or `--sparsity.density 0.3`, and `--recipe FILE`."""
    parser = _RecipeParser(prog="hebbline train", description="Train a sparse model from a recipe.")
    parser.add_argument("--recipe", action="config", help="a recipe file, or the name of a shipped one")
    parser.add_class_arguments(RECIPES[task])
    return parser


def read_recipe(recipe: str, overrides: Sequence[str] = ()) -> tuple[Any, str]:
    """Read a recipe file, or a shipped recipe by name, with overrides like `--sparsity.density=0.3`.

    Returns:
        The recipe, of its task's class and with its method's pieces filled in, and all of it as YAML.

    Raises:
        InputError: no such recipe, an unknown field, or a value out of range; the field is named.
    """
    path, task = recipe_path(recipe)
    parser = recipe_parser(task)
    return build_recipe(parser, parser.parse_args([f"--recipe={path}", *overrides]), task)


def build_recipe(parser: Parser, values: Namespace, task: str = DEFAULT_TASK) -> tuple[Any, str]:
    """The recipe that parsed values describe, and its YAML."""
    values = values.clone()
    values.pop("recipe", None)
    recipe: Any = RECIPES[task](**vars(parser.instantiate(values)))
    sparsity = recipe.sparsity
    if isinstance(recipe, LanguageModelRecipe) and recipe.model.pretrained:
        sparsity = sparsity.over_trained_weights()
    recipe = replace(recipe, sparsity=sparsity.resolved())
    return recipe, yaml.safe_dump(_plain(asdict(recipe)), sort_keys=False)


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 of what a recipe says of the result: when checkpoints are written and what is logged may change."""
    content = {name: value for name, value in asdict(recipe).items() if name not in _SECTIONS_BESIDE_THE_RESULT}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def recipe_path(recipe: str) -> tuple[Path, str]:
    """The file of a recipe given by path or by the name of a shipped one, and the task that it is of.

    Raises:
        InputError: there is no such recipe, it is not YAML, or it has a field that recipes do not have.
    """
    path = _find_recipe(recipe)
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        raise InputError(f"{path} is empty: a recipe is a mapping of fields, of which 'task: {DEFAULT_TASK}' is enough")
    task = content.get("task", DEFAULT_TASK) if isinstance(content, dict) else DEFAULT_TASK
    if not isinstance(task, str) or task not in RECIPES:
        raise InputError(f"{path}: task {task!r} is none of {', '.join(RECIPES)}")
    # The argument parser passes over an unknown field that holds an empty mapping, and fails on a section that is none.
    _check_fields(path, RECIPES[task], content)
    return path, task


def _check_fields(path: Path, section: Any, content: Any, prefix: str = "") -> None:
    """Refuse a field that the dataclass `section` does not have, and a section that is not a mapping."""
    if not isinstance(content, dict):
        raise InputError(f"{path}: {prefix.rstrip('.') or 'the recipe'} must be a mapping of fields, not {content!r}")
    types = {field.name: field.type for field in fields(section)}
    for name, value in content.items():
        if name not in types:
            raise InputError(f"{path}: there is no field '{prefix}{name}'; the fields are {', '.join(types)}")
        if is_dataclass(types[name]):
            _check_fields(path, types[name], value, f"{prefix}{name}.")
        elif (parts := get_args(types[name])) and is_dataclass(parts[0]) and isinstance(value, list):
            for number, item in enumerate(value):
                _check_fields(path, parts[0], item, f"{prefix}{name}[{number}].")


def _plain(value: Any) -> Any:
    """Tuples as lists, which YAML has a form for."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def shipped_recipes() -> dict[str, str]:
    """The recipes that come with the package, by name, and the first sentence of what each says of itself."""
    return {path.stem: _first_sentence(path) for path in sorted(_SHIPPED.glob("*.yaml"))}


def _first_sentence(path: Path) -> str:
    lines = takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return " ".join(line.lstrip("# ") for line in lines).partition(". ")[0].rstrip(".")


def _find_recipe(recipe: str) -> Path:
    if Path(recipe).is_file():
        return Path(recipe)
    if (_SHIPPED / f"{recipe}.yaml").is_file():
        return _SHIPPED / f"{recipe}.yaml"
    names = ", ".join(shipped_recipes())
    raise InputError(f"recipe '{recipe}' is neither a file nor a shipped recipe ({names})")
