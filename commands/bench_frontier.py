"""`hebbline bench frontier MODEL`: quality against speed and size, dense and sparse."""

import shlex
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import Parser, console
from .bench_output import JsonDocument, Lines, Report, add_common_options, numbers, print_caption, reported, steps

if TYPE_CHECKING:
    from ..benchmarks.budget import Budget
    from ..benchmarks.frontier import FrontierCase
    from ..benchmarks.frontier_rows import FrontierRow, FrontierRows
    from ..benchmarks.machine import Machine


def main(arguments: list[str]) -> int:
    """Measure what is not measured yet, show each row when it is there, and write table and picture."""
    from ..benchmarks.budget import Budget
    from ..benchmarks.endings import signals_raise
    from ..benchmarks.frontier_page import conclusions, write_frontier
    from ..benchmarks.frontier_rows import FrontierRows
    from ..benchmarks.machine import describe_machine

    options = _parser().parse_args(arguments)
    budget = Budget(options.budget)
    case = _case(options)
    machine = describe_machine()
    rows = FrontierRows(options.out, case.common(machine))
    with signals_raise():
        _measure(case, rows, options.out, budget, machine, options.json)
    found = rows.rows()
    command = "hebbline bench frontier " + shlex.join(arguments)
    page = write_frontier(options.docs or options.out, case, machine, command, found)
    for line in conclusions(found, case.measured, machine.isa):
        console.print(line, markup=False)
    console.print(f"written to [bold]{page}[/bold]")
    return 0


def _measure(
    case: "FrontierCase", rows: "FrontierRows", folder: Path, budget: "Budget", machine: "Machine", as_json: bool
) -> None:
    from ..benchmarks.frontier import run_frontier

    print_caption(machine)
    document = JsonDocument(as_json, {"machine": asdict(machine)}, "rows")
    known = rows.rows()
    planned = len(case.planned | {(row.model, row.variant) for row in known})
    with reported(Report(_lines(case), document, planned, budget)) as report, steps(as_lines=True) as step:
        for row in known:
            report.add("rows", asdict(row), *_cells(case, row))
        with closing(run_frontier(case, rows, folder, machine, step, budget)) as measured:
            for row in measured:
                report.add("rows", asdict(row), *_cells(case, row))


def _case(options: Any) -> "FrontierCase":
    from ..benchmarks.frontier import FrontierCase
    from ..train.prune.publish import Texts

    return FrontierCase(
        model=options.model,
        texts=Texts(options.calibration, options.sequences, options.sequence_length, options.evaluate, options.windows),
        models=tuple(options.models),
        zero_shot=tuple(options.zero_shot),
        questions=options.questions,
        densities=numbers("--densities", options.densities, float) if options.densities else (),
        structures=tuple(options.structures.split(",")),
        values=tuple(options["values"].split(",")),
        passes=options.passes,
        threads=options.threads,
    )


def _parser() -> Parser:
    parser = Parser(
        prog="hebbline bench frontier",
        description="Perplexity against tokens a second, memory and file size: a dense model, and sparse ones made of "
        "it by one-shot pruning, in every type of values. The same command goes on where a run was stopped.",
    )
    add = parser.add_argument
    add("model", type=Path, help="the directory of a dense model")
    add("--calibration", required=True, help="text that is pruned on: 'python', 'brown', a file, or hub://NAME")
    add("--out", type=Path, required=True, help="where rows and pruned models are kept")
    add("--models", type=Path, nargs="+", default=[], help="directories of sparse models to measure beside, as trained")
    add("--densities", type=str, default="0.5,0.7,0.3", help="of one-shot pruning, first ones first; '' for none")
    add("--structures", type=str, default="unstructured,2:4,block", help="of one-shot pruning, first ones first")
    add("--values", type=str, default="int8,float32,bfloat16,int4", help="forms of each sparse model, in this order")
    add("--evaluate", nargs="+", default=[], help="texts for perplexity (default: held-out documents of the same)")
    add("--zero-shot", nargs="+", default=[], help="sets of questions that each form answers, as of `hebbline eval`")
    add("--questions", type=int, default=200, help="of each set")
    add("--sequences", type=int, default=128, help="of the text that are pruned on")
    add("--sequence-length", type=int, default=512, help="tokens each, also of the windows that are measured on")
    add("--windows", type=int, default=16, help="of each text that perplexity is measured on")
    add("--passes", type=int, default=2, help="of reconstruction in one-shot pruning")
    add("--threads", type=int, default=1, help="threads of ONNX Runtime")
    add("--docs", type=Path, default=None, help="write table and picture into this directory (default: --out)")
    add_common_options(parser)
    return parser


def _lines(case: "FrontierCase") -> Lines:
    texts = [(name[:12], 12) for name in case.measured]
    rates = [(f"prefill {case.prefill}", 15), *((f"decode B={batch}", 15) for batch in case.batches)]
    return Lines(("model", -20), ("form", -16), *texts, *rates, ("resident", 9), ("file", 9))


def _cells(case: "FrontierCase", row: "FrontierRow") -> list[str]:
    rates = [f"{rate:.1f} ({row.ratios[name]:.2f}x)" for name, rate in row.rates.items()]
    sizes = [f"{count / 1e6:,.0f} MB" for count in (row.resident_bytes, row.file_bytes)]
    return [row.model, row.variant, *(f"{row.perplexity[name]:.2f}" for name in case.measured), *rates, *sizes]
