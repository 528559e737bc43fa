"""`hebbline eval TARGET`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import InputError
from ..console import Parser, console, print_json, progress

if TYPE_CHECKING:
    from ..train.tasks import ImageRecipe, TranslationRecipe


def main(arguments: list[str]) -> int:
    """Perplexity of a model directory, an artifact, or a served model; accuracy or BLEU of models of other tasks."""
    parser = Parser(
        prog="hebbline eval",
        description="Perplexity on held-out documents, by the same code everywhere. A model directory of another task "
        "is scored on what its recipe holds out: accuracy of images, BLEU of translations.",
    )
    parser.add_argument("target", type=str, help="a model directory, an artifact directory, or grpc://HOST:PORT")
    parser.add_argument("--source", default="python", help="text: 'python', a .txt or .jsonl file, or hub://NAME")
    parser.add_argument("--validation-share", type=float, default=0.05, help="share of documents that is held out")
    parser.add_argument("--documents", type=int, default=0, help="take the first so many documents (default: all)")
    parser.add_argument("--window", type=int, default=128, help="tokens a window")
    parser.add_argument("--max-windows", type=int, default=None, help="evaluate no more than this many windows")
    parser.add_argument("--tokenizer", type=Path, default=None, help="for grpc://, the directory of the served model")
    parser.add_argument("--threads", type=int, default=None, help="threads of the runtime (default: all cores)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    values = parser.parse_args(arguments)
    from ..evaluate import open_target, perplexity, recipe_of, token_windows

    if (recipe := recipe_of(Path(values.target))) is not None:
        return _score(values.target, recipe, values.threads, values.json)
    from ..train.data.documents import load_documents

    target = open_target(values.target, values.tokenizer, values.threads)
    if not 2 <= values.window <= target.context_length:
        raise InputError(f"--window {values.window} is outside [2, {target.context_length}], the model's context")
    documents = load_documents(values.source, values.validation_share, values.documents).validation
    windows = token_windows(target.tokenizer, documents, target.eos_token_id, values.window, values.max_windows)
    with progress() as bar:
        result = perplexity(bar.track(windows, description="scoring"), target.scorer)
    console.print(f"through {target.kind}: {result.tokens:,} tokens in {result.seconds:.1f} s")
    if values.json:
        print_json({"target": values.target, "kind": target.kind, **asdict(result)})
    else:
        print(f"perplexity {result.value:.4f}")
    return 0


def _score(target: str, recipe: "ImageRecipe | TranslationRecipe", threads: int | None, as_json: bool) -> int:
    from ..evaluate import score_task

    score = score_task(Path(target), recipe, threads)
    console.print(f"{score.examples:,} held-out examples of {recipe.data.source} in {score.seconds:.1f} s")
    if as_json:
        print_json({"target": target, "kind": "torch", **asdict(score)})
    elif score.name == "accuracy":
        print(f"accuracy {score.value:.2%}")
    else:
        print(f"BLEU {score.value:.2f} ({score.signature})")
    return 0
