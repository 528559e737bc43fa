"""`hebbline export MODEL --out DIR`."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..console import Parser, console, print_json

if TYPE_CHECKING:
    from ..export import ExportReport
    from ..export.passes.permute import Objective


def main(arguments: list[str]) -> int:
    """Export a model directory to a sparse ONNX artifact."""
    parser = Parser(prog="hebbline export", description="Turn a model directory into a sparse ONNX artifact.")
    parser.add_argument("model", type=Path, help="a Hugging Face Llama directory, with or without masks")
    parser.add_argument("--out", type=Path, required=True, help="where to publish the artifact")
    parser.add_argument("--target", choices=["onnx"], default="onnx", help="what to export to")
    parser.add_argument(
        "--compact", action="store_true", help="first remove neurons that have no effect; the function stays as it is"
    )
    parser.add_argument(
        "--permute",
        choices=["2:4", "block"],
        help="first reorder hidden dimensions so that more links are 2:4 or share blocks; the function stays as it is",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    values = parser.parse_args(arguments)
    report = export_to_directory(values.model, values.out, compact=values.compact, permute=values.permute)
    if values.json:
        print_json(report.to_dict())
    return 0


def export_to_directory(
    model: Path, out: Path, *, compact: bool = False, permute: "Objective | None" = None
) -> "ExportReport":
    """Export, publish the artifact, and say what was done."""
    from ..export import export_model
    from ..export.passes import PassOptions

    with console.status("exporting") as status:
        report = export_model(
            model, out, lambda stage: status.update(stage), passes=PassOptions(compact=compact, permute=permute)
        )
    for one in report.passes:
        console.print(one.summary)
    parity = report.parity
    largest = max(parity.full_forward, parity.chunked, parity.ragged_batch)
    console.print(f"{report.masks}; {len(report.layers)} projections hold {report.density:.2%} of their possible links")
    console.print(f"{report.file_bytes / 1e6:.2f} MB of ONNX, against {report.dense_bytes / 1e6:.2f} MB dense")
    console.print(
        f"parity with torch: logits within {largest:.1e} (allowed {parity.logit_tolerance:.1e}), "
        f"{parity.greedy_tokens} of {parity.greedy_tokens} greedy tokens identical"
    )
    console.print(f"the artifact is in [bold]{out}[/bold]; {out / 'report.html'} shows every layer")
    return report
