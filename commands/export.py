"""`hebbline export MODEL --out DIR`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..artifacts import KV_FORMATS, InputError, KvFormat
from ..console import Parser, console, print_json, stages

if TYPE_CHECKING:
    from ..export import ExportReport
    from ..export.layouts import Objective
    from ..export.passes.permutation import Structure
    from ..export.tensorrt import EngineReport


def main(arguments: list[str]) -> int:
    """Export a model directory to a sparse ONNX artifact."""
    parser = Parser(prog="hebbline export", description="Turn a model directory into a sparse ONNX artifact.")
    parser.add_argument(
        "model",
        type=Path,
        help="a Hugging Face directory of a known family of models, with or without masks",
    )
    parser.add_argument("--out", type=Path, required=True, help="where to publish the artifact")
    parser.add_argument(
        "--target",
        choices=["onnx", "tensorrt-rtx", "tensorrt"],
        default="onnx",
        help="what to export to: ONNX, or ONNX with an engine; tensorrt-rtx builds without a GPU",
    )
    parser.add_argument(
        "--precision", choices=["float16", "bfloat16"], default="float16", help="of an engine's weights and cache"
    )
    parser.add_argument(
        "--plugins",
        action="store_true",
        help="of target tensorrt: layers whose sparse kernel is predicted to be faster than dense become plugins",
    )
    parser.add_argument(
        "--engines-from",
        type=Path,
        default=None,
        help="an artifact of the same model whose engines are copied into the new one",
    )
    parser.add_argument(
        "--timing-cache", type=Path, default=None, help="what building an engine on this GPU keeps for the next time"
    )
    parser.add_argument(
        "--values",
        choices=["float32", "bfloat16", "int8", "int4"],
        default="float32",
        help="how weights are stored: float32 is exact, of the others the report states the cost in perplexity",
    )
    parser.add_argument(
        "--lm-head",
        choices=["float32", "int8"],
        default="float32",
        help="int8: faster, with the best logits computed again exactly",
    )
    parser.add_argument(
        "--kv-cache",
        choices=KV_FORMATS,
        default="float32",
        help="how keys and values are kept: float32 is exact; bfloat16 and int8 take less memory and time",
    )
    parser.add_argument(
        "--compact", action="store_true", help="first remove neurons that have no effect; the function stays as it is"
    )
    parser.add_argument(
        "--permute",
        choices=["2:4", "block"],
        help="first reorder hidden dimensions so that more links are 2:4 or share blocks; the function stays as it is",
    )
    parser.add_argument(
        "--objective",
        choices=["latency", "throughput", "size"],
        default="latency",
        help="what layouts are chosen for: one token at a time, many, or the fewest bytes, with exponents in a code",
    )
    parser.add_argument(
        "--for-isa",
        help="choose and predict for another machine's instruction set (scalar, avx2, avx2-vnni, avx512, amx), not "
        "this one's",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    if options.plugins and options.target != "tensorrt":
        raise InputError(f"--plugins is for --target tensorrt; {options.target} has none")
    if options.engines_from is not None and options.target == "onnx":
        raise InputError("--engines-from is for targets with an engine, such as --target tensorrt")
    if options.target == "onnx":
        report = export_to_directory(
            options.model,
            options.out,
            values=options["values"],
            lm_head=options.lm_head,
            kv_cache=options.kv_cache,
            compact=options.compact,
            permute=options.permute,
            for_isa=options.for_isa,
            objective=options.objective,
        )
    else:
        report = _export_with_engine(options)
    if options.json:
        print_json(report.to_dict())
    return 0


def _export_with_engine(options: Any) -> "ExportReport":
    """Export with an engine, publish the artifact, and say what was done."""
    from ..export.passes import PassOptions
    from ..export.tensorrt import EngineOptions, export_engines

    if options.kv_cache != "float32":
        raise InputError(f"--kv-cache {options.kv_cache} is for --target onnx: an engine has caches of its precision")
    engine = EngineOptions(
        options.target,
        options.precision,
        timing_cache=options.timing_cache,
        plugins=options.plugins,
        engines_from=options.engines_from,
    )
    with stages("exporting") as tell:
        report, built = export_engines(
            options.model,
            options.out,
            engine,
            tell,
            values=options["values"],
            lm_head=options.lm_head,
            passes=PassOptions(compact=options.compact, permute=options.permute),
            for_isa=options.for_isa,
            objective=options.objective,
        )
    _say(report)
    _say_engine(built)
    console.print(
        f"the artifact is in [bold]{options.out}[/bold]; {options.out / 'report.html'} and "
        f"{options.out / 'engines.html'} show every layer of the ONNX and of the engine"
    )
    return report


def export_to_directory(
    model: Path,
    out: Path,
    *,
    values: str = "float32",
    lm_head: Literal["float32", "int8"] = "float32",
    kv_cache: KvFormat = "float32",
    compact: bool = False,
    permute: "Structure | None" = None,
    for_isa: str | None = None,
    objective: "Objective" = "latency",
) -> "ExportReport":
    """Export, publish the artifact, and say what was done."""
    from ..export import export_model
    from ..export.passes import PassOptions

    with stages("exporting") as tell:
        report = export_model(
            model,
            out,
            tell,
            values=values,
            lm_head=lm_head,
            kv_cache=kv_cache,
            passes=PassOptions(compact=compact, permute=permute),
            for_isa=for_isa,
            objective=objective,
        )
    _say(report)
    console.print(f"the artifact is in [bold]{out}[/bold]; {out / 'report.html'} shows every layer")
    return report


def _say(report: "ExportReport") -> None:
    """Passes, sizes, parity and quality of the ONNX."""
    for one in report.passes:
        console.print(one.summary)
    console.print(f"{report.masks}; {len(report.layers)} projections hold {report.density:.2%} of their possible links")
    console.print(f"{report.file_bytes / 1e6:.2f} MB of ONNX, against {report.dense_bytes / 1e6:.2f} MB dense")
    console.print(f"parity with torch: {report.parity}")
    if report.speed is not None:
        console.print(f"speed {report.speed.words}")
    if report.forecast is not None:
        console.print(f"speed {report.forecast.words}")
    if report.beside_dense:
        console.print(report.beside_dense, markup=False)
    if report.quality is not None:
        console.print(report.quality.compared("as exported"))


def _say_engine(built: "EngineReport") -> None:
    """Size, forms, parity and quality of the engine."""
    facts, parity = built.engine, built.parity
    console.print(
        f"{facts.file}: {built.engine_bytes / 1e6:.2f} MB for compute capability "
        f"{', '.join(facts.compute_capabilities)}, by {facts.runtime} {facts.version} in {built.build_seconds:.1f} s; "
        f"{sum(layer.two_four for layer in built.layers)} of {len(built.stored)} projections are dense and 2:4 by "
        f"structure, {len(built.stored) - len(built.layers)} are plugins"
    )
    console.print(
        f"parity of its graph with torch: {parity.float32} in float32; within {parity.in_precision:.1e} in "
        f"{facts.precision} (torch in {facts.precision}: {parity.torch_in_precision:.1e})"
    )
    console.print(f"{built.quality.compared(f'by its graph in {facts.precision}')}; the engine was built and not run")
