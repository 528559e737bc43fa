"""All stages by their commands: the demo on a small recipe, then a server and its client as a user runs them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_text
from transformers import AutoModelForCausalLM, AutoTokenizer

from hebbline.cli import main
from hebbline.commands.demo import PROMPT
from hebbline.serve.triton.process import free_ports

HEBBLINE = str(Path(sys.executable).with_name("hebbline"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """`hebbline demo` on a recipe that takes seconds; returns its directory and what it printed."""
    directory = tmp_path_factory.mktemp("demo")
    (directory / "text.txt").write_text("\n\n".join(make_text(300)))
    (directory / "recipe.yaml").write_text(
        f"""
model: {{hidden_size: 64, intermediate_size: 96, layers: 2, heads: 4, kv_heads: 2, context_length: 128,
  vocab_size: 300}}
data: {{source: {directory}/text.txt, validation_share: 0.1, sequence_length: 32}}
optimization: {{steps: 60, batch_size: 8, learning_rate: 1.0e-2, projection_learning_rate: 1.0e-2, warmup_steps: 5}}
sparsity: {{update: {{every: 5, stop: 40}}}}
"""
    )
    command = [HEBBLINE, "demo", "--recipe", str(directory / "recipe.yaml"), "--out", str(directory / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return directory, json.loads(done.stdout), done.stderr


def test_demo_serves_the_tokens_that_torch_generates(demo):
    directory, figures, _ = demo
    model = AutoModelForCausalLM.from_pretrained(directory / "out/model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory / "out/model")
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    count = len(figures["token_ids"])
    generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    assert generated[0, ids.shape[1] :].tolist() == figures["token_ids"]
    assert count > 20


def test_demo_tells_what_happened(demo):
    _, figures, shown = demo
    for words in (
        "1. Train",
        "2. Export",
        "3. Speed",
        "4. Serve and query",
        "5. Check",
        "times as fast",
        "0.3000",
        "tokens/s",
        "report.html",
    ):
        assert words in shown
    values = list(figures["perplexity"].values())
    assert len(values) == 3
    assert max(values) - min(values) < 1e-4 * values[0]
    assert values[0] < 60, "it learned: the vocabulary has 300 tokens"


def test_serve_and_query_as_a_user_runs_them(demo):
    directory, figures, _ = demo
    ports = free_ports()
    command = [HEBBLINE, "serve", str(directory / "out/artifact"), "--json", "--slots", "2"]
    command += ["--grpc-port", str(ports.grpc), "--http-port", str(ports.http), "--metrics-port", str(ports.metrics)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            lines = []
            while not lines or lines[-1] != "}\n":
                lines.append(server.stdout.readline())
                assert lines[-1], server.stderr.read()
            url = json.loads("".join(lines))["grpc_url"]
            query = [HEBBLINE, "query", PROMPT, "--url", url, "--max-tokens", str(len(figures["token_ids"]))]
            shown = subprocess.run(query, capture_output=True, text=True, timeout=60)
            assert shown.returncode == 0, shown.stderr
            tokenizer = AutoTokenizer.from_pretrained(directory / "out/model")
            ids = tokenizer(PROMPT)["input_ids"]
            assert PROMPT + shown.stdout == tokenizer.decode(ids + figures["token_ids"]) + "\n"
            too_long = subprocess.run([*query[:-1], "500"], capture_output=True, text=True, timeout=60)
            assert (too_long.returncode, too_long.stderr.count("\n")) == (2, 1)
            assert "more than the context of 128 tokens" in too_long.stderr
        finally:
            server.send_signal(signal.SIGINT)
            _, said = server.communicate(timeout=30)
    assert server.returncode == 0, said
    assert "container" in said, "it says what serves in production"


def test_eval_is_the_same_through_model_and_artifact(demo, capsys):
    directory, _, _ = demo
    values = []
    for target in ("model", "artifact"):
        arguments = ["eval", str(directory / "out" / target), "--source", str(directory / "text.txt"), "--window", "32"]
        assert main([*arguments, "--validation-share", "0.1", "--json"]) == 0
        values.append(json.loads(capsys.readouterr().out)["value"])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_inspect_verifies_and_lists(demo, capsys):
    directory, _, _ = demo
    assert main(["inspect", str(directory / "out/artifact"), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["kind"] == "onnx"
    assert len(manifest["layers"]) == 14
    assert all(
        layer["links"] == round(0.3 * layer["out_features"] * layer["in_features"]) for layer in manifest["layers"]
    )
    assert main(["inspect", str(directory / "out/model")]) == 0
