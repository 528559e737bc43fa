"""Requests that make no sense, by gRPC, HTTP and OpenAI's API: each must be answered, and the server must live on.

A request is a valid one that is changed at random, or bytes that are none. What is wrong with a server is: no answer,
an answer without a message, an error that it calls its own, and a death.
"""

import asyncio
import http.client
import json
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ..serve.fields import NEUTRAL
from ..serve.parameters import SamplingParameters
from ..serve.triton.launch import TritonServer
from ..serve.triton.process import HOST, free_ports
from ..serve.triton.repository import fill_repository
from ..serve.triton.settings import MODEL_NAME, Settings
from .serving_gateway import GatewayProcess

AT_A_TIME = 8
SECONDS = 60.0
_FIELDS = [
    *SamplingParameters.__dataclass_fields__,
    *NEUTRAL,
    "text_input",
    "input_ids",
    "stream",
    "prompt",
    "messages",
]
_TYPES = ("BYTES", "INT32", "INT64", "FP32", "BOOL", "UINT64", "FP16", "NONE", "")
_MOST_BYTES = 200_000


@dataclass
class Outcome:
    """What came of the requests.

    Attributes:
        answered: how many of each front's had a completion, and how many an error with a message.
        wrong: what went wrong, and how often; empty where all is well.
        restarts: of the server.
    """

    answered: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    restarts: list[str] = field(default_factory=list)


def run_fuzz(
    artifact: Path, count: int, seed: int, directory: Path, on_step: Callable[[int], None] = lambda done: None
) -> Outcome:
    """Serve the artifact and send `count` requests, from `seed` on; the fronts take turns."""
    fill_repository(artifact, directory / "repository", Settings(slots=4, threads=1))
    outcome = Outcome()
    with TritonServer(
        directory / "repository", directory, free_ports(), drain_seconds=1, on_event=outcome.restarts.append
    ) as server:
        server.wait_ready()
        with GatewayProcess(artifact, server.grpc_url, directory / "gateway.log") as gateway:
            http_url = f"http://{HOST}:{server.ports.http}/v2/models/{MODEL_NAME}/generate"
            asyncio.run(_send_all(count, seed, outcome, on_step, server.grpc_url, http_url, gateway.url))
    said = (directory / "gateway.log").read_text(errors="replace")
    if "Traceback" in said:
        outcome.wrong[f"the gateway's log: {said[said.index('Traceback') :][-2000:]}"] += 1
    return outcome


async def _send_all(
    count: int,
    seed: int,
    outcome: Outcome,
    on_step: Callable[[int], None],
    grpc_url: str,
    http_url: str,
    openai_url: str,
) -> None:
    numbers = iter(range(count))
    async with grpc.aio.insecure_channel(grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        async def stream() -> None:
            for number in numbers:
                generator = random.Random(f"{seed}/{number}")
                front = ("grpc", "http", "openai")[number % 3]
                try:
                    if front == "grpc":
                        kind, message = await _by_grpc(stub, generator)
                    elif front == "http":
                        kind, message = await asyncio.to_thread(_by_http, http_url, http_body(generator))
                    else:
                        path, body = openai_request(generator)
                        kind, message = await asyncio.to_thread(_by_http, openai_url + path, body)
                except Exception as error:
                    kind, message = "wrong", f"{type(error).__name__}: {error}"
                if kind == "wrong":
                    outcome.wrong[f"{front}, request {number} of seed {seed}: {message[:200]}"] += 1
                else:
                    outcome.answered[front, kind] += 1
                on_step(1)

        await asyncio.gather(*(stream() for _ in range(AT_A_TIME)))


async def _by_grpc(stub: service_pb2_grpc.GRPCInferenceServiceStub, generator: random.Random) -> tuple[str, str]:
    request = grpc_request(generator)

    async def only() -> AsyncGenerator[service_pb2.ModelInferRequest, None]:
        yield request

    kind, message = "wrong", "no answer"
    try:
        async for response in stub.ModelStreamInfer(only(), timeout=SECONDS):
            if response.error_message:
                kind, message = "error", response.error_message
            elif response.infer_response.outputs and kind != "error":
                kind, message = "completion", "whole"
    except grpc.aio.AioRpcError as error:
        broken = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN)
        kind, message = ("wrong" if error.code() in broken else "error"), error.details() or ""
    return _judged(kind, message)


def _by_http(url: str, body: bytes) -> tuple[str, str]:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=SECONDS)
    try:
        connection.request("POST", address.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
    finally:
        connection.close()
    if response.status == 200:
        return _judged("completion", text)
    # A place to wait at was not free: said so, it is an answer.
    is_ours = response.status >= 500 and response.status not in (501, 503)
    return _judged("wrong" if is_ours and "INTERNAL" in text.upper() else "error", text)


def _judged(kind: str, message: str) -> tuple[str, str]:
    if kind == "error" and (not message.strip() or message.startswith("INTERNAL") or "Traceback" in message):
        return "wrong", message or "an error without a message"
    return kind, message


def http_body(generator: random.Random) -> bytes:
    """For Triton's own HTTP service, which must be spared deeply nested JSON."""
    if generator.random() < 0.1:
        return generator.randbytes(generator.randrange(300))
    fields = {"text_input": "the quick", "max_tokens": generator.randrange(5)}
    return _json(_changed(fields, generator, depth=3))


def openai_request(generator: random.Random) -> tuple[str, bytes]:
    """A path and a body for the gateway, which takes anything."""
    path = generator.choice(("/v1/completions", "/v1/completions", "/v1/chat/completions"))
    if generator.random() < 0.1:
        return path, generator.randbytes(generator.randrange(3000))
    if generator.random() < 0.05:
        return path, b'{"model": "llm", "prompt": ' + b"[" * generator.randrange(_MOST_BYTES)
    fields: dict[str, Any] = {"model": "llm", "max_tokens": 1 + generator.randrange(4)}
    is_chat = path.endswith("chat/completions") != (generator.random() < 0.1)
    fields |= {"messages": [{"role": "user", "content": "the quick"}]} if is_chat else {"prompt": "the quick"}
    return path, _json(_changed(fields, generator, depth=6))


def grpc_request(generator: random.Random) -> service_pb2.ModelInferRequest:
    """Tensors of any name, type, shape and content."""
    request = service_pb2.ModelInferRequest(model_name=MODEL_NAME if generator.random() < 0.97 else _word(generator))
    tensors: dict[str, tuple[str, list[int], bytes]] = {
        "text_input": ("BYTES", [1], _bytes_tensor(b"the quick")),
        "sampling_parameters": ("BYTES", [1], _bytes_tensor(_json(_changed({"max_tokens": 3}, generator, depth=3)))),
    }
    for _ in range(generator.randrange(3)):
        name = generator.choice([*_FIELDS, _word(generator)])
        content = generator.choice((generator.randbytes(generator.randrange(64)), bytes(4), _bytes_tensor(b"true")))
        shape = [generator.choice((1, 1, 1, 0, 2, -1, 2**31, 2**62)) for _ in range(generator.randrange(3))]
        tensors[name] = (generator.choice(_TYPES), shape, content)
    for name, (datatype, shape, content) in tensors.items():
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(content)
    if generator.random() < 0.1:
        request.raw_input_contents.append(b"more than there are tensors")
    if generator.random() < 0.3:
        request.parameters[generator.choice([*_FIELDS, _word(generator)])].string_param = _word(generator)
    for name in generator.sample(("text_output", "token_ids", "log_probs", "nothing"), generator.randrange(3)):
        request.outputs.add(name=name)
    return request


def _changed(fields: dict[str, Any], generator: random.Random, depth: int) -> dict[str, Any]:
    """The fields, with some more or other ones."""
    for _ in range(generator.randrange(4)):
        name = generator.choice([*_FIELDS, *fields, _word(generator)])
        fields[name] = _value(generator, depth)
    return fields


def _value(generator: random.Random, depth: int) -> Any:
    simple: tuple[Any, ...] = (
        None, True, False, 0, 1, -1, 3, 2**31, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"),
        "", "a", "\x00", "\ud800", "5", "é" * 50, _word(generator), "x" * generator.randrange(_MOST_BYTES // 10),
    )  # fmt: skip
    if depth and generator.random() < 0.3:
        items = [_value(generator, depth - 1) for _ in range(generator.randrange(4))]
        return items if generator.random() < 0.5 else {_word(generator): item for item in items}
    return generator.choice(simple)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _word(generator: random.Random) -> str:
    return "".join(generator.choices("abcdefghijklmnop_é ", k=generator.randrange(1, 12)))


def _bytes_tensor(content: bytes) -> bytes:
    """One element of a tensor of bytes: its length in four bytes, and it."""
    return len(content).to_bytes(4, "little") + content
