"""`hebbline bench linear|model|results`: the speed that a user gets on this machine, and methods compared."""

import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..artifacts import InputError
from ..console import Parser, console, print_json

if TYPE_CHECKING:
    from ..benchmarks.linear import LinearRow
    from ..benchmarks.model import ModelCase, ModelRow
    from ..benchmarks.peers import PeerRow

_KINDS = ("linear", "model", "results")
_TABLE_WIDTH = 140
"""Of tables with figures in every column, in files and pipes too."""


def main(arguments: list[str]) -> int:
    """Run one kind of benchmark."""
    kind, *rest = arguments or [""]
    if kind in ("-h", "--help"):
        print("usage: hebbline bench linear|model|results [options]\n\n`hebbline bench KIND --help` lists the options.")
        return 0
    if kind not in _KINDS:
        raise InputError(f"there is no benchmark '{kind}'; there are {', '.join(_KINDS)}")
    if kind == "results":
        from .bench_results import main as results

        return results(rest)
    return _linear(rest) if kind == "linear" else _model(rest)


def _print_wide(table: Table) -> None:
    Console(stderr=True, width=max(console.width, _TABLE_WIDTH)).print(table)


def _linear(arguments: list[str]) -> int:
    from ..benchmarks.linear import LinearCases, run_linear
    from ..benchmarks.machine import describe_machine
    from ..benchmarks.peers import run_peers

    options = _linear_parser(LinearCases()).parse_args(arguments)
    cases = LinearCases(
        shapes=tuple(map(_shape, options.shapes.split(","))),
        densities=_numbers("--densities", options.densities, float),
        tokens=_numbers("--tokens", options.tokens, int),
        values=tuple(options["values"].split(",")),
        threads=_numbers("--threads", options.threads, int),
    )
    with console.status("") as status:
        rows = list(run_linear(cases, status.update))
        peers = list(run_peers(cases, status.update)) if options.peers else []
    machine = describe_machine()
    _show_linear(rows, peers)
    if options.docs is not None:
        _write_linear(options.docs, machine, "hebbline bench linear " + shlex.join(arguments), rows, peers)
    if options.json:
        print_json(
            {
                "machine": asdict(machine),
                "rows": [asdict(row) for row in rows],
                "peers": [asdict(row) for row in peers],
            }
        )
    return 0


def _linear_parser(default: object) -> Parser:
    def joined(name: str) -> str:
        return ",".join(str(value) for value in getattr(default, name))

    parser = Parser(prog="hebbline bench linear", description="Sparse linear layers against dense ONNX Runtime.")
    parser.add_argument("--shapes", type=str, default="2048x2048", help="OUTxIN, separated by commas")
    parser.add_argument("--densities", type=str, default=joined("densities"), help="shares of links")
    parser.add_argument("--tokens", type=str, default=joined("tokens"), help="tokens at a time")
    parser.add_argument("--values", type=str, default=joined("values"), help="float32, bfloat16, int8, int4")
    parser.add_argument("--threads", type=str, default=joined("threads"), help="threads of ONNX Runtime")
    parser.add_argument(
        "--peers",
        action="store_true",
        help="also time dense low precision, and torch, scipy and OpenVINO where installed",
    )
    parser.add_argument("--docs", type=Path, default=None, help="write table and plot into this directory's page")
    parser.add_argument("--json", action="store_true", help="print machine and rows as JSON")
    return parser


def _numbers(option: str, text: str, kind: Callable[[str], float]) -> tuple:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} takes numbers separated by commas, not '{text}'") from error


def _shape(text: str) -> tuple[int, int]:
    try:
        out_features, in_features = map(int, text.split("x"))
    except ValueError as error:
        raise InputError(f"--shapes takes OUTxIN such as 2048x768, not '{text}'") from error
    return out_features, in_features


def _show_linear(rows: "Sequence[LinearRow]", peers: "Sequence[PeerRow]") -> None:
    table = Table("layer", "density", "tokens", "threads", "what", "µs", "dense float32 µs", "times as fast", "error")
    lines = [(row, row.layout, f"{row.max_rel_err:.1e}") for row in rows] + [(peer, peer.peer, "") for peer in peers]
    for line, what, error in lines:
        shape = f"{line.out_features}x{line.in_features}"
        cells = [shape, f"{line.density:g}", str(line.tokens), str(line.threads), what]
        table.add_row(*cells, f"{line.us:.1f}", f"{line.dense_us:.1f}", f"{line.ratio:.2f}", error)
    _print_wide(table)


def _write_linear(
    docs: Path, machine: object, command: str, rows: "Sequence[LinearRow]", peers: "Sequence[PeerRow]"
) -> None:
    from ..benchmarks.performance import linear_name, linear_section, plot_name, plot_speedups, write_performance

    plot = plot_name(rows)
    docs.mkdir(parents=True, exist_ok=True)
    if plot is not None:
        plot_speedups(rows, peers, docs / plot)
    section = linear_section(machine, command, rows, peers, plot)  # type: ignore[arg-type]
    page = write_performance(docs, f"bench linear {linear_name(rows)}", section)
    console.print(f"written to [bold]{page}[/bold]")


def _model(arguments: list[str]) -> int:
    from ..benchmarks.machine import describe_machine
    from ..benchmarks.model import ModelCase, run_model

    options = _model_parser(ModelCase("")).parse_args(arguments)
    case = ModelCase(
        model=options.model,
        density=options.density,
        variants=tuple(options.variants.split(",")),
        context=options.context,
        prefill=options.prefill,
        batches=_numbers("--batches", options.batches, int),
        threads=options.threads,
    )
    with tempfile.TemporaryDirectory(prefix="hebbline-bench-") as directory, console.status("") as status:
        rows = run_model(case, Path(directory), status.update)
    machine = describe_machine()
    _show_model(case, rows)
    if options.docs is not None:
        from ..benchmarks.performance import model_section, write_performance

        command = "hebbline bench model " + shlex.join(arguments)
        section = f"bench model {case.model}, density {case.density:g}, {case.threads} threads"
        page = write_performance(options.docs, section, model_section(machine, command, case, rows))
        console.print(f"written to [bold]{page}[/bold]")
    if options.json:
        print_json({"machine": asdict(machine), "case": asdict(case), "rows": [asdict(row) for row in rows]})
    return 0


def _model_parser(default: "ModelCase") -> Parser:
    parser = Parser(prog="hebbline bench model", description="A whole language model, dense and sparse, side by side.")
    parser.add_argument("model", type=str, help="llama-60m, llama-130m, llama-1b, smollm2-135m, or a model directory")
    parser.add_argument("--density", type=float, default=default.density, help="share of links of the named sizes")
    parser.add_argument(
        "--variants", type=str, default=",".join(default.variants), help="what to time, comma-separated"
    )
    parser.add_argument("--context", type=int, default=default.context, help="tokens a sequence holds when decoded")
    parser.add_argument("--prefill", type=int, default=default.prefill, help="tokens of the prompt")
    parser.add_argument("--batches", type=str, default="1,16", help="sequences decoded together")
    parser.add_argument("--threads", type=int, default=default.threads, help="threads of ONNX Runtime")
    parser.add_argument("--docs", type=Path, default=None, help="write a table into this directory's page")
    parser.add_argument("--json", action="store_true", help="print machine and rows as JSON")
    return parser


def _show_model(case: "ModelCase", rows: "Sequence[ModelRow]") -> None:
    headings = ["variant", f"prefill {case.prefill}", *(f"decode B={batch}" for batch in case.batches)]
    table = Table(*headings, "first token", "resident", "file", "roofline", "share")
    for row in rows:
        rates = {f"prefill {case.prefill}": row.prefill} | {
            f"decode {batch}": row.decode[batch] for batch in case.batches
        }
        cells = [f"{rate:.1f} ({row.ratios[measure]:.2f}x)" for measure, rate in rates.items()]
        sizes = [f"{count / 1e6:,.0f} MB" for count in (row.resident_bytes, row.file_bytes)]
        first = f"{row.first_token_seconds * 1e3:.0f} ms"
        table.add_row(row.variant, *cells, first, *sizes, f"{row.roofline:.1f}", f"{row.share:.0%}")
    _print_wide(table)
