"""What can be evaluated: a model directory through torch, an artifact through ONNX Runtime, a server over gRPC."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..artifacts import InputError, read_manifest
from ..artifacts.checkpoints import load_model
from ..artifacts.manifest import MANIFEST_FILE
from ..artifacts.model_directory import open_model_directory
from ..artifacts.tokenizer_files import read_tokenizer
from ..serve.engine.onnxruntime import OnnxRunner
from ..serve.engine.scoring import log_probs, token_log_probs
from .perplexity import Scorer

GRPC_PREFIX = "grpc://"


@dataclass(frozen=True)
class Target:
    """Something to evaluate. `kind` says through what its scores come; `context_length` bounds a window's tokens."""

    kind: str
    tokenizer: Tokenizer
    eos_token_id: int | None
    context_length: int
    scorer: Scorer


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

    from ..architectures import settle_any

    open_model_directory(path)
    if threads:
        torch.set_num_threads(threads)
    model = load_model(AutoModelForCausalLM, path, settle=settle_any).model.eval()

    def score(ids_S: Sequence[int]) -> NDArray[np.float64]:
        with torch.inference_mode():
            logits_SV = model(torch.tensor([list(ids_S)])).logits[0].numpy()
        return token_log_probs(logits_SV[:-1], ids_S[1:])

    return Target("torch", read_tokenizer(path), _eos_token_id(path), model.config.max_position_embeddings, score)


def _artifact(path: Path, threads: int | None) -> Target:
    runner = OnnxRunner.open(path, slots=1, threads=threads)

    def score(ids_S: Sequence[int]) -> NDArray[np.float64]:
        return log_probs(runner, ids_S)

    return Target("onnxruntime", read_tokenizer(path), _eos_token_id(path), runner.context_length, score)


def _served(address: str, tokenizer: Path | None) -> Target:
    from ..serve.client import Client

    if tokenizer is None:
        raise InputError(
            f"to evaluate {GRPC_PREFIX}{address} give --tokenizer: the directory of the model that it serves"
        )
    client = Client(address)
    client.wait_ready(timeout=2)
    context_length = _context_length(tokenizer)
    return Target("triton", read_tokenizer(tokenizer), _eos_token_id(tokenizer), context_length, client.log_probs)


def _eos_token_id(path: Path) -> int | None:
    """The first end token that the directory's manifest, generation_config.json or config.json names."""
    if (path / MANIFEST_FILE).is_file() and (facts := read_manifest(path).language_model) is not None:
        return facts.eos_token_ids[0] if facts.eos_token_ids else None
    for name in ("generation_config.json", "config.json"):
        if (path / name).is_file() and (eos := json.loads((path / name).read_text()).get("eos_token_id")) is not None:
            return eos[0] if isinstance(eos, list) else eos
    return None


def _context_length(path: Path) -> int:
    if (path / MANIFEST_FILE).is_file() and (facts := read_manifest(path).language_model) is not None:
        return facts.context_length
    return int(json.loads((path / "config.json").read_text())["max_position_embeddings"])
