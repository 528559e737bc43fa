"""The recipe of a language model: one YAML file, every field of which can be overridden on the command line."""

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from ...artifacts import InputError
from ...console import Parser
from ..dynamics import SparsityConfig


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the Llama.

    Args:
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        layers: decoder layers.
        heads: query heads.
        kv_heads: key/value heads; fewer than `heads` is grouped-query attention.
        context_length: longest text, prompt and completion together, in tokens.
        vocab_size: entries of the tokenizer that is trained on the data.
        tie_embeddings: share the input embedding with lm_head.
    """

    hidden_size: int = 256
    intermediate_size: int = 688
    layers: int = 5
    heads: int = 8
    kv_heads: int = 4
    context_length: int = 512
    vocab_size: int = 4096
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "context_length"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} must be at least 1")
        if self.vocab_size < 257:
            raise InputError(
                f"model.vocab_size {self.vocab_size} is below 257: a byte-level tokenizer needs 256 and one"
            )
        if self.hidden_size % (16 * self.heads):
            raise InputError(
                f"model.hidden_size {self.hidden_size} is not a multiple of 16 * model.heads = {16 * self.heads}: "
                "the exported attention takes heads whose size is a multiple of 16"
            )
        if self.heads % self.kv_heads:
            raise InputError(f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}")


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from.

    Args:
        source: "python" (text that CPython carries), a .txt or .jsonl file, or hub://NAME[:CONFIGURATION].
        validation_share: share of documents held out.
        sequence_length: tokens a training example.
    """

    source: str = "python"
    validation_share: float = 0.05
    sequence_length: int = 256


@dataclass(frozen=True)
class OptimizationConfig:
    """How the weights are trained: AdamW, linear warm-up, cosine decay.

    Args:
        steps: optimizer steps.
        batch_size: sequences a step.
        learning_rate: peak learning rate of the embeddings and norms.
        projection_learning_rate: peak learning rate of the linear layers.
        warmup_steps: steps of linear warm-up.
        weight_decay: of the linear layers.
        adam_beta2: 0.95 lets a regrown link, whose moments start at 0, move at the common pace at once; with 0.999 its
            first steps would be up to six times too large.
        max_grad_norm: gradients are clipped to this norm.
        log_every: steps between entries of the log.
        seed: of weights and data order.
    """

    steps: int = 600
    batch_size: int = 8
    learning_rate: float = 3e-3
    projection_learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.1
    adam_beta2: float = 0.95
    max_grad_norm: float = 1.0
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"optimization.{name} must be at least 1")


@dataclass(frozen=True)
class LanguageModelRecipe:
    """Everything that determines a training run.

    Args:
        model: its shape.
        data: its text.
        optimization: its weights' training.
        sparsity: its graphs' training.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)

    def __post_init__(self) -> None:
        if not 2 <= self.data.sequence_length <= self.model.context_length:
            raise InputError(
                f"data.sequence_length {self.data.sequence_length} is outside [2, model.context_length = "
                f"{self.model.context_length}]"
            )


def recipe_parser() -> Parser:
    """A parser of every field of the recipe, as `--model.layers 4` or `--sparsity.density 0.3`, and `--recipe FILE`."""
    parser = Parser(prog="hebbline train", description="Train a sparse model from a recipe.")
    parser.add_argument("--recipe", action="config", help="a recipe file, or the name of a shipped one")
    parser.add_class_arguments(LanguageModelRecipe)
    return parser


def read_recipe(recipe: str, overrides: list[str] | None = None) -> tuple[LanguageModelRecipe, str]:
    """Read a recipe file, or a shipped recipe by name, with overrides like `--sparsity.density=0.3`.

    Returns:
        The recipe, and all of it as YAML, defaults included.

    Raises:
        InputError: no such recipe, an unknown field, or a value out of range; the field is named.
    """
    parser = recipe_parser()
    values = parser.parse_args([f"--recipe={recipe_path(recipe)}", *(overrides or [])])
    return build_recipe(parser, values)


def build_recipe(parser: Parser, values: Namespace) -> tuple[LanguageModelRecipe, str]:
    """The recipe that parsed values describe, and its YAML."""
    values = values.clone()
    values.pop("recipe", None)
    recipe = parser.instantiate(values)
    return LanguageModelRecipe(**vars(recipe)), parser.dump(values)


def recipe_path(recipe: str) -> Path:
    """The file of a recipe given by path or by the name of a shipped one.

    Raises:
        InputError: there is no such recipe, it is not YAML, or it has a field that recipes do not have.
    """
    path = _find_recipe(recipe)
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    # The argument parser passes over an unknown field that holds an empty mapping, and fails on a section that is none.
    _check_fields(path, LanguageModelRecipe, {} if content is None else content)
    return path


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


def _find_recipe(recipe: str) -> Path:
    if Path(recipe).is_file():
        return Path(recipe)
    shipped = Path(__file__).parents[1] / "recipes"
    if (shipped / f"{recipe}.yaml").is_file():
        return shipped / f"{recipe}.yaml"
    names = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
    raise InputError(f"recipe '{recipe}' is neither a file nor a shipped recipe ({names})")
