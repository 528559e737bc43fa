"""`hebbline pack FOREIGN.onnx --out DIR`."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from ..console import Parser, console, print_json

if TYPE_CHECKING:
    from ..export.foreign import PackReport


def main(arguments: list[str]) -> int:
    """Pack the zeros in the linear layers of any ONNX file."""
    from ..export.foreign.options import OBJECTIVES, VALUES

    parser = Parser(prog="hebbline pack", description="Pack the zeros in the linear layers of any ONNX file.")
    parser.add_argument("model", type=Path, help="an ONNX file, opset 7 or newer; it is never changed")
    parser.add_argument("--out", type=Path, required=True, help="where to publish the packed model and its report")
    parser.add_argument(
        "--values",
        dest="value_type",
        choices=VALUES,
        default="float32",
        help="how weights are stored; float32 is exact",
    )
    parser.add_argument("--objective", choices=OBJECTIVES, default="latency", help="what layouts are chosen for")
    parser.add_argument("--min-speedup", type=float, default=0.0, help="leave layers that would gain less than this")
    parser.add_argument("--autotune", action="store_true", help="choose by times measured here, not by prediction")
    parser.add_argument(
        "--calibration",
        type=Path,
        help="an .npz file of the model's inputs: int8 and int4 then round the activations of a layer by one scale",
    )
    parser.add_argument(
        "--for-isa",
        help="predict for another machine's instruction set (scalar, avx2, avx2-vnni, avx512, amx), not this one's",
    )
    parser.add_argument("--no-measure", action="store_true", help="do not time the whole model before and after")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    given = parser.parse_args(arguments)

    from ..export import pack

    with console.status("packing") as status:
        report = pack(
            given.model,
            given.out,
            values=given.value_type,
            min_speedup=given.min_speedup,
            autotune=given.autotune,
            objective=given.objective,
            calibration=given.calibration,
            for_isa=given.for_isa,
            measure=not given.no_measure,
            progress=lambda stage: status.update(stage),
        )
    _show(report, given.out)
    if given.json:
        print_json(report.to_dict())
    return 0


def _show(report: "PackReport", out: Path) -> None:
    from ..export.foreign.report import densities, grouped, speed, summary

    table = Table("layer", "shape", "density", "layout", "reason")
    for group in grouped(report.layers):
        layer, more = group[0], len(group) - 1
        name = f"{layer.name} and {more} more {layer.op_type}" if more else layer.name
        shape = "x".join(map(str, layer.shape))
        # Names come from the file, and could hold the markup of the terminal library.
        table.add_row(escape(name), shape, densities(group), layer.layout, escape(layer.explained))
    console.print(table)
    for note in (*report.notes, report.end_to_end.note):
        console.print(escape(note))
    result = report.end_to_end
    if result.difference is not None:
        allowed = "" if result.allowed is None else f" (allowed {result.allowed:.1e})"
        with_library = (
            "" if result.library_difference is None else f", with the library {result.library_difference:.1e}"
        )
        console.print(
            f"packed against original in ONNX Runtime: within {result.difference:.1e}{allowed}{with_library}, over "
            f"{result.outputs:,} numbers"
        )
    console.print(summary(report))
    console.print(f"[bold]{escape(report.speed.words)}[/bold]")
    if (words := speed(report)) is not None:
        console.print(f"layer by layer, {words}", style="dim")
    console.print(f"the model is in [bold]{out}[/bold]; {out / 'report.html'} shows every layer")
