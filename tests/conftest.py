"""Small real things that many tests share: a sparse Llama with its tokenizer, and its exported artifact."""

import os
from pathlib import Path

import pytest
import torch

# Before transformers is imported: nothing here may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before triton is imported, which transformers does: its kernels run in the interpreter, on the CPU.
os.environ["TRITON_INTERPRET"] = "1"

from tiny import make_llama, make_text
from transformers import PreTrainedTokenizerFast

from hebbline.data import train_tokenizer
from hebbline.export import export_model
from hebbline.train import Sparsifier, SparsityConfig
from hebbline.train.save import save_model_directory

LONGEST_FIRST = ("tests/kernels/test_aarch64", "tests/export/test_export_memory", "tests/kernels/test_sanitized")
"""So that no process is left alone with one of them at the end."""
LATE = ("tests/wheels/", "tests/train/")
"""Wheels wait for the folder that the first of these builds in; what comes then are files of middling length."""


def pytest_collection_modifyitems(items):
    """Begin with the files that take the longest, and leave the others as they are, but for the late ones."""

    def place(item):
        longest = next((place for place, name in enumerate(LONGEST_FIRST) if name in item.nodeid), len(LONGEST_FIRST))
        late = next((place for place, name in enumerate(LATE, start=1) if item.nodeid.startswith(name)), 0)
        return longest + late

    items.sort(key=place)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(make_text(50), 320)


@pytest.fixture(scope="session")
def tiny_model_directory(tmp_path_factory, tokenizer) -> Path:
    """A Llama with sparse projections at 30%, random weights, and active zeros, published with masks and tokenizer."""
    model = make_llama(len(tokenizer))
    sparsifier = Sparsifier(model, SparsityConfig(method="static", density=0.3))
    for name, mask in sparsifier.masks.items():
        weight = model.get_parameter(f"{name}.weight").data
        rows, columns = torch.nonzero(mask, as_tuple=True)
        weight[rows[:3], columns[:3]] = 0.0
    out = tmp_path_factory.mktemp("model") / "tiny"
    save_model_directory(out, model, tokenizer, sparsifier.masks, method="static")
    return out


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory, tiny_model_directory) -> Path:
    """`tiny_model_directory`, exported."""
    out = tmp_path_factory.mktemp("artifact") / "tiny"
    export_model(tiny_model_directory, out)
    return out
