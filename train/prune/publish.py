"""From a pretrained model and a text to a published sparse model directory with its report.

Legend: B sequences, S tokens.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ...architectures import check_layers, decoder_of, describe_known, tie_missing_head
from ...artifacts import InputError
from ...artifacts.checkpoints import check_configuration, check_weights_fit, from_pretrained, load_model, read_config
from ...artifacts.model_directory import open_model_directory
from ...artifacts.publishing import check_target
from ...artifacts.text_cost import TextCost
from ...artifacts.tokenizer_files import check_tokenizer_fits, fast_tokenizer
from ...data import load_documents, pack_tokens
from ...runtime.perplexity import Perplexity, perplexity
from ...runtime.torch_scores import torch_scorer
from ..save import save_model_directory
from .blocks import find_blocks
from .config import PruneConfig
from .layers import LINEAR_TYPES
from .report import PruneReport
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
    windows = {name: measured_windows(tokenizer, name, texts) for name in texts.measured or [texts.calibration]}
    if (share := _share_of_links(model)) < config.density:
        say(
            f"the linear layers of the model have {share:.1%} of their possible links already, and --density "
            f"{config.density:g} keeps more: links that are 0 stay; give a lower one to remove links"
        )
    store = open_store(out.with_name(f"{out.name}.run") / "prune", run_digest(model, ids_BS, config))
    if store.finished:
        say(f"going on with a run that was cut: {store.finished} blocks are done")
    before = {name: store.recall(ids, partial(_perplexity, model)) for name, ids in windows.items()}
    if not all(math.isfinite(found.value) for found in before.values()):
        store.remove()
        raise InputError(f"the model '{source}' gives no finite logits on these texts: it cannot be pruned")
    try:
        pruned = prune_blocks(model, ids_BS, config, store, progress)
    except InputError:
        if not store.finished:
            store.remove()
        raise
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
    if Path(source).is_dir():
        open_model_directory(Path(source))
    config, tokenizer = read_config(source), fast_tokenizer(source)
    decoder = describe_known(str(Path(source) / "config.json" if Path(source).is_dir() else source), config)
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and sequence_length > context:
        raise InputError(f"prune: sequence_length {sequence_length} is above the context of '{source}', {context}")
    if Path(source).is_dir():
        if (tokens := getattr(config, "vocab_size", None)) is not None:
            check_tokenizer_fits(Path(source), tokens)
        if decoder is not None:
            check_layers(decoder, Path(source))
        model = load_model(AutoModelForCausalLM, Path(source), "auto", _with_a_head).model
    else:
        check_configuration(config.to_dict(), source)
        model, found = from_pretrained(AutoModelForCausalLM, source, source, dtype="auto")
        check_weights_fit(source, _with_a_head(model, found))
    return model.eval(), tokenizer


def _with_a_head(model: PreTrainedModel, found: Mapping[str, Iterable[Any]]) -> Mapping[str, Iterable[Any]]:
    decoder = decoder_of(model)
    return found if decoder is None else tie_missing_head(model, found, decoder)


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


def measured_windows(tokenizer: PreTrainedTokenizerBase, source: str, texts: Texts) -> Tensor:
    """Evenly spaced windows of the held-out documents of a source, int64 [B, S]; InputError if it fills none."""
    ids_BS = pack_tokens(tokenizer, load_documents(source, _HELD_OUT).validation, texts.sequence_length)
    count = min(texts.windows, len(ids_BS))
    return ids_BS[torch.arange(count) * len(ids_BS) // count]


def _perplexity(model: PreTrainedModel, ids_BS: Tensor) -> Perplexity:
    return perplexity(ids_BS.tolist(), torch_scorer(model))


def _weights(model: PreTrainedModel) -> list[Tensor]:
    """Those of all linear layers of the decoder blocks."""
    return [part.weight for part in find_blocks(model)[1].modules() if isinstance(part, LINEAR_TYPES)]


def _linear_weights(model: PreTrainedModel) -> int:
    return sum(weight.numel() for weight in _weights(model))


def _share_of_links(model: PreTrainedModel) -> float:
    """Weights that are not 0 over all, of the linear layers of the decoder blocks; 1 where there is none."""
    return sum(int(weight.count_nonzero()) for weight in _weights(model)) / max(1, _linear_weights(model))
