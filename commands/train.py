"""`hebbline train RECIPE [--sparsity.density 0.3 …] [--resume]`."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import InputError
from ..artifacts.publishing import check_target
from ..console import Parser, console, print_json

if TYPE_CHECKING:
    from ..train.tasks import TrainingResult


def main(arguments: list[str]) -> int:
    """Train a model from a recipe and publish its directory."""
    from ..train.tasks.reading import DEFAULT_TASK, build_recipe, recipe_parser, recipe_path

    if not arguments:
        raise InputError("name a recipe: a file, or a shipped one such as 'demo'")
    if arguments[0] in ("-h", "--help"):
        _print_help(_add_options(recipe_parser()), DEFAULT_TASK)
        return 0
    path, task = recipe_path(arguments[0])
    parser = _add_options(recipe_parser(task))
    if set(arguments[1:]) & {"-h", "--help"}:
        _print_help(parser, task)
        return 0
    values = parser.parse_args([f"--recipe={path}", *arguments[1:]])
    out, as_json, resume = Path(values.pop("out")), values.pop("json"), values.pop("resume")
    check_target(out)
    recipe, yaml = build_recipe(parser, values, task)
    result = train_to_directory(recipe, yaml, out, resume=resume)
    if as_json and not int(os.environ.get("RANK", "0")):
        updates = [asdict(report) for report in result.trained.updates]
        print_json({"out": str(out), "seconds": result.trained.seconds, **result.facts, "updates": updates})
    return 0


def train_to_directory(recipe: Any, yaml: str, out: Path, *, resume: bool = False) -> "TrainingResult":
    """Train, publish the model directory, and say what was done."""
    from ..train.dynamics.places import dense_weights, density_line, find_places
    from ..train.publish import train_and_publish

    result = train_and_publish(recipe, yaml, out, resume=resume)
    if int(os.environ.get("RANK", "0")):
        return result
    seconds, updates = result.trained.seconds, result.trained.updates
    console.print(result.summary)
    if updates:
        console.print(
            f"{len(updates)} topology updates moved {sum(report.regrown for report in updates):,} links, "
            f"in {sum(report.seconds for report in updates) / seconds:.1%} of the time"
        )
    if masks := result.trained.masks:
        places = find_places(result.model)
        dense = dense_weights(result.model, {name: places[name] for name in masks})
        console.print(f"the graphs have {density_line(masks, dense)}")
    console.print(f"the model is in [bold]{out}[/bold]")
    return result


def _add_options(parser: Parser) -> Parser:
    parser.add_argument("--out", type=Path, default=Path("runs/model"), help="where to publish the model directory")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of this run")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    return parser


def _print_help(parser: Parser, task: str) -> None:
    from ..train.tasks.reading import shipped_recipes

    console.print(
        "usage: hebbline train RECIPE [options]\n\nRECIPE is a YAML file or the name of a shipped recipe:\n\n"
        + "\n".join(f"  {name:<22}{about}" for name, about in shipped_recipes().items())
        + f"\n\n`hebbline train RECIPE --help` lists the fields of its task; those of the task '{task}' are:\n",
        markup=False,
    )
    print(parser.format_help())
