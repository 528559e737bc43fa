"""`hebbline bench model MODEL`: a whole language model, dense and sparse, side by side."""

import shlex
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import Parser, console
from .bench_output import JsonDocument, Lines, Report, add_common_options, numbers, print_caption, reported, steps

if TYPE_CHECKING:
    from ..benchmarks.budget import Budget
    from ..benchmarks.machine import Machine
    from ..benchmarks.model import ModelCase, ModelRow


def main(arguments: list[str]) -> int:
    """Measure, show each row when it is there, and write the page if one is asked for."""
    from ..benchmarks.budget import Budget
    from ..benchmarks.endings import signals_raise
    from ..benchmarks.machine import describe_machine
    from ..benchmarks.model import ModelCase

    options = _parser(ModelCase("")).parse_args(arguments)
    budget = Budget(options.budget)
    case = ModelCase(
        model=options.model,
        density=options.density,
        variants=tuple(options.variants.split(",")),
        context=options.context,
        prefill=options.prefill,
        batches=numbers("--batches", options.batches, int),
        threads=options.threads,
    )
    machine = describe_machine()
    with signals_raise():
        rows = _measure(case, budget, machine, options.json)
    if options.docs is not None:
        _write(options.docs, machine, "hebbline bench model " + shlex.join(arguments), case, rows)
    return 0


def _measure(case: "ModelCase", budget: "Budget", machine: "Machine", as_json: bool) -> "list[ModelRow]":
    from ..benchmarks.endings import scratch_directory
    from ..benchmarks.model import run_model

    print_caption(machine)
    document = JsonDocument(as_json, {"machine": asdict(machine), "case": asdict(case)}, "rows")
    rows = []
    with (
        reported(Report(_lines(case), document, len(case.forms), budget)) as report,
        scratch_directory() as directory,
        steps(as_lines=True) as step,
        closing(run_model(case, directory, step, budget)) as measured,
    ):
        for row in measured:
            rows.append(row)
            report.add("rows", asdict(row), *_cells(case, row))
    _conclude(rows)
    return rows


def _conclude(rows: "list[ModelRow]") -> None:
    """Say where sparse does not pay on this machine, and what the last column is."""
    from ..benchmarks.variants import VARIANTS

    console.print("many cores: decoding at B = 1, predicted by bytes where memory bounds every variant; not measured")
    for row in rows:
        slow = [f"{measure} ({ratio:.2f})" for measure, ratio in row.ratios.items() if ratio < 1]
        if slow and VARIANTS[row.variant].sparse:
            console.print(f"on {row.isa} {row.variant} does not pay in {', '.join(slow)}", markup=False)


def _write(docs: Path, machine: "Machine", command: str, case: "ModelCase", rows: "list[ModelRow]") -> None:
    from ..benchmarks.performance import model_name, model_section, write_performance

    name = f"bench model {model_name(case, machine.isa)}"
    page = write_performance(docs, name, model_section(machine, command, case, rows))
    console.print(f"written to [bold]{page}[/bold]")


def _parser(default: "ModelCase") -> Parser:
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
    add_common_options(parser)
    return parser


def _lines(case: "ModelCase") -> Lines:
    rates = [(f"prefill {case.prefill}", 17), *((f"decode B={batch}", 17) for batch in case.batches)]
    sizes = (("first token", 11), ("resident", 9), ("file", 9), ("roofline", 8), ("share", 5))
    beside = (("bound by", 9), ("many cores", 10))
    return Lines(("variant", -23), *rates, *sizes, *beside)


def _cells(case: "ModelCase", row: "ModelRow") -> list[str]:
    rates = [row.prefill, *(row.decode[batch] for batch in case.batches)]
    shown = [f"{rate:.1f} ({ratio:.2f}x)" for rate, ratio in zip(rates, row.ratios.values(), strict=True)]
    sizes = [f"{count / 1e6:,.0f} MB" for count in (row.resident_bytes, row.file_bytes)]
    share = "" if row.share is None else f"{row.share:.0%}"
    return [
        row.variant,
        *shown,
        f"{row.first_token_seconds * 1e3:.0f} ms",
        *sizes,
        f"{row.roofline:.1f}",
        share,
        row.bound or "",
        f"{row.many_core_ratio:.2f}x",
    ]
