"""`hebbline inspect PATH`."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from ..artifacts import LayerFacts, Manifest, read_manifest
from ..artifacts.checkpoints import check_checkpoint
from ..artifacts.manifest import MANIFEST_FILE
from ..console import Parser, console, print_json


def main(arguments: list[str]) -> int:
    """Verify a published directory and show its layers and files."""
    parser = Parser(prog="hebbline inspect", description="Verify a published directory and show what it holds.")
    parser.add_argument("path", type=Path, help="a model or artifact directory that hebbline published")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    values = parser.parse_args(arguments)
    if (values.path / "config.json").is_file() and not (values.path / MANIFEST_FILE).is_file():
        check_checkpoint(values.path)  # names the tool that wrote it
    manifest = read_manifest(values.path)
    if values.json:
        print_json(asdict(manifest))
        return 0
    _show(manifest)
    console.print(f"every file is as it was published ({len(manifest.files)} files, SHA-256)")
    return 0


def _show(manifest: Manifest) -> None:
    console.print(f"kind [bold]{manifest.kind}[/bold], hebbline {manifest.hebbline_version}, method {manifest.method}")
    if manifest.language_model is not None:
        sizes = ", ".join(f"{name} {value}" for name, value in asdict(manifest.language_model).items())
        console.print(f"language model: {sizes}")
    console.print(layer_table(manifest.layers))
    files = Table("file", "bytes", "SHA-256")
    for name, facts in manifest.files.items():
        files.add_row(name, f"{facts.size:,}", facts.sha256)
    console.print(files)


def layer_table(layers: Iterable[LayerFacts]) -> Table:
    """Shape, links, density and layout of each layer, and their sum."""
    table = Table("layer", "shape", "links", "density", "layout")
    links = possible = 0
    for layer in layers:
        links, possible = links + layer.links, possible + layer.out_features * layer.in_features
        shape = f"{layer.out_features}x{layer.in_features}"
        table.add_row(layer.name, shape, f"{layer.links:,}", f"{layer.density:.4f}", layer.layout or "")
    table.add_section()
    table.add_row("all", "", f"{links:,}", f"{links / max(1, possible):.4f}", "")
    return table


def summary_table(layers: Sequence[LayerFacts]) -> Table:
    """The same with a row for all layers that differ only in the numbers of their names."""
    alike: dict[str, list[LayerFacts]] = defaultdict(list)
    for layer in layers:
        alike[re.sub(r"\d+", "*", layer.name)].append(layer)
    table = Table("layers", "count", "shape", "links each", "density")
    for name, group in alike.items():
        links = sorted({layer.links for layer in group})
        densities = sorted({f"{layer.density:.4f}" for layer in group})
        shape = f"{group[0].out_features}x{group[0].in_features}"
        table.add_row(name, str(len(group)), shape, _range([f"{n:,}" for n in links]), _range(densities))
    return table


def _range(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"
