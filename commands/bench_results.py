"""`hebbline bench results STUDY`: makes the runs that a table lacks, and writes the table."""

import shlex
from pathlib import Path

from ..artifacts import InputError
from ..console import Parser, console, print_json


def main(arguments: list[str]) -> int:
    """Make runs, write the page."""
    options = _parser().parse_args(arguments)
    if options.minutes is not None and options.minutes < 0:
        raise InputError(f"--minutes {options.minutes:g} is below 0")
    # torch is loaded for what is run, not for --help.
    from ..studies.catalogue import find_study
    from ..studies.ledger import Ledger
    from ..studies.page import write_study
    from ..studies.runner import count_made, count_runs, work

    study = find_study(options.study)
    ledger = Ledger(options.docs / "results" / f"{study.name}.jsonl", study)
    total = count_runs(study)
    work(ledger, lambda made, run: console.print(f"{made} of {total} runs made; now {run}"), options.minutes)
    outcomes = ledger.outcomes()
    made = count_made(study, outcomes)
    command = "hebbline bench results " + shlex.join([options.study])
    page = write_study(options.docs, study, outcomes, command)
    console.print(f"{made} of {total} runs made; written to [bold]{page}[/bold]")
    if options.json:
        print_json({"study": study.name, "made": made, "runs": total})
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="hebbline bench results",
        description="Methods compared on equal terms. Runs are kept in DOCS/results as they end: stop and start at "
        "will, and start several for as many cores; each run takes one.",
    )
    parser.add_argument(
        "study",
        type=str,
        help="image-mnist, image-fashion-mnist, image-cifar-10, image-mnist-paper, image-fashion-mnist-paper, "
        "language, language-long, language-paper, language-paper-bfloat16, pretrained, translation, translation-long",
    )
    parser.add_argument(
        "--minutes", type=float, default=None, help="begin no run after so many; 0 only writes the page"
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="directory of the page and the runs")
    parser.add_argument("--json", action="store_true", help="print how many runs are made as JSON")
    return parser
