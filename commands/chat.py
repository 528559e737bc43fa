"""`hebbline chat ARTIFACT`: a conversation in the terminal with a served model."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..artifacts import InputError
from ..console import Parser, console
from ..serve.parameters import SamplingParameters
from .connection_options import add_connection_options, connect
from .sampling_options import add_sampling_options, checked_text, sampling_from, write_now

CLEAR, EXIT = "/clear", "/exit"
YOU = "> "


def main(arguments: list[str]) -> int:
    """Take a line, stream the answer, and so on; Ctrl-C ends an answer, Ctrl-D the conversation."""
    parser = Parser(prog="hebbline chat", description="Talk with a served model, by its own chat template.")
    parser.add_argument("artifact", type=Path, help="what the server serves; its chat template is read from here")
    add_connection_options(parser)
    parser.add_argument("--model", type=str, default=None, help="its name on the server; llm where it is left out")
    parser.add_argument("--system", type=str, default=None, help="what the model is told before everything else")
    add_sampling_options(parser)
    values = parser.parse_args(arguments)
    sampling = sampling_from(values)
    system = None if values.system is None else checked_text(values.system, "--system")
    from ..serve.conversation import Conversation

    if not values.artifact.is_dir():
        raise InputError(f"{values.artifact} is not a directory: give the one that the server serves")
    conversation = Conversation(values.artifact, system)
    with connect(values, values.model) as client:
        client.wait_ready()
        console.print(f"{CLEAR} begins anew, {EXIT} or Ctrl-D ends, Ctrl-C ends an answer", style="dim")
        for line in _lines():
            if line == EXIT:
                break
            if line == CLEAR:
                conversation.clear()
            else:
                _answer(client, conversation, line, sampling)
    return 0


def _lines() -> Iterator[str]:
    """What is typed or comes by standard input, line by line, without what is empty."""
    is_terminal = sys.stdin.isatty()
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives `input` its history and editing)
    while True:
        try:
            line = input(YOU if is_terminal else "")
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise InputError(f"standard input is not UTF-8: {error}") from error
        if line.strip():
            yield checked_text(line, "the message")


def _answer(client: Any, conversation: Any, message: str, sampling: SamplingParameters) -> None:
    """Stream the answer to a message, and keep both; of an answer that Ctrl-C ends, as much as there is."""
    text = ""
    prompt = conversation.ask(message)
    try:
        with contextlib.closing(client.stream(prompt, sampling)) as chunks:
            for chunk in chunks:
                text += chunk.text
                write_now(chunk.text)
    except KeyboardInterrupt:
        console.print(" [dim](ended)[/dim]", end="")
    finally:
        conversation.answered(text)
    write_now("\n")
