"""Training of tiny models: one thread is faster than two that wait for each other."""

from pathlib import Path

import pytest
import torch
from tiny import make_text

from hebbline.cli import main


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def taught(tmp_path_factory) -> Path:
    """A folder with `recipe.yaml`, and `teacher`: a dense model that was trained by it."""
    folder = tmp_path_factory.mktemp("distill")
    text, recipe = folder / "text.txt", folder / "recipe.yaml"
    text.write_text("\n\n".join(make_text(40)))
    recipe.write_text(f"""
task: language-model
model: {{hidden_size: 32, intermediate_size: 48, layers: 1, heads: 2, kv_heads: 1, context_length: 64, vocab_size: 300}}
data: {{source: {text}, sequence_length: 16, validation_share: 0.2}}
optimization: {{steps: 30, batch_size: 4, warmup_steps: 2, log_every: 1}}
sparsity: {{method: dense}}
""")
    assert main(["train", str(recipe), "--out", str(folder / "teacher")]) == 0
    return folder
