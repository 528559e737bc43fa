"""The memory and the time that an export takes: `python -m hebbline.benchmarks.export_size --size 1.2b`.

A model of random bfloat16 weights, of which it keeps 30%, is written a layer at a time, and exported by the command
line in a process of its own. The memory is what that process and its children have resident, sampled 20 times a second;
files that are mapped count. The folder is removed at the end; where a run was cut off, the next one finds its layers
there.
"""

import contextlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from ..artifacts import CheckError, HebblineError
from ..artifacts.publishing import write_atomically
from ..console import Parser, console, fail, print_json
from ..data import train_tokenizer
from ..data.documents import PYTHON_SOURCE, load_documents
from .endings import signals_raise
from .machine import describe_machine

DENSITY = 0.3
_SAMPLES_A_SECOND = 20
_TOKENIZER_DOCUMENTS = 200
_TOKENIZER_SIZE = 4096


@dataclass(frozen=True)
class Size:
    """The sizes of a Llama, and the memory that its export is allowed, in bytes."""

    hidden: int
    neurons: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    most_bytes: int

    def config(self) -> LlamaConfig:
        """The configuration, with a context of 2,048 tokens."""
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.neurons,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=None,
            dtype="bfloat16",
            architectures=["LlamaForCausalLM"],
        )


SIZES = {
    "tiny": Size(64, 128, 2, 4, 2, 4096, True, 2_000_000_000),
    "1.2b": Size(2048, 8192, 16, 32, 8, 128256, True, 4_500_000_000),
    "7b": Size(4096, 11008, 32, 32, 32, 32000, False, 16_000_000_000),
}
"""The shapes of Llama 3.2 1B and Llama 2 7B; "tiny" tries the benchmark itself."""


def main() -> int:
    """Run the benchmark; errors are one line."""
    try:
        return _run()
    except HebblineError as error:
        return fail(str(error), error.exit_code)


def _run() -> int:
    """Write a model, export it, and print the peak of memory and the time as JSON."""
    parser = Parser(prog="python -m hebbline.benchmarks.export_size", description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="1.2b", help="parameters of the model")
    parser.add_argument("--values", default="float32", help="of the packed weights, as `hebbline export` takes it")
    parser.add_argument("--work", type=Path, default=None, help="the folder for the files; by default a temporary one")
    options = parser.parse_args()
    size = SIZES[options.size]
    values: str = options["values"]
    work: Path = options.work or Path(tempfile.gettempdir()) / f"hebbline-export-{options.size}"
    work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    parameters = write_model(size, work / "model")
    console.print(f"{parameters / 1e9:.2f} billion parameters, written in {time.monotonic() - began:.0f} s")
    found = measure_export(work / "model", work / "artifact", values)
    shutil.rmtree(work)
    report = {"size": options.size, "parameters": parameters, "density": DENSITY, "values": values, **found}
    print_json(report | {"most_bytes": size.most_bytes, "machine": asdict(describe_machine())})
    if found["peak_bytes"] > size.most_bytes:
        raise CheckError(
            f"the export took {found['peak_bytes'] / 1e9:.2f} GB, and is allowed {size.most_bytes / 1e9:.1f} GB"
        )
    return 0


def write_model(size: Size, directory: Path) -> int:
    """A model directory, a shard a layer, of which those that are there are kept. Returns the number of parameters."""
    directory.mkdir(exist_ok=True)
    config = size.config()
    names: dict[str, str] = {}
    parameters = 0
    for place, shapes in enumerate(_shards(config)):
        shard = directory / f"model-{place:05}.safetensors"
        names |= dict.fromkeys(shapes, shard.name)
        parameters += sum(prod(shape) for shape in shapes.values())
        if not shard.is_file():
            save_file(_tensors(shapes, place), shard.with_suffix(".part"), {"format": "pt"})
            shard.with_suffix(".part").replace(shard)
    config.save_pretrained(directory)
    texts = load_documents(PYTHON_SOURCE, 0.05).train[:_TOKENIZER_DOCUMENTS]
    train_tokenizer(texts, _TOKENIZER_SIZE).save_pretrained(directory)
    write_atomically(directory / "model.safetensors.index.json", json.dumps({"weight_map": names}))
    return parameters


def _shards(config: LlamaConfig) -> Iterator[dict[str, tuple[int, ...]]]:
    """The shapes of what lies outside layers, then of each layer."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    layers = [f"model.layers.{layer}." for layer in range(config.num_hidden_layers)]
    yield {name: shape for name, shape in shapes.items() if not name.startswith("model.layers.")}
    for prefix in layers:
        yield {name: shape for name, shape in shapes.items() if name.startswith(prefix)}


def _tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Random bfloat16 weights that keep the variance of what goes through them; of projections, `DENSITY` is left."""
    random = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            made[name] = torch.ones(shape, dtype=torch.bfloat16)
            continue
        weight = torch.randn(shape, generator=random)
        if ".layers." in name:
            weight *= (torch.rand(shape, generator=random) < DENSITY) / math.sqrt(DENSITY)
        made[name] = (weight / math.sqrt(shape[1])).bfloat16()
    return made


def measure_export(model: Path, out: Path, values: str) -> dict[str, Any]:
    """Export in a process of its own, which does not outlive this one.

    Returns its peak of memory in bytes, seconds, and what its report says.

    Raises:
        CheckError: the export failed.
    """
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "hebbline",
        "export",
        model,
        "--out",
        out,
        "--values",
        values,
        "--json",
    ]
    began, peak = time.monotonic(), 0
    with (
        signals_raise(),
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        ThreadPoolExecutor(1) as reader,
    ):
        assert process.stdout is not None
        said = reader.submit(process.stdout.read)
        try:
            while process.poll() is None:
                peak = max(peak, _resident(process.pid))
                time.sleep(1 / _SAMPLES_A_SECOND)
        finally:
            process.terminate()  # where it runs still, a signal has cut the benchmark short
    if process.returncode != 0:
        raise CheckError(f"the export of {model} failed with exit code {process.returncode}")
    report = json.loads(said.result())
    return {
        "peak_bytes": peak,
        "seconds": round(time.monotonic() - began, 1),
        "artifact_bytes": report["file_bytes"],
        "parity": report["parity"],
        "quality": report["quality"],
    }


def _resident(pid: int) -> int:
    """Bytes that a process and all that it has started have resident."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


if __name__ == "__main__":
    sys.exit(main())
