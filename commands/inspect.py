"""`hebbline inspect PATH`."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from ..artifacts import LayerFacts, Manifest, read_manifest
from ..console import Parser, console, print_json


def main(arguments: list[str]) -> int:
    """Verify a published directory and show its layers and files."""
    parser = Parser(prog="hebbline inspect", description="Verify a published directory and show what it holds.")
    parser.add_argument("path", type=Path, help="a model or artifact directory that hebbline published")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    values = parser.parse_args(arguments)
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
        facts = ", ".join(f"{name} {value}" for name, value in asdict(manifest.language_model).items())
        console.print(f"language model: {facts}")
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
