"""Dense language models that a study trains for itself, and what ALPS leaves of them, kept in a folder.

A model that is not there is made; one whose training was cut goes on from its last checkpoint. Workers that want the
same one wait for each other.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..data import load_documents, pack_tokens
from ..data.packages import cache_folder
from ..train.checkpoint import checkpoints
from ..train.prune import prune
from ..train.publish import train_and_publish
from ..train.save import save_model_directory
from ..train.settings import CheckpointConfig, RunSettings
from ..train.tasks import LanguageModelRecipe
from ..train.tasks.language_model import load_pretrained
from ..train.tasks.reading import recipe_digest

_STEPS_A_CHECKPOINT = 300
_CALIBRATION = 256
"""Sequences that ALPS sees."""


def models_folder() -> Path:
    """Where they are kept: in the cache folder, see `data.packages.cache_folder`."""
    return cache_folder() / "studies"


def dense_model(recipe: LanguageModelRecipe, folder: Path) -> Path:
    """The directory of the model that a recipe trains; its name says which recipe."""
    out = folder / f"dense-{recipe_digest(recipe)[:16]}"
    recipe = replace(recipe, checkpoint=CheckpointConfig(every=_STEPS_A_CHECKPOINT))
    with _alone(out):
        if not out.is_dir():
            resume = bool(checkpoints(RunSettings(out).checkpoints))
            train_and_publish(recipe, json.dumps(asdict(recipe)), out, resume=resume)
    return out


def pruned_model(dense: Path, density: float, recipe: LanguageModelRecipe) -> Path:
    """The directory of a dense model pruned by ALPS to a density, calibrated on what its recipe trained it on."""
    out = dense.with_name(f"{dense.name}-alps-{density:g}")
    with _alone(out):
        if not out.is_dir():
            model, tokenizer = load_pretrained(str(dense), "model", recipe.data.sequence_length)
            calibration_BS = _calibration(tokenizer, recipe)
            masks = prune(model.eval(), calibration_BS, method="alps", density=density)
            save_model_directory(out, model, tokenizer, masks, method="alps")
    return out


def _calibration(tokenizer: PreTrainedTokenizerFast, recipe: LanguageModelRecipe) -> Tensor:
    """Sequences of the training text, drawn from all of it, int64 [B, S]."""
    data = recipe.data
    documents = load_documents(data.source, data.validation_share, data.documents)
    ids_BS = pack_tokens(tokenizer, documents.train, data.sequence_length)
    generator = torch.Generator().manual_seed(recipe.optimization.seed)
    return ids_BS[torch.randperm(len(ids_BS), generator=generator)[:_CALIBRATION]]


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold what is made at a path while the block lasts; others wait."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f"{out.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
