"""`hebbline demo`: train, export, serve and query a sparse language model on real text."""

import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import CheckError, read_manifest
from ..artifacts.publishing import check_target
from ..console import Parser, console, print_json, progress
from .export import export_to_directory
from .inspect import summary_table
from .train import train_to_directory

if TYPE_CHECKING:
    from ..evaluate import Perplexity
    from ..serve.client import Client
    from ..serve.generation import Chunk
    from ..train.tasks import LanguageModelRecipe

RECIPE = "demo"
WINDOW = 128
PROMPT = "Return a string which is the"
COMPLETION_TOKENS = 60
_SLOTS = 4
_RELATIVE_PERPLEXITY = 1e-5
"""The same log-probabilities, summed from logits that differ in the seventh digit, agree to this."""


def main(arguments: list[str]) -> int:
    """Run every stage, and check at its end that what is served is what was trained."""
    parser = Parser(prog="hebbline demo", description="Train, export, serve and query a sparse model, on real text.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where model and artifact are published")
    parser.add_argument("--recipe", type=str, default=RECIPE, help="a language-model recipe: a file or a shipped name")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON at the end")
    values = parser.parse_args(arguments)
    from ..train.tasks import read_recipe

    recipe, yaml = read_recipe(values.recipe)
    started = time.perf_counter()
    model, artifact = values.out / "model", values.out / "artifact"
    for directory in (model, artifact):
        check_target(directory)
    _train(recipe, yaml, model)
    texts = _validation_texts(recipe)
    figures = {"torch": _perplexity(str(model), texts)}
    _export(model, artifact)
    figures["onnxruntime"] = _perplexity(str(artifact), texts)
    _speed(model, recipe.model.context_length // 2)
    figures["triton"], chunk = _serve(artifact, texts)
    _check(model, figures, chunk)
    _summary(model, artifact, time.perf_counter() - started)
    if values.json:
        perplexities = {name: result.value for name, result in figures.items()}
        print_json({"perplexity": perplexities, "prompt": PROMPT, "token_ids": list(chunk.token_ids)})
    return 0


def _stage(number: int, title: str, explanation: str) -> None:
    console.print()
    console.rule(f"[bold]{number}. {title}", align="left")
    console.print(explanation, style="dim")


def _train(recipe: "LanguageModelRecipe", yaml: str, model: Path) -> None:
    sparsity = recipe.sparsity
    links = f"{sparsity.density:.0%} of its possible links"
    if sparsity.decays:
        links = f"{sparsity.first_density:.0%} of its possible links at first and {sparsity.density:.0%} at the end"
    _stage(
        1,
        "Train",
        "A Llama learns English from Python's own manual and docstrings. Every projection is a sparse graph, with "
        f"{links}: weak links go, and link prediction on the graph itself, without gradients, says which come "
        f"({sparsity.method}).",
    )
    train_to_directory(recipe, yaml, model)
    console.print(summary_table(read_manifest(model).layers))


def _validation_texts(recipe: "LanguageModelRecipe") -> list[str]:
    from ..data import load_documents

    return load_documents(recipe.data.source, recipe.data.validation_share).validation


def _export(model: Path, artifact: Path) -> None:
    _stage(
        2,
        "Export",
        "The links are packed into one ONNX file, weights untouched. It is published only if ONNX Runtime gives the "
        "logits and the greedy tokens of torch.",
    )
    export_to_directory(model, artifact)


def _speed(model: Path, tokens: int) -> None:
    from ..benchmarks.model import ModelCase, run_model
    from ..kernels.isa import kernels_isa

    _stage(
        3,
        "Speed",
        "The same weights as a dense ONNX model, zeros and all, and as the sparse one on hebbline's kernels, in turns, "
        f"on one thread; the kernels use {kernels_isa()}.",
    )
    case = ModelCase(str(model), variants=("sparse float32",), context=tokens, prefill=tokens, batches=(1,))
    with tempfile.TemporaryDirectory(prefix="hebbline-demo-") as directory, console.status("") as status:
        dense, sparse = run_model(case, Path(directory), status.update)
    ratios = list(sparse.ratios.values())
    console.print(
        f"reading a prompt: {dense.prefill:,.0f} tokens/s dense, {sparse.prefill:,.0f} sparse ([bold]{ratios[0]:.2f} "
        f"times as fast[/bold]); generating: {dense.decode[1]:,.0f} dense, {sparse.decode[1]:,.0f} sparse "
        f"([bold]{ratios[1]:.2f} times[/bold])"
    )
    console.print(_verdict(ratios[0], ratios[1], sparse.isa), style="dim")


def _verdict(reading: float, generating: float, isa: str) -> str:
    """What the measured ratios mean, in words."""
    slow = [name for name, ratio in (("reading a prompt", reading), ("generating", generating)) if ratio < 1]
    if slow:
        return (
            f"With kernels on {isa}, sparse does not pay for this model in {' and '.join(slow)}. The server measures "
            "both graphs when it loads the model, and runs the faster"
        )
    return "A model of this size fits the processor's caches; larger ones gain more: hebbline bench model"


def _serve(artifact: Path, texts: list[str]) -> "tuple[Perplexity, Chunk]":
    from ..serve.client import Client
    from ..serve.triton.launch import TritonServer
    from ..serve.triton.process import free_ports
    from ..serve.triton.repository import fill_repository
    from ..serve.triton.settings import Settings

    _stage(
        4,
        "Serve and query",
        "NVIDIA's Triton Inference Server loads the artifact; a greedy completion is streamed from it over gRPC.",
    )
    with tempfile.TemporaryDirectory(prefix="hebbline-demo-") as run:
        repository = Path(run) / "repository"
        fill_repository(artifact, repository, Settings(slots=_SLOTS))
        with TritonServer(repository, Path(run), free_ports()) as server:
            with console.status("starting Triton"):
                server.wait_ready()
            console.print(f"Triton serves the model at grpc://{server.grpc_url}")
            if (choice := server.graph_choice) is not None:
                console.print(str(choice), style="dim")
            with Client(server.grpc_url) as client:
                chunk = _stream(client)
            return _perplexity(f"grpc://{server.grpc_url}", texts, tokenizer=artifact), chunk


def _stream(client: "Client") -> "Chunk":
    """Show a completion as it comes, and its speed; returns all of it."""
    from ..serve.generation import join_chunks
    from ..serve.parameters import SamplingParameters

    whole, arrivals = None, []
    console.print(f"[bold]{PROMPT}[/bold]", end="")
    with closing(client.stream(PROMPT, SamplingParameters(max_tokens=COMPLETION_TOKENS))) as chunks:
        for chunk in chunks:
            arrivals.append(time.perf_counter())
            console.print(chunk.text, end="", markup=False)
            whole = join_chunks(whole, chunk)
    console.print()
    if whole is None or len(arrivals) < 2:
        raise CheckError("the served model ended its completion at once: the recipe trained too little")
    speed = (len(arrivals) - 1) / (arrivals[-1] - arrivals[0])
    console.print(f"{whole.num_output_tokens} tokens at {speed:,.0f} tokens/s", style="dim")
    return whole


def _perplexity(target: str, texts: list[str], tokenizer: Path | None = None) -> "Perplexity":
    from ..evaluate import open_target, perplexity, token_windows

    opened = open_target(target, tokenizer)
    windows = token_windows(opened.tokenizer, texts, opened.eos_token_id, min(WINDOW, opened.context_length))
    with progress() as bar:
        result = perplexity(bar.track(windows, description=f"held-out text through {opened.kind}"), opened.scorer)
    console.print(
        f"validation perplexity through {opened.kind}: [bold]{result.value:.4f}[/bold] ({result.tokens:,} tokens)"
    )
    return result


def _check(model: Path, figures: "dict[str, Perplexity]", chunk: "Chunk") -> None:
    """What was served must be what was trained: the same perplexity everywhere, and torch's own greedy tokens."""
    _stage(5, "Check", "Is what was served what was trained?")
    trained = figures["torch"].value
    for name, result in figures.items():
        if abs(result.value - trained) > _RELATIVE_PERPLEXITY * trained:
            raise CheckError(f"perplexity through {name} is {result.value:.6f}, but {trained:.6f} through torch")
    expected = _torch_completion(model, len(chunk.token_ids))
    if list(chunk.token_ids) != expected:
        raise CheckError(f"the served completion differs from torch's greedy one: {list(chunk.token_ids)}, {expected}")
    console.print(f"perplexity {trained:.4f} through torch, ONNX Runtime and Triton alike")
    console.print(f"all {len(expected)} streamed tokens are those that torch generates greedily from the same weights")


def _torch_completion(model: Path, count: int) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..export.verify import torch_greedy

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    return torch_greedy(network, tokenizer(PROMPT)["input_ids"], count)[0]


def _summary(model: Path, artifact: Path, seconds: float) -> None:
    console.print()
    console.rule(f"[bold]Done in {seconds:.0f} s", align="left")
    console.print(f"model     {model}      transformers' AutoModelForCausalLM loads it as it is")
    console.print(f"artifact  {artifact}   report.html shows every layer; model.onnx runs in any ONNX Runtime")
    console.print("next:")
    console.print(f"  hebbline serve {artifact}", style="bold")
    console.print(f'  hebbline query "{PROMPT}"', style="bold")
