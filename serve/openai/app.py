"""The gateway's routes: OpenAI's API, health, metrics, and the page."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from ..client_errors import ServerUnavailableError
from .answers import JsonAnswer, JsonStream, events
from .catalogue import Catalogue, FurtherModels, no_further_models
from .chat import Chat
from .completions import Completions
from .config import GatewayConfig
from .connection import Connection
from .door import RECORD, Door
from .errors import ApiError, invalid
from .health import Health
from .keys import KeyFile
from .metrics import Metrics
from .model import ServedModel
from .records import Record, RequestLog, said
from .schema import PARAMETERS, ChatRequest, CompletionRequest
from .tracing import Tracing
from .triton_metrics import TritonMetrics

API_PATHS = ("/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/embeddings")
OTHER_PATHS = ("/", "/health/live", "/health/ready", "/metrics", "/figures")
PAGE = Path(__file__).with_name("page")
PAGE_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
BODY_EXTRA_BYTES = 1 << 20
BYTES_PER_PROMPT_BYTE = 6
"""JSON may write one byte of a prompt as six: a letter as backslash, u, and four digits."""
PROMETHEUS = "text/plain; version=0.0.4"
T = TypeVar("T")


class _Api(Protocol):
    """A request of one of the APIs that generate."""

    async def prepare(self) -> None: ...
    async def whole(self) -> dict[str, Any]: ...
    def stream(self) -> JsonStream: ...


class Gateway:
    """One application, for one Triton server and the artifacts that it serves.

    Args:
        config: where it listens and who may come in.
        artifact: of the server's model `llm`.
        grpc_url: host:port of the server.
        metrics_url: of the server's metrics; None where they are not published.
        further: the artifacts of the server's other models by their names, at the moment.
        credentials: for a server whose gRPC has TLS.
        tracing: where requests leave traces; None: nowhere.

    Raises:
        InputError: the configuration, the artifact or the file of keys is wrong.
    """

    def __init__(
        self,
        config: GatewayConfig,
        artifact: Path,
        grpc_url: str,
        metrics_url: str | None,
        *,
        further: FurtherModels = no_further_models,
        credentials: grpc.ChannelCredentials | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.config = config
        self.metrics = Metrics()
        self._connection = Connection(grpc_url, config.request_seconds, credentials)
        first = ServedModel(artifact, config.model_name, self.metrics)
        self._catalogue = Catalogue(first, further, self.metrics)
        self._triton = TritonMetrics(metrics_url)
        self._log = RequestLog(config.request_log, with_text=config.log_text) if config.request_log else None
        self._health: Health | None = None
        self._created = int(time.time())
        keys = KeyFile(config.api_keys) if config.api_keys is not None else None
        paths = frozenset((*API_PATHS, *OTHER_PATHS))
        self._tracing = tracing
        self.application: ASGIApp = Door(
            self._routes(), self.metrics, keys, self._log, self._max_body_bytes, paths, tracing
        )

    def _max_body_bytes(self) -> int:
        return self._catalogue.max_prompt_bytes * BYTES_PER_PROMPT_BYTE + BODY_EXTRA_BYTES

    def _routes(self) -> FastAPI:
        # The pages that FastAPI has for its own documentation load their scripts from other hosts.
        application = FastAPI(title="hebbline", docs_url=None, redoc_url=None, lifespan=self._lifespan)
        application.get("/v1/models")(self._models)
        application.get("/v1/models/{name:path}")(self._one_model)
        application.post("/v1/completions")(self._completions)
        application.post("/v1/chat/completions")(self._chat)
        application.post("/v1/embeddings")(self._embeddings)
        application.get("/health/live")(self._live)
        application.get("/health/ready")(self._ready)
        application.get("/metrics")(self._metrics)
        application.get("/figures")(self._figures)
        for path in PAGE_FILES:
            application.get(path, include_in_schema=False)(self._page)
        application.exception_handler(RequestValidationError)(_refuse_body)
        application.exception_handler(HTTPException)(_refuse_path)
        application.exception_handler(ApiError)(_answer_error)
        application.exception_handler(Exception)(_answer_failure)
        return application

    @asynccontextmanager
    async def _lifespan(self, application: FastAPI) -> AsyncGenerator[None, None]:
        self._catalogue.connect(self._connection)
        self._health = Health(self._connection, lambda: self.metrics.last_token)
        yield
        await self._health.close()
        await self._catalogue.close()
        if self._log is not None:
            self._log.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def _card(self, model: ServedModel) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "hebbline",
            "max_model_len": model.context_length,
            "has_chat_template": model.template is not None,
        }

    async def _models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._card(model) for model in await self._catalogue.listed()]}

    async def _one_model(self, name: str) -> dict[str, Any]:
        return self._card(await self._catalogue.find(name))

    async def _completions(self, body: CompletionRequest, request: Request) -> Response:
        record: Record = request.scope[RECORD]
        model = await self._found(body.model, record)
        return await self._answer(Completions(model, body, record), bool(body.stream), request)

    async def _chat(self, body: ChatRequest, request: Request) -> Response:
        record: Record = request.scope[RECORD]
        model = await self._found(body.model, record)
        return await self._answer(Chat(model, body, record), bool(body.stream), request)

    async def _found(self, name: str, record: Record) -> ServedModel:
        model = await self._catalogue.find(name)
        record.model = model.name
        return model

    async def _answer(self, api: _Api, stream: bool, request: Request) -> Response:
        record: Record = request.scope[RECORD]
        try:
            await api.prepare()
            if not stream:
                return JsonAnswer(await _while_connected(request, api.whole()))
            # What is wrong with a request is known by its first event, and can still be its status.
            answers = api.stream()
            first = await _while_connected(request, anext(answers))
            return StreamingResponse(events(_resumed(first, answers), record), media_type="text/event-stream")
        except Exception as error:
            raise said(error, record, PARAMETERS) from error

    async def _embeddings(self) -> Response:
        raise ApiError(
            400, "this model generates text and gives no embeddings", param="model", code="unsupported_operation"
        )

    async def _live(self) -> dict[str, str]:
        return {"status": "live"}

    async def _ready(self) -> Response:
        assert self._health is not None, "the application has started"
        trouble = await self._health.trouble()
        if trouble is None:
            return JsonAnswer({"status": "ready"})
        return JsonAnswer({"status": "not ready", "reason": trouble}, 503)

    async def _metrics(self) -> Response:
        return PlainTextResponse(self.metrics.exposition() + await self._triton.exposition(), media_type=PROMETHEUS)

    async def _figures(self, model: str | None = None) -> dict[str, Any]:
        """Of one model where it is named, else of all together."""
        server_name = None if model is None else (await self._catalogue.find(model)).server_name
        return {**self.metrics.figures(model), "model": await self._triton.model_figures(server_name)}

    async def _page(self, request: Request) -> Response:
        return FileResponse(PAGE / PAGE_FILES[request.url.path])


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of some work, which is cancelled where the client goes; raises ApiError (499) then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return _result(task)
        raise ApiError(499, "the client has gone", code="disconnected")
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def _result(task: "asyncio.Future[T]") -> T:
    if task.cancelled():  # by nobody here: the connection to the server was closed
        raise ServerUnavailableError("the connection to the server was closed: try again later")
    return task.result()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _resumed(first: dict[str, Any], answers: JsonStream) -> JsonStream:
    async with aclosing(answers):
        yield first
        async for content in answers:
            yield content


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError), "the handler is registered for it"
    record: Record = request.scope[RECORD]
    record.end = error.reason
    return JsonAnswer(error.body, error.status, error.headers)


async def _answer_failure(request: Request, error: Exception) -> Response:
    """What nothing else has caught, in the form of the other errors."""
    return await _answer_error(request, said(error, request.scope[RECORD]))


async def _refuse_body(request: Request, error: Exception) -> Response:
    """A body that is not as it should be: the first thing that is wrong with it, by the name of the field."""
    assert isinstance(error, RequestValidationError), "the handler is registered for it"
    first = error.errors()[0]
    # The names of the types between which a field may choose are no part of a path that a client knows.
    path = [str(part) for part in first["loc"][1:] if isinstance(part, int) or str(part).isidentifier()]
    name = path[0] if path else None
    if first["type"] == "extra_forbidden":
        message, code = f"there is no parameter '{'.'.join(path)[:80]}'", "unknown_parameter"
    elif first["type"] == "missing":
        message, code = f"{'.'.join(path) or 'the body'} is missing", "missing_required_parameter"
    else:
        message, code = f"{'.'.join(path)[:200] or 'the body'}: {first['msg'][:200]}", "invalid_value"
    return await _answer_error(request, invalid(message, name, code))


async def _refuse_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "the handler is registered for it"
    message = f"{request.method} {request.url.path[:100]}: {error.detail}"
    headers = dict(error.headers or {})
    return await _answer_error(request, ApiError(error.status_code, message, code="not_found", headers=headers))
