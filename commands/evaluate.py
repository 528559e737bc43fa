"""`hebbline eval TARGET`."""

import math
from argparse import Namespace
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import CheckError, InputError
from ..console import Parser, console, print_json, progress

if TYPE_CHECKING:
    from ..evaluate import Perplexity, Target
    from ..train.tasks import ImageRecipe, TranslationRecipe

_WINDOW = 128
"""Tokens of a window over documents; a whole text is scored in windows as long as the model's context."""


def main(arguments: list[str]) -> int:
    """Perplexity or zero-shot accuracy of a model directory, an artifact, or a served model; scores of other tasks."""
    values = _parser().parse_args(arguments)
    _check_options(values)
    from ..evaluate import open_target, recipe_of

    if (recipe := recipe_of(Path(values.target))) is not None:
        if values.zero_shot or values.harness:
            raise InputError(f"{values.target} is no language model: --zero-shot and --harness ask questions in text")
        return _score(values.target, recipe, values.threads, values.json)
    target = open_target(values.target, values.tokenizer, values.threads)
    if values.zero_shot:
        return _zero_shot(values, target)
    if values.harness:
        return _harness(values, target)
    result = _documents(values, target) if values.whole is None else _whole(values, target)
    if not math.isfinite(result.value):
        raise CheckError(f"{values.target} gives no finite logits on this text: its perplexity is {result.value}")
    console.print(f"through {target.kind}: {result.tokens:,} tokens in {result.seconds:.1f} s")
    if values.json:
        print_json({"target": values.target, "kind": target.kind, **asdict(result)})
    else:
        print(f"perplexity {result.value:.4f}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="hebbline eval",
        description="Perplexity on held-out documents, or zero-shot accuracy, by the same code everywhere. A model "
        "directory of another task is scored on what its recipe holds out: accuracy of images, BLEU of translations.",
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
    parser.add_argument(
        "--zero-shot",
        nargs="+",
        default=[],
        metavar="SET",
        help="accuracy on questions with choices instead: 'social-iqa', 'quartz', 'bbc-topics', or a .jsonl file",
    )
    parser.add_argument(
        "--harness",
        nargs="+",
        default=[],
        metavar="TASK",
        help="run tasks of the lm-evaluation-harness instead: their names, or files of tasks in its YAML",
    )
    parser.add_argument(
        "--questions", type=int, default=None, help="of each set or task, take no more than this many (default: all)"
    )
    parser.add_argument("--tokenizer", type=Path, default=None, help="for grpc://, the directory of the served model")
    parser.add_argument("--threads", type=int, default=None, help="threads of the runtime (default: all cores)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _check_options(values: Namespace) -> None:
    _check_questions(values)
    if values.whole is None:
        if values.stride is not None:
            raise InputError("--stride goes with --whole FILE; windows over documents do not overlap")
        return
    for option in ("source", "validation_share", "documents"):
        if getattr(values, option) is not None:
            name = option.replace("_", "-")
            raise InputError(f"--{name} selects documents; --whole FILE scores all of one text: give one of the two")


def _check_questions(values: Namespace) -> None:
    asked = [option for option in ("zero_shot", "harness") if getattr(values, option)]
    if values.questions is not None and (not asked or values.questions < 1):
        raise InputError("--questions goes with --zero-shot or --harness, and is at least 1")
    texts = ("source", "validation_share", "documents", "whole", "stride", "window", "max_windows")
    given = asked + [option for option in texts if getattr(values, option) is not None]
    if asked and len(given) > 1:
        first, second = (option.replace("_", "-") for option in given[:2])
        raise InputError(f"--{first} and --{second} ask for two kinds of score: give one of the two")
    if values.harness and find_spec("lm_eval") is None:
        raise InputError("--harness needs the lm-evaluation-harness: pip install lm_eval")


def _zero_shot(values: Namespace, target: "Target") -> int:
    """Accuracy on each set of questions, by log-probability of the choices."""
    from ..data.questions import load_questions
    from ..evaluate import score_choices

    found: dict[str, Any] = {}
    for name in values.zero_shot:
        questions = load_questions(name, values.questions)
        with progress() as bar:
            score = score_choices(target, bar.track(questions, description=name))
        found[name] = asdict(score) | {"standard_error": score.standard_error}
        console.print(f"through {target.kind}: {score.questions:,} questions of {name} in {score.seconds:.1f} s")
        if not values.json:
            print(
                f"{name}: accuracy {score.accuracy:.2%} (standard error {score.standard_error:.2%}), "
                f"{score.normalised:.2%} by length, {score.chance:.2%} by chance"
            )
    if values.json:
        print_json({"target": values.target, "kind": target.kind, "zero_shot": found})
    return 0


def _harness(values: Namespace, target: "Target") -> int:
    """What the lm-evaluation-harness finds."""
    from ..evaluate.harness import run_harness

    found = run_harness(target, values.harness, values.questions)
    if values.json:
        print_json({"target": values.target, "kind": target.kind, "harness": found})
        return 0
    for task, metrics in found.items():
        print(f"{task}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    return 0


def _documents(values: Namespace, target: "Target") -> "Perplexity":
    """Perplexity on held-out documents, each ended by the end token, in windows that do not overlap."""
    from ..data.documents import PYTHON_SOURCE, load_documents, load_texts
    from ..evaluate import perplexity, token_windows

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
