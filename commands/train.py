"""`hebbline train RECIPE [--sparsity.density 0.3 …]`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import InputError
from ..artifacts.publish import check_target
from ..console import Parser, console, print_json

if TYPE_CHECKING:
    from ..train.tasks import LanguageModelRecipe, TrainingResult


def main(arguments: list[str]) -> int:
    """Train a model from a recipe and publish its directory."""
    from ..train.tasks.recipe import build_recipe, recipe_parser, recipe_path

    parser = recipe_parser()
    parser.add_argument("--out", type=Path, default=Path("runs/model"), help="where to publish the model directory")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    if not arguments:
        raise InputError("name a recipe: a file, or a shipped one such as 'demo'")
    if arguments[0] in ("-h", "--help"):
        _print_help(parser)
        return 0
    values = parser.parse_args([f"--recipe={recipe_path(arguments[0])}", *arguments[1:]])
    out, as_json = Path(values.pop("out")), values.pop("json")
    check_target(out)
    recipe, yaml = build_recipe(parser, values)
    result = train_to_directory(recipe, yaml, out)
    if as_json:
        updates = [asdict(report) for report in result.updates]
        print_json({"out": str(out), "seconds": result.seconds, "tokens": result.tokens, "updates": updates})
    return 0


def train_to_directory(recipe: "LanguageModelRecipe", yaml: str, out: Path) -> "TrainingResult":
    """Train, publish the model directory, and say what was done."""
    from ..train.save import save_model_directory
    from ..train.tasks import train_language_model

    result = train_language_model(recipe)
    save_model_directory(
        out, result.model, result.tokenizer, result.masks, method=recipe.sparsity.method, recipe=yaml, log=result.log
    )
    train_bytes, validation_bytes = result.documents.bytes
    console.print(
        f"{result.tokens:,} tokens in {result.seconds:.0f} s ({result.tokens / result.seconds:,.0f} tokens/s) from "
        f"{train_bytes / 1e6:.2f} MB of text; {validation_bytes / 1e6:.2f} MB in other documents are held out"
    )
    update_seconds = sum(report.seconds for report in result.updates)
    console.print(
        f"{len(result.updates)} topology updates moved {sum(report.regrown for report in result.updates):,} links, "
        f"in {update_seconds / result.seconds:.1%} of the time"
    )
    console.print(f"the model is in [bold]{out}[/bold]")
    return result


def _print_help(parser: Parser) -> None:
    console.print("usage: hebbline train RECIPE [options]\n\nRECIPE is a YAML file or the name of a shipped recipe.\n")
    print(parser.format_help())
