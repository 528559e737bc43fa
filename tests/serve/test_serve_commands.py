"""`hebbline query` and `hebbline chat` as a shell runs them: pipes, bytes that are no text, and the keyboard."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gateways import with_template

from hebbline.serve.conversation import Conversation
from hebbline.serve.parameters import SamplingParameters

HEBBLINE = str(Path(sys.executable).with_name("hebbline"))
PROMPT = "the quick brown"


def hebbline(*arguments, **options):
    return subprocess.run([HEBBLINE, *arguments], capture_output=True, timeout=120, **options)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, long_artifact):
    return with_template(long_artifact, tmp_path_factory.mktemp("commands") / "artifact")


def test_query_reads_standard_input(server, client):
    expected = client.complete(PROMPT + "\n", SamplingParameters(max_tokens=5)).text
    done = hebbline(
        "query", "-", "--url", f"grpc://{server.grpc_url}", "--max-tokens", "5", input=f"{PROMPT}\n".encode()
    )
    assert done.returncode == 0 and done.stdout.decode() == expected + "\n"


def test_bytes_that_are_no_text_are_named(server):
    for arguments, standard_input, message in (
        (["query", b"a\xff", "--url", server.grpc_url], b"", "the prompt is not UTF-8 at character 1"),
        (["query", "a", "--stop", b"\xff"], b"", "--stop is not UTF-8"),
        (["query", "-", "--url", server.grpc_url], b"ab\xff", "standard input is not UTF-8 at byte 2"),
    ):
        done = hebbline(*arguments, input=standard_input)
        assert done.returncode == 2 and done.stderr.decode().startswith(f"hebbline: error: {message}")


def test_a_reader_that_goes_is_no_error(server, client):
    command = [HEBBLINE, "query", PROMPT, "--url", server.grpc_url, "--max-tokens", "2000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.read(1)
        running.stdout.close()
        assert running.wait(60) == 141
        assert b"Traceback" not in running.stderr.read()
    assert client.complete(PROMPT, SamplingParameters(max_tokens=2)).num_output_tokens == 2


def test_a_character_that_the_terminal_lacks_is_written_as_a_question_mark(server):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = hebbline(
        *("query", "é", "--url", server.grpc_url, "--max-tokens", "40", "--temperature", "2", "--seed", "1"),
        env=environment,
    )
    assert done.returncode == 0 and done.stdout.isascii()


def test_a_chat_answers_line_by_line(server, artifact, client):
    lines = b"the quick\n\n/clear\nthe quick\nand\n/exit\nnot this\n"
    arguments = ("--url", server.grpc_url, "--max-tokens", "6")
    done = hebbline("chat", str(artifact), *arguments, input=lines)
    assert done.returncode == 0, done.stderr.decode()
    six = SamplingParameters(max_tokens=6)
    first = client.complete("user: the quick\nassistant: ", six).text
    later = client.complete(f"user: the quick\nassistant: {first}\nuser: and\nassistant: ", six).text
    assert done.stdout.decode() == f"{first}\n{first}\n{later}\n"


def test_a_chat_needs_a_template_and_text(server, artifact, long_artifact):
    done = hebbline("chat", str(long_artifact), "--url", server.grpc_url)
    assert done.returncode == 2 and b"has no chat template: use `hebbline query`" in done.stderr
    done = hebbline("chat", str(artifact), "--url", server.grpc_url, input=b"a\xff\n")
    assert done.returncode == 2 and b"is not UTF-8" in done.stderr and b"Traceback" not in done.stderr


def test_ctrl_c_ends_an_answer_and_the_chat_goes_on(server, artifact):
    command = [HEBBLINE, "chat", str(artifact), "--url", server.grpc_url, "--max-tokens", "4000"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    # A shell's background jobs ignore Ctrl-C, and so would what they start.
    with subprocess.Popen(command, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as running:
        running.stdin.write(b"the quick\n")
        running.stdin.flush()
        running.stdout.read(40)
        running.send_signal(signal.SIGINT)
        running.stdin.write(b"/exit\n")
        running.stdin.close()
        assert running.wait(60) == 0
        assert b"(ended)" in running.stderr.read()


def test_what_no_longer_fits_is_left_out_from_the_beginning(artifact):
    conversation = Conversation(artifact, system="be brief")
    sizes = []
    for number in range(8):
        sizes.append(len(conversation.ask(f"{number} " + "the quick brown fox " * 50)))
        conversation.answered("x " * 100)
    assert max(sizes) <= 4096 * 0.75 and sizes[-1] == pytest.approx(sizes[-2], rel=0.5)
    conversation.clear()
    assert len(conversation.ask("hello")) < sizes[0]
