"""What can be evaluated: a model directory through torch, an artifact through ONNX Runtime, a server over gRPC."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..artifacts import InputError, read_manifest
from ..artifacts.checkpoints import load_model, plain_config
from ..artifacts.json_files import read_json_object
from ..artifacts.manifest import MANIFEST_FILE
from ..artifacts.model_directory import end_tokens, open_model_directory
from ..artifacts.tokenizer_files import check_tokenizer_fits, read_tokenizer
from ..runtime.opening import open_onnx
from ..runtime.perplexity import Scorer
from ..runtime.runner import Runner
from ..runtime.scoring import log_probs
from ..runtime.torch_scores import torch_generator, torch_scorer

GRPC_PREFIX = "grpc://"
_SCORED, _GENERATED = 0, 1
"""The slots of a runner: a text may be scored while another is generated."""

GreedyGenerator = Callable[[Sequence[int]], Iterator[int]]
"""From S token ids to those that follow, the most probable each time, until the context is full."""


@dataclass(frozen=True)
class Target:
    """Something to evaluate. `kind` says through what its scores come; `context_length` bounds a window's tokens."""

    kind: str
    tokenizer: Tokenizer
    eos_token_id: int | None
    context_length: int
    scorer: Scorer
    generate: GreedyGenerator


def open_target(target: str, tokenizer: Path | None = None, threads: int | None = None) -> Target:
    """Open a model directory, an artifact directory, or grpc://HOST:PORT.

    Args:
        target: the directory or URL.
        tokenizer: for a URL, the model or artifact directory whose tokenizer the served model uses.
        threads: of the runtime; None takes all cores.

    Raises:
        InputError: there is no such target, it is damaged or of an unsupported kind, or a URL comes without a
        tokenizer.
    """
    if target.startswith(GRPC_PREFIX):
        return _served(target.removeprefix(GRPC_PREFIX), tokenizer)
    path = Path(target)
    if (path / MANIFEST_FILE).is_file() and read_manifest(path).kind == "onnx":
        return _artifact(path, threads)
    return torch_target(path, threads)


def torch_target(path: Path, threads: int | None = None) -> Target:
    """A model directory, through transformers and torch in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from ..architectures import check_layers, describe_known, settle_any

    open_model_directory(path)
    if threads:
        torch.set_num_threads(threads)
    config = plain_config(path)
    context = _named_context(path, getattr(config, "max_position_embeddings", None))
    check_tokenizer_fits(path, config.vocab_size)
    if (decoder := describe_known(str(path / "config.json"), config)) is not None:
        check_layers(decoder, path)
    model = load_model(AutoModelForCausalLM, path, settle=settle_any).model.eval()
    scorer, generate = torch_scorer(model), torch_generator(model, context)
    return Target("torch", read_tokenizer(path), _eos_token_id(path), context, scorer, generate)


def _artifact(path: Path, threads: int | None) -> Target:
    runner = open_onnx(path, slots=2, threads=threads)

    def score(ids_S: Sequence[int]) -> NDArray[np.float64]:
        return log_probs(runner, ids_S, slot=_SCORED)

    def generate(ids_S: Sequence[int]) -> Iterator[int]:
        return _generate(runner, ids_S)

    return Target("onnxruntime", read_tokenizer(path), _eos_token_id(path), runner.context_length, score, generate)


def _generate(runner: Runner, ids_S: Sequence[int]) -> Iterator[int]:
    logits_NV = runner.prefill(_GENERATED, ids_S, 0, [len(ids_S) - 1])
    for past in range(len(ids_S), runner.context_length):
        token = int(logits_NV[0].argmax())
        yield token
        logits_NV = runner.decode(_GENERATED, [token], [past])


def _served(address: str, tokenizer: Path | None) -> Target:
    from ..serve.client import Client
    from ..serve.parameters import SamplingParameters

    if tokenizer is None:
        raise InputError(
            f"to evaluate {GRPC_PREFIX}{address} give --tokenizer: the directory of the model that it serves"
        )
    client = Client(address)
    client.wait_ready(timeout=2)
    context_length, eos_token_id = _context_length(tokenizer), _eos_token_id(tokenizer)

    def generate(ids_S: Sequence[int]) -> Iterator[int]:
        for chunk in client.stream(list(ids_S), SamplingParameters(ignore_eos=True)):
            yield from chunk.token_ids

    return Target("triton", read_tokenizer(tokenizer), eos_token_id, context_length, client.log_probs, generate)


def _eos_token_id(path: Path) -> int | None:
    """The first end token of a published artifact, else of a model directory."""
    if (path / MANIFEST_FILE).is_file() and (facts := read_manifest(path).language_model) is not None:
        return facts.eos_token_ids[0] if facts.eos_token_ids else None
    of_config = read_json_object(path / "config.json").get("eos_token_id")
    return next(iter(end_tokens(path, of_config)), None)


def _context_length(path: Path) -> int:
    if (path / MANIFEST_FILE).is_file() and (facts := read_manifest(path).language_model) is not None:
        return facts.context_length
    config = read_json_object(path / "config.json")
    # GPT-2 has a name of its own.
    return _named_context(path, config.get("max_position_embeddings") or config.get("n_positions"))


def _named_context(path: Path, context: object) -> int:
    if not isinstance(context, int):
        raise InputError(f"{path / 'config.json'} names no context: windows of text need max_position_embeddings")
    return context
