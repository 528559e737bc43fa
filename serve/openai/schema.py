"""The bodies of OpenAI's requests. What is not known, or not done here, is refused by name; nothing is ignored.

Besides OpenAI's own fields there are those that vLLM adds: `top_k`, `min_p`, `repetition_penalty`, `min_tokens`,
`ignore_eos` and `stop_token_ids`.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..parameters import SamplingParameters
from .errors import invalid

MAX_CHOICES = 64
MAX_PROMPTS = 128
COMPLETION_TOKENS = 16
"""What OpenAI generates for /v1/completions where `max_tokens` is left out."""
Strict = ConfigDict(extra="forbid")


class StreamOptions(BaseModel):
    """How a stream is to be."""

    model_config = Strict
    include_usage: bool = False


class SamplingFields(BaseModel):
    """What completions and chats have in common."""

    model_config = Strict
    model: str
    temperature: float | None = None
    top_p: float | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    # Told to OpenAI's own service alone: whom the request is for, and how it is billed.
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    store: Literal[False] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @property
    def choices(self) -> int:
        """Completions of each prompt."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self) -> None:
        """Raise ApiError for fields that do not go together."""
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options is for streams: set stream to true", "stream_options")

    def sampling(self, max_tokens: int, **more: Any) -> SamplingParameters:
        """The model's parameters; InputError or ApiError with the field's name where a value is wrong."""
        values: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "stop": tuple([self.stop] if isinstance(self.stop, str) else self.stop or ()),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "seed": None if self.seed is None else self.seed % 2**64,
            "logit_bias": _biases(self.logit_bias),
            **more,
        }
        named = ("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
        for name in (*named, "min_tokens", "ignore_eos"):
            values[name] = getattr(self, name)
        if values["top_k"] == -1:  # vLLM's word for off
            values["top_k"] = 0
        return SamplingParameters(**{name: value for name, value in values.items() if value is not None})


class CompletionRequest(SamplingFields):
    """The body of /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: Literal[""] | None = None
    best_of: int | None = None

    def check(self) -> None:
        """Raise ApiError for fields that do not go together."""
        super().check()
        if self.best_of is not None and self.best_of != self.choices:
            raise invalid("best_of must be left out, or as many as n", "best_of")
        if self.max_tokens == 0 and not self.echo:
            raise invalid("max_tokens must be at least 1, but with echo", "max_tokens")
        if self.stream and self.echo and self.logprobs is not None:
            raise invalid("echo with logprobs comes in one piece: set stream to false", "stream")

    @property
    def prompts(self) -> "list[str | list[int]]":
        """One or several, as a list."""
        prompt: Any = self.prompt
        is_one = isinstance(prompt, str) or (bool(prompt) and isinstance(prompt[0], int))
        return [prompt] if is_one else prompt


class ResponseFormat(BaseModel):
    """The form that a chat's answer must have."""

    model_config = Strict
    type: Literal["text", "json_object", "json_schema"]
    json_schema: "JsonSchema | None" = None


class JsonSchema(BaseModel):
    """A schema with a name."""

    model_config = Strict
    name: str
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = None


class ToolFunction(BaseModel):
    """What a model may call."""

    model_config = Strict
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool; functions are the only kind."""

    model_config = Strict
    type: Literal["function"]
    function: ToolFunction


class Message(BaseModel):
    """One message. Its content is text, or parts that are all text."""

    model_config = ConfigDict(extra="allow")
    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[dict[str, Any]] | None = None

    def plain(self) -> dict[str, Any]:
        """The message as templates read it; raises ApiError where a part is not text."""
        plain = self.model_dump(exclude_none=True)
        if isinstance(self.content, list):
            plain["content"] = "".join(_text_part(part) for part in self.content)
        plain.setdefault("content", "")
        for call in plain.get("tool_calls", ()):
            _parse_arguments(call)
        return plain


class ChatRequest(SamplingFields):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None

    def check(self) -> None:
        """Raise ApiError for fields that do not go together."""
        super().check()
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise invalid("max_tokens and max_completion_tokens differ: give one of them", "max_tokens")
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs takes logprobs: true", "top_logprobs")

    @property
    def wanted_tokens(self) -> int | None:
        """The most tokens to generate; None: as many as fit."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def offered_tools(self) -> list[dict[str, Any]] | None:
        """The tools as templates read them; None where the model may call none."""
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.model_dump(exclude_none=True, by_alias=True) for tool in self.tools]


PARAMETERS = tuple({**CompletionRequest.model_fields, **ChatRequest.model_fields})


def _biases(values: dict[str, float] | None) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in (values or {}).items()}
    except ValueError as error:
        raise invalid(f"logit_bias must map token ids to numbers: {str(error)[:100]}", "logit_bias") from error


def _parse_arguments(call: Any) -> None:
    """Templates take a call's arguments as the object that OpenAI sends the text of."""
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            function["arguments"] = json.loads(function["arguments"])
        except (ValueError, RecursionError) as error:
            raise invalid("messages: the arguments of a tool call are not JSON", "messages") from error


def _text_part(part: dict[str, Any]) -> str:
    text = part.get("text")
    if part.get("type") != "text" or not isinstance(text, str):
        raise invalid("messages: content takes text and parts of type 'text', nothing else", "messages")
    return text
