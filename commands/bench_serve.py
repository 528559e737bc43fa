"""`hebbline bench serve ARTIFACT`: a served model under load, and the runner alone and other servers beside it."""

import math
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import Parser, console
from .bench_output import JsonDocument, Lines, Report, add_common_options, numbers, reported, steps

if TYPE_CHECKING:
    from ..benchmarks.serving import ServingRow

_COLUMNS = (
    ("front", -9),
    ("prompts", -7),
    ("streams", 7),
    ("tokens/s", 9),
    ("first p50/p99 ms", 17),
    ("gap p50/p99 ms", 15),
    ("ms a token: triton", 18),
    ("model", 7),
    ("gateway", 7),
    ("peer", 7),
    ("client", 7),
    ("steps", 6),
    ("stack", 6),
    ("runner alone", 12),
    ("over it", 7),
    ("dense runner", 14),
)
_PROCESSES = ("triton", "model", "gateway", "peer", "client")


def main(arguments: list[str]) -> int:
    """Serve the artifact, load it, and show each row when it is there; or send requests that make no sense."""
    options = _parser().parse_args(arguments)
    if options.fuzz:
        from .bench_fuzz import fuzz

        return fuzz(options.artifact, options.fuzz, options.seed)
    from ..benchmarks.budget import Budget
    from ..benchmarks.endings import scratch_directory, signals_raise
    from ..benchmarks.machine import describe_machine
    from ..benchmarks.serving import ServingCase, run_serving

    case = ServingCase(
        artifact=options.artifact,
        streams=numbers("--streams", options.streams, int),
        lengths=numbers("--lengths", options.lengths, int),
        shared=options.shared,
        new_tokens=options.new_tokens,
        requests=options.requests,
        threads=options.threads,
        fronts=tuple(options.fronts.split(",")),
        workloads=tuple(options.workloads.split(",")),
        peer_models=tuple(map(Path, options.peer_model)),
    )
    machine = describe_machine()
    console.print(f"kernels on {machine.isa}; {machine.processor}, {machine.cores} cores", markup=False)
    budget = Budget(options.budget)
    paths = {"artifact": str(case.artifact), "peer_models": [str(path) for path in case.peer_models]}
    head = {"machine": asdict(machine), "case": {**asdict(case), **paths}}
    with (
        signals_raise(),
        reported(Report(Lines(*_COLUMNS), JsonDocument(options.json, head, "rows"), case.rows, budget)) as report,
        scratch_directory() as directory,
        steps(as_lines=True),
        closing(run_serving(case, directory, budget)) as rows,
    ):
        for row in rows:
            report.add("rows", _record(row), *_cells(row))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="hebbline bench serve", description="A served model under load, and the runner alone beside it."
    )
    parser.add_argument("artifact", type=Path, help="a directory that `hebbline export` published")
    parser.add_argument("--streams", type=str, default="1,2,4,8,16,32", help="requests that are open at a time")
    parser.add_argument("--lengths", type=str, default="16,64,256", help="tokens of the prompts, in turn")
    parser.add_argument("--shared", type=int, default=256, help="tokens that the prompts of 'shared' begin with")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of each completion")
    parser.add_argument("--requests", type=int, default=2, help="requests of each stream, one after another")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime")
    parser.add_argument("--fronts", type=str, default="grpc", help="grpc, openai, or both: grpc,openai")
    parser.add_argument("--workloads", type=str, default="mixed,shared", help="mixed, shared, or both")
    parser.add_argument(
        "--peer-model",
        type=str,
        action="append",
        default=[],
        help="also load llama.cpp's server with this GGUF file, or OpenVINO's with this directory; may be repeated",
    )
    parser.add_argument("--fuzz", type=int, default=0, help="instead: send so many requests that make no sense")
    parser.add_argument("--seed", type=int, default=0, help="of --fuzz")
    add_common_options(parser)
    return parser


def _steps(row: "ServingRow") -> list[str]:
    """What the model's steps took, and the stack's share over that; "-" where it is not known."""
    return ["-", "-"] if math.isnan(row.steps_ms) else [f"{row.steps_ms:.2f}", f"{row.stack_share:.0%}"]


def _record(row: "ServingRow") -> dict[str, Any]:
    """The row as JSON has it, which knows no nan: what a peer has not is null."""
    figures = asdict(row) | {"stack_share": row.stack_share, "share_over_runner": row.share_over_runner}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in figures.items()}


def _cells(row: "ServingRow") -> list[str]:
    is_peer = "model" not in row.processor_ms
    processor = [f"{row.processor_ms[name]:.2f}" if name in row.processor_ms else "" for name in _PROCESSES]
    return [
        row.front,
        row.workload,
        str(row.streams),
        f"{row.tokens_per_second:.1f}",
        f"{row.first_p50:.0f}/{row.first_p99:.0f}",
        f"{row.gap_p50:.1f}/{row.gap_p99:.1f}",
        *processor,
        *(["", ""] if is_peer else _steps(row)),
        f"{row.runner_ms:.2f}",
        "" if is_peer else f"{row.share_over_runner:.0%}",
        f"{row.dense_ms:.2f}",
    ]
