"""Several models on one server: each answers for itself, and they come and go while others serve."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from gateways import call, running_gateway
from tiny import make_llama

from hebbline.artifacts import CheckError, InputError
from hebbline.cli import main
from hebbline.export import export_model
from hebbline.serve.client import Client
from hebbline.serve.local import load
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.triton.launch import TritonServer
from hebbline.serve.triton.process import free_ports
from hebbline.serve.triton.repository import add_model, fill_repository, further_models
from hebbline.serve.triton.settings import Settings
from hebbline.serve.triton.wanted import parse_further, read_list, read_wanted, write_wanted
from hebbline.serve.triton.watch import model_processes
from hebbline.train.save import save_model_directory

PROMPT = "the quick brown fox"
STUCK_SECONDS = 10.0
"""Of `hebbline.serve.triton.errand`, which only Triton's own process can import."""
TEN = SamplingParameters(max_tokens=10)


@pytest.fixture(scope="module")
def events():
    return []


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return tmp_path_factory.mktemp("several") / "repository"


@pytest.fixture(scope="module")
def other_artifact(tmp_path_factory, tokenizer):
    """Another model than the one that is served as `llm`."""
    model = make_llama(len(tokenizer), seed=5)
    directory = tmp_path_factory.mktemp("other")
    save_model_directory(directory / "model", model, tokenizer, {}, method="static")
    export_model(directory / "model", directory / "artifact")
    return directory / "artifact"


@pytest.fixture(scope="module")
def several(repository, long_artifact, other_artifact, events):
    """A server with the model `llm`, and `tiny`, which says other things."""
    fill_repository(long_artifact, repository, Settings(slots=2, threads=1), further={"tiny": other_artifact})
    with TritonServer(repository, repository.parent, free_ports(), drain_seconds=1, on_event=events.append) as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def gateway(several, repository, long_artifact):
    with running_gateway(
        long_artifact, several, model_name="long", further=lambda: further_models(repository)
    ) as running:
        yield running


@pytest.fixture(scope="module")
def alone(long_artifact, other_artifact):
    """What each model says, by itself."""
    said = {}
    for name, artifact in (("llm", long_artifact), ("tiny", other_artifact)):
        with load(artifact, slots=1, threads=1) as model:
            said[name] = model.complete(PROMPT, max_tokens=10).text
    return said


def ask(server, name, prompt=PROMPT, sampling=TEN):
    with Client(server.grpc_url, 60, name) as client:
        return client.complete(prompt, sampling).text


def models(*arguments):
    return main(["models", *map(str, arguments)])


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come to it"
        time.sleep(0.02)


def test_each_model_answers_for_itself(several, alone):
    assert alone["llm"] != alone["tiny"]
    assert {name: ask(several, name) for name in alone} == alone


def test_a_model_that_there_is_not_is_named(several):
    with pytest.raises(InputError, match="has no model 'other' loaded"):
        ask(several, "other")


@pytest.mark.parametrize("name", ["model-control", "model-loader"])
def test_the_models_that_load_others_generate_nothing(several, name):
    with pytest.raises((InputError, CheckError), match=r"unexpected inference|expected 1 inputs|not healthy"):
        ask(several, name)


def test_models_come_and_go_while_another_streams(several, repository, other_artifact, alone, events, capsys):
    """The stream goes on while the others do, and says what it says alone."""
    long = SamplingParameters(max_tokens=3000)
    expected = ask(several, "llm", PROMPT, long)
    url = ("--url", several.grpc_url)
    with Client(several.grpc_url, 120) as client, contextlib.closing(client.stream(PROMPT, long)) as chunks:
        text = next(chunks).text
        assert models("load", repository, "--name", "third", "--artifact", other_artifact, *url) == 0
        assert ask(several, "third") == alone["tiny"]
        assert models("unload", repository, "--name", "tiny", *url) == 0
        with pytest.raises(InputError, match="has no model 'tiny' loaded"):
            ask(several, "tiny")
        text += "".join(chunk.text for chunk in chunks)
    assert text == expected
    assert models("load", repository, "--name", "tiny", *url) == 0, "its files are still there"
    assert ask(several, "tiny") == alone["tiny"]
    assert models("unload", repository, "--name", "third", *url) == 0
    capsys.readouterr()
    assert models("list", repository) == 0
    assert capsys.readouterr().out.split() == ["tiny"]
    names = {process.name for process in model_processes(several.pid)}
    wait_for(lambda: {process.name for process in model_processes(several.pid)} == {"llm", "tiny", "model-control"})
    assert {"llm", "tiny", "model-control"} <= names
    time.sleep(1.5)  # longer than the watch takes to miss a process
    assert events == [], "a model that was unloaded has not died"


def test_an_open_request_of_a_model_that_is_unloaded_is_finished(several, repository, long_artifact):
    url = ("--url", several.grpc_url)
    models("load", repository, "--name", "going", "--artifact", long_artifact, *url)
    with Client(several.grpc_url, 60, "going") as client:
        chunks = client.stream(PROMPT, SamplingParameters(max_tokens=1500))
        count = len(next(chunks).token_ids)
        assert models("unload", repository, "--name", "going", *url) == 0
        count += sum(len(chunk.token_ids) for chunk in chunks)
    assert count == 1500


def test_openai_clients_choose_by_name(several, gateway, repository, other_artifact, alone):
    listed = [model["id"] for model in call(gateway, "/v1/models")[1]["data"]]
    assert listed == ["long", "tiny"]
    fields = {"prompt": PROMPT, "max_tokens": 10, "temperature": 0}
    for model, name in (("long", "llm"), ("tiny", "tiny")):
        status, answer, _ = call(gateway, "/v1/completions", {**fields, "model": model})
        assert status == 200 and (answer["model"], answer["choices"][0]["text"]) == (model, alone[name])
    assert call(gateway, "/v1/models/tiny")[1]["max_model_len"] == 128
    models("load", repository, "--name", "later", "--artifact", other_artifact, "--url", several.grpc_url)
    assert call(gateway, "/v1/completions", {**fields, "model": "later"})[1]["choices"][0]["text"] == alone["tiny"]
    models("unload", repository, "--name", "later", "--url", several.grpc_url)
    status, answer, _ = call(gateway, "/v1/completions", {**fields, "model": "later"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert [model["id"] for model in call(gateway, "/v1/models")[1]["data"]] == ["long", "tiny"]


def test_figures_tell_the_models_apart(several, gateway):
    def seen():
        text = call(gateway, "/metrics")[1]
        return all(f'hebbline_generated_tokens_total{{model="{name}"}}' in text for name in ("llm", "tiny"))

    wait_for(seen)


def test_a_model_that_cannot_be_loaded_harms_no_other(
    several, repository, other_artifact, tmp_path, alone, events, capsys
):
    broken = tmp_path / "broken"
    shutil.copytree(other_artifact, broken)
    url = ("--url", several.grpc_url)
    models("load", repository, "--name", "broken", "--artifact", broken, *url)
    models("unload", repository, "--name", "broken", *url)
    (broken / "model.onnx").write_bytes(b"nothing")
    for _ in range(3):
        assert models("load", repository, "--name", "broken", *url) == 1
        message = capsys.readouterr().err
        assert "cannot load the model 'broken'" in message and "model.onnx is damaged" in message
        assert {name: ask(several, name) for name in alone} == alone
        assert read_wanted(repository) == ("tiny",)
    models("load", repository, "--name", "broken")
    with Client(several.grpc_url, 60, "broken") as client:
        wait_for(lambda: "cannot load the model 'broken'" in refusal(client))
    models("unload", repository, "--name", "broken", *url)
    assert events == []


def refusal(client):
    with pytest.raises((InputError, CheckError)) as caught:
        client.complete(PROMPT, TEN)
    return str(caught.value)


class Killer(threading.Thread):
    """Kills the first process of a model that it sees, once that has mapped a library.

    Until then the process runs for moments only, so that a busy machine does not let it load all of the model unseen.
    """

    def __init__(self, server, name, library):
        super().__init__()
        self._server, self._name, self._library = server, name, library
        self.killed = None

    def run(self):
        deadline = time.monotonic() + 60
        while self.killed is None and time.monotonic() < deadline:
            for process in model_processes(self._server.pid):
                if process.name == self._name:
                    # One that was killed before may still be seen.
                    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                        self._kill_once_mapped(process, deadline)

    def _kill_once_mapped(self, process, deadline):
        while process.is_alive() and time.monotonic() < deadline:
            os.kill(process.pid, signal.SIGSTOP)
            if self._library in Path(f"/proc/{process.pid}/maps").read_text():
                os.kill(process.pid, signal.SIGKILL)
                self.killed = process.pid
                return
            os.kill(process.pid, signal.SIGCONT)
            self._let_run(process)

    def _let_run(self, process):
        """For a hundredth of a second of its own, or until it has waited for that long enough."""
        before, end = process.cpu_seconds(), time.monotonic() + 0.2
        while process.cpu_seconds() == before and time.monotonic() < end:
            time.sleep(0.002)


def load_and_kill(server, repository, name, library):
    """The exit code of a load whose process is killed."""
    killer = Killer(server, name, library)
    killer.start()
    code = models("load", repository, "--name", name, "--url", server.grpc_url)
    killer.join()
    assert killer.killed is not None
    return code


def test_a_model_whose_process_is_killed_while_it_is_loaded_harms_no_other(
    several, repository, long_artifact, alone, events, capsys
):
    """Time and again, as Triton's own answer to that would now and then kill it."""
    long = SamplingParameters(max_tokens=3000)
    add_model(long_artifact, repository, "victim", Settings(slots=1, threads=1))
    server = several.pid
    with Client(several.grpc_url, 120) as client, contextlib.closing(client.stream(PROMPT, long)) as chunks:
        count = len(next(chunks).token_ids)
        for library in ("_multiarray_umath", "tokenizers", "onnxruntime", "libhebbline_kernels") * 2:
            assert load_and_kill(several, repository, "victim", library) == 1
            message = capsys.readouterr().err
            assert "cannot load the model 'victim': its process died while it was loaded" in message
            assert read_wanted(repository) == ("tiny",)
            assert ask(several, "tiny") == alone["tiny"]
        count += sum(len(chunk.token_ids) for chunk in chunks)
    assert count == 3000
    url = ("--url", several.grpc_url)
    assert models("load", repository, "--name", "victim", *url) == 0
    assert ask(several, "victim") == alone["llm"]
    assert models("unload", repository, "--name", "victim", *url) == 0
    assert (events, several.pid) == ([], server)


def test_a_model_whose_process_never_begins_harms_no_other(several, repository, long_artifact, alone, events, capsys):
    """Triton 2.51 waits for ever for a process that died before it had said anything."""
    add_model(long_artifact, repository, "early", Settings(slots=1, threads=1))
    assert load_and_kill(several, repository, "early", "") == 1
    assert "cannot load the model 'early'" in capsys.readouterr().err
    assert {name: ask(several, name) for name in alone} == alone
    url = ("--url", several.grpc_url)
    assert models("unload", repository, "--name", "tiny", *url) == 0
    assert models("load", repository, "--name", "tiny", *url) == 0
    assert {name: ask(several, name) for name in alone} == alone
    assert models("load", repository, "--name", "early", *url) == 1
    assert "Triton starts no process for it" in capsys.readouterr().err
    assert events == []


def test_a_model_whose_process_ends_at_once_is_told_within_seconds(
    several, repository, long_artifact, alone, events, capsys
):
    """A program of the model's own in place of the one that runs Python: it is gone before anyone has seen it."""
    add_model(long_artifact, repository, "instant", Settings(slots=1, threads=1))
    program = repository / "instant" / "triton_python_backend_stub"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    url = ("--url", several.grpc_url)
    started = time.monotonic()
    assert models("load", repository, "--name", "instant", *url) == 1
    assert time.monotonic() - started < STUCK_SECONDS
    message = capsys.readouterr().err
    assert "cannot load the model 'instant': its process died while it was loaded (exit code 3)" in message
    assert {name: ask(several, name) for name in alone} == alone
    assert models("unload", repository, "--name", "tiny", *url) == 0
    assert models("load", repository, "--name", "tiny", *url) == 0
    assert {name: ask(several, name) for name in alone} == alone
    assert events == []


def test_a_model_without_its_files_is_refused(several, repository, long_artifact, events, capsys):
    add_model(long_artifact, repository, "empty", Settings())
    (repository / "empty" / "1" / "model.py").unlink()
    assert models("load", repository, "--name", "empty", "--url", several.grpc_url) == 1
    assert "cannot load the model 'empty'" in (message := capsys.readouterr().err) and "model.py is missing" in message
    assert events == []


def test_a_further_model_that_dies_is_replaced_with_the_server(several, repository, alone, events):
    def processes():
        return [process for process in model_processes(several.pid) if process.name == "tiny"]

    wait_for(lambda: len(processes()) == 1)  # one that was unloaded may still be ending
    os.kill(processes()[0].pid, signal.SIGKILL)
    wait_for(lambda: any("ready again" in event for event in events))
    with Client(several.grpc_url, 60, "tiny") as client:
        client.wait_loaded(read_list(repository).version, 60)
    assert {name: ask(several, name) for name in alone} == alone


def test_a_further_model_that_fails_at_the_start_is_said(long_artifact, other_artifact, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(other_artifact, broken)
    fill_repository(long_artifact, tmp_path / "repository", Settings(slots=1, threads=1), further={"broken": broken})
    (broken / "model.onnx").write_bytes(b"nothing")
    with (
        TritonServer(tmp_path / "repository", tmp_path, free_ports(), drain_seconds=1) as server,
        pytest.raises(CheckError, match=r"cannot load the model 'broken'.*model.onnx"),
    ):
        server.wait_ready()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["llm=a"], "'llm' is taken"),
        (["ensemble=a"], "'ensemble' is taken"),
        (["model-control=a"], "'model-control' is taken"),
        (["model-loader=a"], "'model-loader' is taken"),
        (["a b=c"], "up to 64 letters"),
        (["=c"], "up to 64 letters"),
        (["a=b", "a=c"], "two models are named 'a'"),
    ],
)
def test_names_that_cannot_be(texts, message):
    with pytest.raises(InputError, match=message):
        parse_further(texts)


def test_the_name_of_a_further_model_is_that_of_its_directory(tmp_path):
    assert parse_further([str(tmp_path / "one"), f"two={tmp_path}"]) == {"one": tmp_path / "one", "two": tmp_path}


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"models": [], "version": "1"}', '{"models": "a"}', '{"models": [1]}', '{"models": ["../a"]}'],
)
def test_a_malformed_list_is_refused(tmp_path, content):
    (tmp_path / "models.json").write_text(content)
    with pytest.raises(InputError, match=r"list of models|letters"):
        read_wanted(tmp_path)


def test_the_command_refuses_what_cannot_be(tmp_path, capsys):
    assert models("list", tmp_path) == 2
    assert "has no list of models" in capsys.readouterr().err
    write_wanted(tmp_path, ["a"])
    assert json.loads((tmp_path / "models.json").read_text()) == {"models": ["a"], "version": 1}
    for arguments, message in (
        (["load"], "--name is needed"),
        (["load", "--name", "b"], "has no model 'b': give --artifact"),
        (["load", "--name", "a", "--artifact", tmp_path], "is loaded: unload it first"),
        (["unload", "--name", "b"], "not among those to be loaded: a"),
        (["load", "--name", "llm"], "is taken"),
    ):
        assert models(arguments[0], tmp_path, *arguments[1:]) == 2
        assert message in capsys.readouterr().err
