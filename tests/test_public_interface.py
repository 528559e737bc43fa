"""What `import hebbline` offers: it loads late, and the README's example runs as it is written."""

import math
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_text
from transformers import AutoModelForCausalLM

import hebbline
from hebbline.export.verify import torch_greedy

README = Path(__file__).parents[1] / "README.md"
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "tritonclient", "grpc", "matplotlib")


@pytest.fixture(scope="module")
def model(tiny_artifact):
    with hebbline.load(tiny_artifact, slots=2, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def dense(tiny_model_directory):
    return AutoModelForCausalLM.from_pretrained(tiny_model_directory, dtype=torch.float32).eval()


def loaded_after(statement):
    """The large packages that a fresh interpreter holds after a statement."""
    program = f"import sys; {statement}; print(*(name for name in {HEAVY} if name in sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    )


def test_nothing_is_loaded_before_it_is_used():
    assert loaded_after("import hebbline; dir(hebbline)") == set()
    assert loaded_after("import hebbline; hebbline.InputError") == set()
    assert "torch" not in loaded_after("import hebbline; hebbline.Client; hebbline.load; hebbline.pack")


def test_every_name_is_there_and_no_function_hides_a_module():
    for name in hebbline.__all__:
        assert getattr(hebbline, name).__name__ == name
        assert not (README.parent / name).exists()
    with pytest.raises(AttributeError, match="no attribute 'thoughts'"):
        hebbline.thoughts  # noqa: B018


def test_the_example_of_the_readme_runs_as_written(tmp_path, monkeypatch, capsys, tiny_model_directory):
    section = README.read_text().split("## From Python")[1].split("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    shutil.copytree(tiny_model_directory, tmp_path / "runs/model")
    (tmp_path / "wiki.test.raw").write_text("\n\n".join(make_text(20)))
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(README), "exec"), {})
    assert float(capsys.readouterr().out.split()[-1]) > 1


def test_generated_tokens_are_torchs(model, dense, tokenizer):
    prompt = make_text(1, seed=3)[0]
    ids = tokenizer.encode(prompt)
    expected, _ = torch_greedy(dense, ids, 12)
    found = model.complete(prompt, max_tokens=12, return_log_probs=True)
    assert list(found.token_ids) == expected and len(found.log_probs) == 12
    assert found.text == model.generate(ids, max_tokens=12) == tokenizer.decode(expected)
    assert "".join(chunk.text for chunk in model.stream(prompt, max_tokens=12)) == found.text


def test_perplexity_is_torchs(model, dense, tokenizer):
    text = " ".join(make_text(8))
    ids = torch.tensor([tokenizer.encode(text)[:64]])
    with torch.no_grad():
        expected = math.exp(float(dense(ids, labels=ids).loss))
    found = model.perplexity(tokenizer.decode(ids[0]), window=64)
    assert found.tokens == 63 and found.value == pytest.approx(expected, rel=1e-5)
    assert np.exp(-model.log_probs(ids[0].tolist()).mean()) == pytest.approx(expected, rel=1e-5)


def test_threads_share_a_model_and_a_closed_stream_frees_its_slot(model):
    alone = model.generate("the quick brown", max_tokens=16)
    for _ in range(4):
        stream = model.stream("the quick brown", max_tokens=100)
        next(stream)
        stream.close()
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(model.generate("the quick brown", max_tokens=16)))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temprature": 1}, "no parameter 'temprature'"),
        ({"max_tokens": 4096}, "more than the context of 128"),
        ({"top_p": 0}, "top_p must be above 0"),
    ],
)
def test_wrong_requests_are_refused_by_name(model, options, said):
    with pytest.raises(hebbline.InputError, match=said):
        model.generate("the quick", **options)


def test_a_directory_that_is_no_artifact_is_refused(tmp_path, tiny_model_directory):
    for path in (tmp_path, tiny_model_directory):
        with pytest.raises(hebbline.InputError):
            hebbline.load(path)
