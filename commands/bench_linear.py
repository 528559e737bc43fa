"""`hebbline bench linear`: sparse linear layers, and what else computes such layers, against dense ONNX Runtime."""

import shlex
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import InputError
from ..console import Parser, console
from .bench_output import JsonDocument, Lines, Report, add_common_options, numbers, print_caption, reported, steps

if TYPE_CHECKING:
    from ..benchmarks.budget import Budget
    from ..benchmarks.cases import LinearCases
    from ..benchmarks.linear import LinearRow
    from ..benchmarks.machine import Machine
    from ..benchmarks.peers import PeerRow


def main(arguments: list[str]) -> int:
    """Measure, show each row when it is there, and write the page if one is asked for."""
    from ..benchmarks.budget import Budget
    from ..benchmarks.cases import LinearCases
    from ..benchmarks.endings import signals_raise
    from ..benchmarks.machine import describe_machine

    options = _parser(LinearCases()).parse_args(arguments)
    budget = Budget(options.budget)
    cases = LinearCases(
        shapes=tuple(map(_shape, options.shapes.split(","))),
        densities=numbers("--densities", options.densities, float),
        tokens=numbers("--tokens", options.tokens, int),
        values=tuple(options["values"].split(",")),
        threads=numbers("--threads", options.threads, int),
        peers=options.peers,
    )
    machine = describe_machine()
    with signals_raise():
        rows = _measure(cases, budget, machine, options.json)
    if options.docs is not None:
        _write(options.docs, machine, "hebbline bench linear " + shlex.join(arguments), rows)
    return 0


def _measure(cases: "LinearCases", budget: "Budget", machine: "Machine", as_json: bool) -> "list[LinearRow | PeerRow]":
    from ..benchmarks.cases import count_rows, plan_cells
    from ..benchmarks.linear import run_linear

    print_caption(machine)
    document = JsonDocument(as_json, {"machine": asdict(machine)}, "rows", "peers")
    rows = []
    with (
        reported(Report(_lines(), document, count_rows(plan_cells(cases)), budget)) as report,
        steps(as_lines=False) as step,
        closing(run_linear(cases, budget, step)) as measured,
    ):
        for row in measured:
            rows.append(row)
            _show(report, row)
    _conclude(rows)
    return rows


def _conclude(rows: "list[LinearRow | PeerRow]") -> None:
    """Say where sparse does not pay on this machine, and what the last column is."""
    from ..benchmarks.linear import LinearRow
    from ..benchmarks.outlook import MANY_CORES, SHARED_BANDWIDTH

    layers = [row for row in rows if isinstance(row, LinearRow)]
    if any(row.outlook is not None for row in layers):
        console.print(
            f"many cores: predicted, not measured, for {MANY_CORES} cores that share {SHARED_BANDWIDTH:g} times one "
            "core's memory bandwidth",
            markup=False,
        )
    slow = [row for row in layers if row.ratio < 1]
    if slow:
        cells = ", ".join(f"{row.layout} at {row.density:g}, {row.tokens} tokens ({row.ratio:.2f})" for row in slow)
        console.print(f"on {slow[0].isa} sparse does not pay in {len(slow)} cells: {cells}", markup=False)


def _parser(default: object) -> Parser:
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
    add_common_options(parser)
    return parser


def _shape(text: str) -> tuple[int, int]:
    try:
        out_features, in_features = map(int, text.split("x"))
    except ValueError as error:
        raise InputError(f"--shapes takes OUTxIN such as 2048x768, not '{text}'") from error
    return out_features, in_features


def _lines() -> Lines:
    numbers = (("density", 7), ("tokens", 6), ("threads", 7))
    figures = (("µs", 9), ("dense float32 µs", 16), ("times as fast", 13), ("error", 7))
    beside = (("predicted", 9), ("bound by", 9), ("many cores", 10))
    return Lines(("layer", -11), *numbers, ("what", -25), *figures, *beside)


def _show(report: Report, row: "LinearRow | PeerRow") -> None:
    from ..benchmarks.peers import PeerRow

    if isinstance(row, PeerRow):
        name, what, error, beside = "peers", row.peer, "", None
    else:
        name, what, error, beside = "rows", row.layout, f"{row.max_rel_err:.1e}", row.outlook
    case = (f"{row.out_features}x{row.in_features}", f"{row.density:g}", str(row.tokens), str(row.threads), what)
    figures = (f"{row.us:.1f}", f"{row.dense_us:.1f}", f"{row.ratio:.2f}", error)
    outlook = ("", "", "")
    if beside is not None:
        outlook = (f"{beside.predicted_ratio:.2f}", beside.bound, f"{beside.many_core_ratio:.2f}")
    report.add(name, asdict(row), *case, *figures, *outlook)


def _write(docs: Path, machine: "Machine", command: str, rows: "list[LinearRow | PeerRow]") -> None:
    from ..benchmarks.linear import LinearRow
    from ..benchmarks.peers import PeerRow
    from ..benchmarks.performance import linear_name, linear_section, plot_name, plot_speedups, write_performance

    layers = [row for row in rows if isinstance(row, LinearRow)]
    peers = [row for row in rows if isinstance(row, PeerRow)]
    plot = plot_name(layers)
    docs.mkdir(parents=True, exist_ok=True)
    if plot is not None:
        plot_speedups(layers, peers, docs / plot)
    page = write_performance(
        docs, f"bench linear {linear_name(layers)}", linear_section(machine, command, layers, peers, plot)
    )
    console.print(f"written to [bold]{page}[/bold]")
