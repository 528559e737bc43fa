"""A conversation as the prompt of its next answer: by the model's chat template, within its context."""

from pathlib import Path

from ..artifacts import InputError
from ..runtime.onnxruntime import language_model_facts
from ..runtime.tokenizer import load_tokenizer
from .chat_template import read_chat_template

ANSWER_SHARE = 0.25
"""Of the context, which is kept free for the answer."""


class Conversation:
    """Messages and answers in turn. What no longer fits is left out from the beginning, but for the system's message.

    Args:
        artifact: of the model that is served.
        system: what the model is told first.

    Raises:
        InputError: the artifact is damaged, or has no chat template.
    """

    def __init__(self, artifact: Path, system: str | None = None) -> None:
        template = read_chat_template(artifact)
        if template is None:
            raise InputError(f"{artifact} has no chat template: use `hebbline query`, which goes on from a text")
        self._template = template
        self._tokenizer = load_tokenizer(artifact)
        self._most = int(language_model_facts(artifact).context_length * (1 - ANSWER_SHARE))
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._messages: list[dict[str, str]] = []

    def ask(self, message: str) -> list[int]:
        """The tokens of the prompt for the answer to a message; InputError where it does not fit by itself."""
        self._messages.append({"role": "user", "content": message})
        while len(ids := self._prompt()) > self._most:
            if len(self._messages) == 1:
                self._messages.clear()
                raise InputError(f"the message has {len(ids)} tokens; at most {self._most} leave room for an answer")
            del self._messages[:2]
        return ids

    def answered(self, text: str) -> None:
        """Keep the answer to the last message."""
        self._messages.append({"role": "assistant", "content": text})

    def clear(self) -> None:
        """Begin anew."""
        self._messages.clear()

    def _prompt(self) -> list[int]:
        text = self._template.render([*self._system, *self._messages])
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return list(encoding.ids)
