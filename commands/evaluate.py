"""`hebbline eval TARGET`."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import InputError
from ..console import Parser, console, print_json, progress

if TYPE_CHECKING:
    from ..evaluate import Perplexity, Target
    from ..train.tasks import ImageRecipe, TranslationRecipe

_WINDOW = 128
"""Tokens of a window over documents; a whole text is scored in windows as long as the model's context."""


def main(arguments: list[str]) -> int:
    """Perplexity of a model directory, an artifact, or a served model; accuracy or BLEU of models of other tasks."""
    parser = Parser(
        prog="hebbline eval",
        description="Perplexity on held-out documents, by the same code everywhere. A model directory of another task "
        "is scored on what its recipe holds out: accuracy of images, BLEU of translations.",
    )
    parser.add_argument("target", type=str, help="a model directory, an artifact directory, or grpc://HOST:PORT")
    parser.add_argument(
        "--source", default=None, help="documents: 'python' (default), 'brown', a .txt or .jsonl file, or hub://NAME"
    )
    parser.add_argument(
        "--validation-share",
        type=float,
        default=None,
        help="share of documents that is held out (default: 0.05; 1: all)",
    )
    parser.add_argument("--documents", type=int, default=None, help="take the first so many documents (default: all)")
    parser.add_argument(
        "--whole",
        type=Path,
        default=None,
        metavar="FILE",
        help="score this UTF-8 text instead: all of it, raw, as one stream in file order",
    )
    parser.add_argument(
        "--stride",
        type=int,
        default=None,
        help="with --whole, tokens between the beginnings of two windows (default: the window: they do not overlap)",
    )
    parser.add_argument(
        "--window",
        type=int,
        default=None,
        help=f"tokens a window (default: {_WINDOW}; with --whole, the model's context, at most 2048)",
    )
    parser.add_argument("--max-windows", type=int, default=None, help="evaluate no more than this many windows")
    parser.add_argument("--tokenizer", type=Path, default=None, help="for grpc://, the directory of the served model")
    parser.add_argument("--threads", type=int, default=None, help="threads of the runtime (default: all cores)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    values = parser.parse_args(arguments)
    _check_options(values)
    from ..evaluate import open_target, recipe_of

    if (recipe := recipe_of(Path(values.target))) is not None:
        return _score(values.target, recipe, values.threads, values.json)
    target = open_target(values.target, values.tokenizer, values.threads)
    result = _documents(values, target) if values.whole is None else _whole(values, target)
    console.print(f"through {target.kind}: {result.tokens:,} tokens in {result.seconds:.1f} s")
    if values.json:
        print_json({"target": values.target, "kind": target.kind, **asdict(result)})
    else:
        print(f"perplexity {result.value:.4f}")
    return 0


def _check_options(values: Namespace) -> None:
    if values.whole is None:
        if values.stride is not None:
            raise InputError("--stride goes with --whole FILE; windows over documents do not overlap")
        return
    for option in ("source", "validation_share", "documents"):
        if getattr(values, option) is not None:
            name = option.replace("_", "-")
            raise InputError(f"--{name} selects documents; --whole FILE scores all of one text: give one of the two")


def _documents(values: Namespace, target: "Target") -> "Perplexity":
    """Perplexity on held-out documents, each ended by the end token, in windows that do not overlap."""
    from ..evaluate import perplexity, token_windows
    from ..train.data.documents import PYTHON_SOURCE, load_documents, load_texts

    window = _window(_WINDOW if values.window is None else values.window, target)
    source, limit = values.source or PYTHON_SOURCE, values.documents or 0
    share = 0.05 if values.validation_share is None else values.validation_share
    texts = load_texts(source, limit) if share == 1 else load_documents(source, share, limit).validation
    windows = token_windows(target.tokenizer, texts, target.eos_token_id, window, values.max_windows)
    with progress() as bar:
        return perplexity(bar.track(windows, description="scoring"), target.scorer)


def _whole(values: Namespace, target: "Target") -> "Perplexity":
    """Perplexity on one raw text, as published for WikiText-2: see `stream_windows`."""
    from ..evaluate import stream_perplexity, stream_windows

    try:
        text = values.whole.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--whole {values.whole} cannot be read as UTF-8 text: {error}") from error
    window = _window(min(target.context_length, 2048) if values.window is None else values.window, target)
    ids = target.tokenizer.encode(text).ids
    windows = stream_windows(ids, window, window if values.stride is None else values.stride)[: values.max_windows]
    with progress() as bar:
        return stream_perplexity(bar.track(windows, description="scoring"), target.scorer)


def _window(window: int, target: "Target") -> int:
    if not 2 <= window <= target.context_length:
        raise InputError(f"--window {window} is outside [2, {target.context_length}], the model's context")
    return window


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
