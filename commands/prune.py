"""`hebbline prune MODEL --calibration TEXT --density 0.5 --out DIR`."""

import time
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ..console import Parser, console, print_json, progress

if TYPE_CHECKING:
    from ..train.prune.report import PruneReport


def main(arguments: list[str]) -> int:
    """Prune a pretrained model on a calibration text and publish its directory with masks and report."""
    from ..train.prune.publish import prune_directory

    values = _parser().parse_args(arguments)
    texts, config = _texts(values), _config(values)
    # The bar begins when there is something to show: what is wrong with a model is one line alone.
    bar, started = progress(), time.perf_counter()
    with ExitStack() as shown:
        task = bar.add_task("reading", total=None)

        def show(what: str, done: int, of: int) -> None:
            if not bar.live.is_started:
                shown.enter_context(bar)
            bar.update(task, description=what, completed=done, total=of)
            if not console.is_terminal:
                console.print(f"{time.perf_counter() - started:.0f} s: {what}, {done} of {of} blocks done")

        report = prune_directory(values.model, texts, config, values.out, show, console.print)
    _say(report, values.out)
    if values.json:
        print_json(report.to_dict())
    return 0


def _parser() -> Parser:
    from ..train.prune.config import Allocation, Method, Values
    from ..train.topology.structure import StructureKind

    parser = Parser(
        prog="hebbline prune",
        description="Make a pretrained decoder sparse, block by block, on a calibration text; nothing else is trained.",
    )
    add = parser.add_argument
    add("model", type=str, help="a Hugging Face directory of a decoder, or its name on the hub")
    add("--calibration", required=True, help="text: 'python', 'brown', a .txt or .jsonl file, or hub://NAME")
    add("--density", type=float, default=0.5, help="share of links in the pruned layers together")
    add("--out", type=Path, required=True, help="where to publish the model directory")
    add("--method", choices=get_args(Method), default="alps", help="which links stay, and what they become")
    add("--structure", choices=get_args(StructureKind), default="unstructured", help="which masks are legal")
    add("--block-size", type=int, default=16, help="side of the blocks of --structure block")
    add("--allocation", choices=get_args(Allocation), default="uniform", help="how densities of layers differ")
    add("--spread", type=float, default=0.08, help="the most that an allocated density lies from --density")
    add("--values", choices=get_args(Values), default="float32", help="round to what `export --values` stores")
    add("--passes", type=int, default=2, help="of reconstruction over the text, attention and MLP each; 0 for none")
    add("--learning-rate", type=float, default=5e-4, help="of reconstruction, at first")
    add("--damping", type=float, default=0.01, help="share of the mean diagonal added to Gram matrices")
    add("--include", nargs="+", default=["*"], help="globs of the names of layers to prune")
    add("--exclude", nargs="+", default=[], help="globs of the names of layers to leave dense")
    add("--sequences", type=int, default=128, help="of the text that are calibrated on")
    add("--sequence-length", type=int, default=512, help="tokens each")
    add("--evaluate", nargs="+", default=[], help="texts for perplexity (default: held-out documents of the same)")
    add("--windows", type=int, default=32, help="of each text that perplexity is measured on")
    add("--seed", type=int, default=0, help="of the choice of sequences and their order")
    add("--json", action="store_true", help="print the report as JSON")
    return parser


def _texts(values: Any) -> Any:
    from ..train.prune.publish import Texts

    return Texts(
        values.calibration, values.sequences, values.sequence_length, values.evaluate, values.windows, values.seed
    )


def _config(values: Any) -> Any:
    from ..train.prune.config import PruneConfig

    return PruneConfig(**{field.name: values[field.name] for field in fields(PruneConfig)})


def _say(report: "PruneReport", out: Path) -> None:
    links = f"{report.pruned.density:.2%} of the possible links of {len(report.pruned.layers)} layers stay"
    console.print(f"{links}; {report.dense:,} weights of other linear layers of the blocks stay dense")
    for note in report.notes:
        console.print(note, style="yellow")
    for cost in report.costs:
        console.print(f"perplexity of held-out text, {cost} on {cost.tokens:,} tokens")
    console.print(f"the model is in [bold]{out}[/bold]; {out / 'report.html'} shows every layer")
