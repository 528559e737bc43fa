"""A server runs the graph that is faster on its machine, and says which and why."""

import dataclasses
import json

import numpy as np
import pytest

from hebbline.runtime import fastest
from hebbline.runtime.fastest import GraphTimes, choose, open_fastest, time_runner
from hebbline.runtime.opening import open_onnx
from hebbline.runtime.portable import PortableRunner
from hebbline.runtime.varlen import VarlenRunner
from hebbline.serve.triton.graph_choice import CHOICE_VARIABLE, choice_file, open_chosen, read_choice


def slowed(monkeypatch, runner_class):
    """Let time go by in the calls of one runner's class: 1 ms a token, by a clock that stands still otherwise."""
    now = [0.0]

    def advancing(method):
        def call(self, *arguments):
            now[0] += 1e-3 if isinstance(self, runner_class) else 1e-4
            return method(self, *arguments)

        return call

    for each in (VarlenRunner, PortableRunner):
        monkeypatch.setattr(each, "prefill", advancing(each.prefill))
        monkeypatch.setattr(each, "decode", advancing(each.decode))
    measure = time_runner
    monkeypatch.setattr(fastest, "time_runner", lambda runner: measure(runner, lambda: now[0]))


@pytest.mark.parametrize(
    ("slow", "graph", "chosen"), [(VarlenRunner, "portable", PortableRunner), (PortableRunner, "kernels", VarlenRunner)]
)
def test_the_faster_graph_runs_and_says_so(tiny_artifact, monkeypatch, slow, graph, chosen):
    slowed(monkeypatch, slow)
    runner, choice = open_fastest(tiny_artifact, 2, threads=1)
    assert isinstance(runner, chosen)
    assert choice.graph == graph
    assert "10.00 times as fast" in str(choice) and "measured here, kernels with" in str(choice)
    ids = [5, 6, 7]
    logits = runner.prefill(0, ids, 0, [2]).copy()
    other = open_onnx(tiny_artifact, 1, threads=1)
    np.testing.assert_allclose(logits, other.prefill(0, ids, 0, [2]), atol=1e-4)


def test_near_equals_run_on_the_kernels():
    kernels, portable = GraphTimes(1.05, 0.0105), GraphTimes(1.0, 0.01)
    assert choose(kernels, portable, "avx2").graph == "kernels"
    assert choose(kernels, dataclasses.replace(portable, token=0.005), "avx2").graph == "portable"


def test_times_are_of_a_prompt_and_a_token(tiny_artifact):
    times = time_runner(open_onnx(tiny_artifact, 1, threads=1))
    assert 0 < times.token < times.total
    assert times.total == pytest.approx(times.prompt + fastest.PROMPT_TOKENS * times.token)


def test_what_only_the_kernels_can_is_not_measured(tiny_artifact, monkeypatch):
    monkeypatch.setattr(fastest, "time_runner", lambda runner: pytest.fail("measured"))
    runner, choice = open_fastest(tiny_artifact, 1, threads=1, kv="int8")
    assert isinstance(runner, VarlenRunner) and "int8" in choice.reason
    monkeypatch.setattr(fastest, "available_bytes", lambda: 1000)
    runner, choice = open_fastest(tiny_artifact, 1, threads=1)
    assert isinstance(runner, VarlenRunner) and "possible links" in choice.reason


def test_a_restart_takes_what_was_measured(tiny_artifact, tmp_path, monkeypatch, capfd):
    path = choice_file(tmp_path, "llm")
    monkeypatch.setenv(CHOICE_VARIABLE, str(tmp_path))
    assert read_choice(path) is None
    slowed(monkeypatch, VarlenRunner)
    assert isinstance(open_chosen(tiny_artifact, 1, threads=1), PortableRunner)
    assert read_choice(path).graph == json.loads(path.read_text())["graph"] == "portable"
    assert "hebbline: running model.onnx: sparse does not pay here" in capfd.readouterr().out
    monkeypatch.setattr(fastest, "time_runner", lambda runner: pytest.fail("measured again"))
    assert isinstance(open_chosen(tiny_artifact, 1, threads=1), PortableRunner)
