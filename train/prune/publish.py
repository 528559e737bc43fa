"""From a pretrained model and a text to a published sparse model directory with its report.

Legend: B sequences, S tokens.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ...artifacts import InputError
from ...artifacts.checkpoints import check_weights_fit
from ...artifacts.model_directory import open_model_directory
from ...artifacts.publish import check_target
from ...evaluate import Perplexity, perplexity
from ...serve.engine.scoring import token_log_probs
from ..data import load_documents, pack_tokens
from ..save import save_model_directory
from .blocks import find_blocks
from .config import PruneConfig
from .layers import LINEAR_TYPES
from .report import PruneReport, TextCost
from .run import Progress, prune_blocks
from .store import open_store

_HELD_OUT = 0.05


@dataclass(frozen=True)
class Texts:
    """What is calibrated and measured on.

    Args:
        calibration: a source of text as recipes name it; see `load_documents`.
        sequences: of the text that are calibrated on, at most.
        sequence_length: tokens each, also of the windows that are measured on.
        measured: sources whose held-out documents perplexity is measured on; where empty, that of `calibration`.
        windows: measured of each source, at most.
        seed: of the choice of sequences.
    """

    calibration: str
    sequences: int = 128
    sequence_length: int = 512
    measured: list[str] = field(default_factory=list)
    windows: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("sequences", 1), ("sequence_length", 2), ("windows", 1)):
            if getattr(self, name) < least:
                raise InputError(f"prune: {name} must be at least {least}, not {getattr(self, name)}")


def prune_directory(
    source: str, texts: Texts, config: PruneConfig, out: Path, progress: Progress, say: Callable[[str], None]
) -> PruneReport:
    """Prune a model and publish the directory with masks and report; a run that was cut goes on where it was.

    Args:
        source: a model directory, or a name on the hub.
        texts: what to calibrate and to measure on.
        config: how to prune.
        out: the directory. Finished blocks are kept in the folder `OUT.run/prune` until it is there.
        progress: told each block.
        say: told what a user should know.

    Raises:
        InputError: of the model, the text, or what `prune_blocks` finds.
    """
    check_target(out)
    model, tokenizer = open_pretrained(source, texts.sequence_length)
    ids_BS = calibration_ids(tokenizer, texts)
    if len(ids_BS) < texts.sequences:
        say(f"the text has only {len(ids_BS)} sequences of {texts.sequence_length} tokens, of {texts.sequences}")
    windows = {name: _windows(tokenizer, name, texts) for name in texts.measured or [texts.calibration]}
    store = open_store(out.with_name(f"{out.name}.run") / "prune", run_digest(model, ids_BS, config))
    if store.finished:
        say(f"going on with a run that was cut: {store.finished} blocks are done")
    before = {name: _perplexity(model, ids) for name, ids in windows.items()}
    pruned = prune_blocks(model, ids_BS, config, store, progress)
    after = {name: _perplexity(model, ids) for name, ids in windows.items()}
    costs = [TextCost(name, found.value, after[name].value, found.tokens) for name, found in before.items()]
    dense = _linear_weights(model) - sum(layer.out_features * layer.in_features for layer in pruned.layers)
    report = PruneReport(source, texts.calibration, len(ids_BS), texts.sequence_length, config, pruned, dense, costs)
    recipe = yaml.safe_dump({"prune": asdict(config) | {"model": source, "texts": asdict(texts)}}, sort_keys=False)
    save_model_directory(out, model, tokenizer, pruned.masks, method=config.method, recipe=recipe, extra=report.files())
    store.remove()
    return report


def open_pretrained(source: str, sequence_length: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in the type that it is stored in, its weights mapped from disk, and its tokenizer.

    Raises:
        InputError: it cannot be loaded, its weights are compressed or quantised or do not fit, or its context is
            shorter than a sequence.
    """
    if (Path(source) / "config.json").is_file():
        open_model_directory(Path(source))
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto", output_loading_info=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise InputError(f"the model '{source}' cannot be loaded: {' '.join(str(error).split())}") from error
    model, found = loaded
    check_weights_fit(source, found)
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and sequence_length > context:
        raise InputError(f"prune: sequence_length {sequence_length} is above the context of '{source}', {context}")
    return model.eval(), tokenizer


def calibration_ids(tokenizer: PreTrainedTokenizerBase, texts: Texts) -> Tensor:
    """Sequences of the calibration text, drawn from all of it, int64 [B, S]; InputError if it is too short."""
    documents = load_documents(texts.calibration, _HELD_OUT)
    ids_BS = pack_tokens(tokenizer, documents.train, texts.sequence_length)
    order = torch.randperm(len(ids_BS), generator=torch.Generator().manual_seed(texts.seed))
    return ids_BS[order[: texts.sequences]]


def run_digest(model: PreTrainedModel, ids_BS: Tensor, config: PruneConfig) -> str:
    """SHA-256 of all that the outcome depends on: weights, text and settings."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    digest.update(ids_BS.numpy().tobytes())
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _windows(tokenizer: PreTrainedTokenizerBase, source: str, texts: Texts) -> Tensor:
    """Evenly spaced windows of the held-out documents of a source, int64 [B, S]."""
    ids_BS = pack_tokens(tokenizer, load_documents(source, _HELD_OUT).validation, texts.sequence_length)
    count = min(texts.windows, len(ids_BS))
    return ids_BS[torch.arange(count) * len(ids_BS) // count]


def _perplexity(model: PreTrainedModel, ids_BS: Tensor) -> Perplexity:
    @torch.inference_mode()
    def score(ids_S: Sequence[int]) -> NDArray[np.float64]:
        logits_SV = model(torch.tensor([list(ids_S)]), use_cache=False).logits[0].float().numpy()
        return token_log_probs(logits_SV[:-1], ids_S[1:])

    return perplexity(ids_BS.tolist(), score)


def _linear_weights(model: PreTrainedModel) -> int:
    """Weights of all linear layers of the decoder blocks."""
    return sum(part.weight.numel() for part in find_blocks(model)[1].modules() if isinstance(part, LINEAR_TYPES))
