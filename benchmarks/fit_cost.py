"""`python -m hebbline.benchmarks.fit_cost`: measure, fit and check the cost model of an instruction set."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..artifacts import HebblineError, InputError
from ..kernels.cost import table_name
from ..kernels.isa import kernels_isa
from .budget import Budget
from .cost.cells import plan_cells
from .cost.check import Verdict, check, check_fit
from .cost.fit import fit
from .cost.ledger import Ledger
from .cost.measure import measure
from .cost.tables import write_table
from .machine import describe_machine

LEDGERS = Path(__file__).resolve().parents[1] / "docs" / "cost"
"""Where the samples that the tables were fitted to are kept, one file an instruction set."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where the model misses its bars, 2 where what is asked for cannot be measured here."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except HebblineError as error:
        print(error, file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    isa = options.isa or kernels_isa()
    table = table_name(isa)
    ledger = Ledger(options.ledger or LEDGERS / f"{table}.jsonl")
    left = 0
    if not options.check:
        cells = plan_cells(_own(isa, table))
        left = measure(ledger, cells, Budget(options.budget), lambda line: print(line, file=sys.stderr))
    if left:
        print(f"--budget {options.budget:g}: the time is over with {left} cells to measure; the same command goes on")
        return 0
    samples = ledger.samples()
    if not samples:
        raise InputError(f"there are no samples of {table}: run without --check on a machine that has it")
    if options.check:
        return _say(check(table, samples), "built into the library")
    fitted = fit(table, samples)
    code = _say(check_fit(fitted, samples), "fitted to the samples")
    if options.write:
        path = write_table(fitted, describe_machine().processor)
        print(f"written to {path}; build the library anew, then --check")
    return code


def _own(isa: str, table: str) -> str:
    """The instruction set alone, of a table that this machine can measure; InputError where its design is another."""
    own = isa
    for ending in ("-amd", "-zen5", "-intel"):
        own = own.removesuffix(ending)
    if table_name(own) != table:
        raise InputError(f"{isa}: this processor is not of that design; --check compares with samples that are there")
    return own


def _say(verdict: Verdict, what: str) -> int:
    print(f"the model {what}: {verdict.summary}")
    for line in verdict.worst:
        print(f"  {line}")
    return 0 if verdict.holds else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hebbline.benchmarks.fit_cost",
        description="Measures forced packings beside dense float32 ONNX Runtime, fits the model, and says how well it "
        "predicts and chooses. Samples are kept as they are measured: run it again to go on.",
    )
    parser.add_argument(
        "--isa",
        default=None,
        help="instruction set; default: the best of this machine. Behind it may stand -amd, -zen5 or -intel",
    )
    parser.add_argument("--ledger", type=Path, default=None, help="file of the samples; default: docs/cost/TABLE.jsonl")
    parser.add_argument("--budget", type=float, default=None, help="begin no measurement after so many seconds")
    parser.add_argument("--write", action="store_true", help="write the table that the library is built from")
    parser.add_argument("--check", action="store_true", help="measure nothing: check the library against the samples")
    return parser


if __name__ == "__main__":
    sys.exit(main())
