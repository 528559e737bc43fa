"""/v1/chat/completions: messages through the model's chat template, with tools and structured answers."""

import json
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ..chat_template import ChatTemplate
from ..generation import Chunk
from .answers import Head, JsonStream, finish_reason, usage
from .errors import invalid
from .logprobs import chat_scores
from .model import Job, ServedModel, with_seed
from .records import Record
from .schema import ChatRequest
from .tools import ToolCall, ToolParser, tool_parser

ANY_OBJECT = '{"type":"object"}'


@dataclass
class _Choice:
    """What one choice has so far."""

    parser: ToolParser | None
    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None
    has_begun: bool = False

    def take(self, chunk: Chunk) -> tuple[str, list[ToolCall]]:
        """What a chunk adds: text to show, and calls."""
        text, calls = (chunk.text, []) if self.parser is None else self.parser.push(chunk.text)
        if chunk.finish_reason is not None:
            if self.parser is not None:
                rest, more = self.parser.flush()
                text, calls = text + rest, calls + more
            self.reason = "tool_calls" if self.calls or calls else finish_reason(chunk.finish_reason)
        self.text += text
        self.calls += calls
        return text, calls


class Chat:
    """One request's jobs, and its answers."""

    def __init__(self, model: ServedModel, request: ChatRequest, record: Record) -> None:
        self._model, self._request, self._record = model, request, record
        self._choices: list[_Choice] = []
        self._jobs: list[Job] = []

    async def prepare(self) -> None:
        """Make the prompt; raises ApiError or InputError where the request is wrong."""
        request, model = self._request, self._model
        request.check()
        prompt = self._prompt(self._template())
        ids = await model.encode(prompt, add_special_tokens=False)
        self._record.prompt_tokens = len(ids)
        self._record.set_prompt(prompt)
        sampling = request.sampling(
            model.tokens_left(ids, request.wanted_tokens),
            top_logprobs=request.top_logprobs or None,
            json_schema=self._json_schema(),
        )
        for choice in range(request.choices):
            self._jobs.append(Job(choice, ids, with_seed(sampling, choice), log_probs=bool(request.logprobs)))
            self._choices.append(_Choice(self._parser()))

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        async with aclosing(self._model.run(self._jobs, self._record)) as chunks:
            async for job, chunk in chunks:
                self._take(job, chunk)
        head = Head("chat.completion", self._model.name, "chatcmpl").fields()
        choices = [self._whole_choice(job.index) for job in self._jobs]
        return {**head, "choices": choices, "usage": usage(self._record)}

    async def stream(self) -> JsonStream:
        """The answer as it comes: first each choice's role, then its text and calls, last its reason."""
        head = Head("chat.completion.chunk", self._model.name, "chatcmpl").fields()
        async with aclosing(self._model.run(self._jobs, self._record)) as chunks:
            async for job, chunk in chunks:
                for choice in self._events(job, chunk):
                    yield {**head, "choices": [choice]}
        if self._request.includes_usage:
            yield {**head, "choices": [], "usage": usage(self._record)}

    def _take(self, job: Job, chunk: Chunk) -> tuple[str, list[ToolCall]]:
        choice = self._choices[job.index]
        if self._request.logprobs and chunk.token_ids:
            choice.scores += chat_scores(self._model.token_bytes, chunk)["content"]
        text, calls = choice.take(chunk)
        self._record.add_completion(text)
        self._record.end = choice.reason or self._record.end
        return text, calls

    def _events(self, job: Job, chunk: Chunk) -> list[dict[str, Any]]:
        choice = self._choices[job.index]
        numbered = len(choice.calls)
        text, calls = self._take(job, chunk)
        deltas: list[dict[str, Any]] = []
        if not choice.has_begun:
            choice.has_begun = True
            deltas.append({"role": "assistant", "content": ""})
        if text:
            deltas.append({"content": text})
        if calls:
            deltas.append({"tool_calls": [call.as_json(numbered + i) for i, call in enumerate(calls)]})
        events: list[dict[str, Any]] = [
            {"index": job.index, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas
        ]
        if choice.reason is not None:
            events.append({"index": job.index, "delta": {}, "logprobs": None, "finish_reason": choice.reason})
        if choice.scores and events:
            # Tokens whose text is held back have their scores with the next event.
            events[len(deltas) - 1 if deltas else -1]["logprobs"] = {"content": choice.scores, "refusal": None}
            choice.scores = []
        return events

    def _whole_choice(self, index: int) -> dict[str, Any]:
        choice = self._choices[index]
        message: dict[str, Any] = {"role": "assistant", "content": choice.text or None, "refusal": None}
        if choice.calls:
            message["tool_calls"] = [call.as_json() for call in choice.calls]
        elif message["content"] is None:
            message["content"] = ""
        scores = {"content": choice.scores, "refusal": None} if self._request.logprobs else None
        return {"index": index, "message": message, "logprobs": scores, "finish_reason": choice.reason}

    def _template(self) -> ChatTemplate:
        if self._model.template is None:
            raise invalid(
                f"the model '{self._model.name}' has no chat template: use /v1/completions",
                "messages",
                "unsupported_parameter",
            )
        return self._model.template

    def _prompt(self, template: ChatTemplate) -> str:
        self._parser()  # tools that cannot be read are refused before anything is made
        messages = [message.plain() for message in self._request.messages]
        return template.render(messages, self._request.offered_tools)

    def _parser(self) -> ToolParser | None:
        return None if self._request.offered_tools is None else tool_parser(self._template())

    def _json_schema(self) -> str | None:
        """The schema that the answer follows, as JSON."""
        wanted = self._request.response_format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return ANY_OBJECT
        if wanted.json_schema is None or wanted.json_schema.schema_ is None:
            raise invalid("response_format of type json_schema takes json_schema with a schema", "response_format")
        return json.dumps(wanted.json_schema.schema_)
