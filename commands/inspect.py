"""`hebbline inspect PATH`."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from ..artifacts import LanguageModelFacts, LayerFacts, Manifest, read_manifest
from ..artifacts.checkpoints import check_checkpoint
from ..artifacts.json_files import read_json_object
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
    if manifest.kind == "model" and (family := _family(values.path)):
        console.print(f"family {family}")
    _show(manifest)
    console.print(f"every file is as it was published ({len(manifest.files)} files, SHA-256)")
    return 0


def _family(path: Path) -> str:
    """The family of a language model's directory; "" for other models."""
    from ..architectures import FAMILIES, describe_known
    from ..artifacts.checkpoints import read_config

    config = path / "config.json"
    known = read_json_object(config).get("model_type", "") in FAMILIES
    decoder = describe_known(str(config), read_config(path)) if known else None
    return "" if decoder is None else decoder.family


def _show(manifest: Manifest) -> None:
    made = f", made sparse by {manifest.method}" if manifest.method not in (None, "dense") else ""
    console.print(f"kind [bold]{manifest.kind}[/bold], published by hebbline {manifest.hebbline_version}{made}")
    if manifest.language_model is not None:
        console.print(f"language model: {_sizes(manifest.language_model)}")
    console.print(layer_table(manifest.layers))
    files = Table("file", "bytes", "SHA-256")
    for name, facts in manifest.files.items():
        files.add_row(name, f"{facts.size:,}", facts.sha256)
    console.print(files)


def _sizes(facts: LanguageModelFacts) -> str:
    """A language model in words."""
    ends = ", ".join(map(str, facts.eos_token_ids)) or "none"
    return (
        f"{facts.num_layers} layers, {facts.num_kv_heads} key/value heads of size {facts.head_dim}, vocabulary of "
        f"{facts.vocab_size:,}, context of {facts.context_length:,} tokens, keys and values in {facts.kv_cache}; end "
        f"tokens: {ends}"
    )


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
