"""The asynchronous client: the same answers as the other one, deadlines, retries, cancelling, and errors by type."""

import asyncio
import os
import signal
import time
from contextlib import aclosing

import pytest
from crowds import crowd

from hebbline.artifacts import InputError
from hebbline.serve.async_client import NO_RETRIES, AsyncClient, Retries
from hebbline.serve.client_errors import DeadlineError, ServerBusyError, ServerUnavailableError
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.triton.process import free_ports
from hebbline.serve.triton.watch import model_processes

LONG = SamplingParameters(max_tokens=4000)
SHORT = SamplingParameters(max_tokens=5)
PROMPT = "the quick brown fox"


def run(server, work, **options):
    async def connected():
        async with AsyncClient(server if isinstance(server, str) else server.grpc_url, **options) as client:
            return await work(client)

    return asyncio.run(connected())


def test_the_same_answers_as_the_other_client(server, client, tokenizer):
    ids = tokenizer(PROMPT)["input_ids"]

    async def work(asynchronous):
        await asynchronous.wait_ready()
        whole = await asynchronous.complete(PROMPT, SHORT, return_log_probs=True)
        pieces = [chunk async for chunk in asynchronous.stream(ids, SHORT)]
        return whole, pieces, await asynchronous.log_probs(ids)

    whole, pieces, scores = run(server, work)
    other = client.complete(PROMPT, SHORT, return_log_probs=True)
    # How many tokens share a step is not the same for both, and changes the last bits of a number.
    assert whole.log_probs == pytest.approx(other.log_probs, abs=1e-5)
    assert (whole.text, whole.token_ids, whole.finish_reason) == (other.text, other.token_ids, other.finish_reason)
    assert "".join(chunk.text for chunk in pieces) == whole.text and pieces[-1].finish_reason == "length"
    assert scores == pytest.approx(client.log_probs(ids), abs=1e-5)


def test_many_at_a_time(server, client):
    prompts = [f"{PROMPT} {number}" for number in range(10)]

    async def work(asynchronous):
        return await asyncio.gather(*(asynchronous.complete(prompt, SHORT) for prompt in prompts))

    assert [chunk.text for chunk in run(server, work)] == [client.complete(p, SHORT).text for p in prompts]


def test_what_the_server_refuses_is_an_input_error(server):
    async def work(asynchronous):
        await asynchronous.complete(PROMPT, SamplingParameters(max_tokens=100_000))

    with pytest.raises(InputError, match="more than the context of 4096 tokens"):
        run(server, work)


def test_a_deadline_ends_the_request_on_the_server_too(server, client):
    async def work(asynchronous):
        with pytest.raises(DeadlineError, match="did not answer in time"):
            await asynchronous.complete(PROMPT, LONG, timeout=0.3)

    for _ in range(5):  # more than there are places
        run(server, work)
    assert client.complete(PROMPT, SHORT).num_output_tokens == 5


def test_nobody_at_the_address():
    async def work(asynchronous):
        await asynchronous.complete(PROMPT, SHORT)

    with pytest.raises(ServerUnavailableError, match="no server answers"):
        run(f"127.0.0.1:{free_ports().grpc}", work, retries=Retries(1, 0.01))

    async def waiting(asynchronous):
        await asynchronous.wait_ready(0.2)

    with pytest.raises(ServerUnavailableError, match="no model is ready"):
        run(f"127.0.0.1:{free_ports().grpc}", waiting)


async def is_refused(url, seconds):
    """Whether a request is refused within so many seconds because the server is busy."""
    deadline = time.monotonic() + seconds
    async with AsyncClient(url, retries=NO_RETRIES) as client:
        while time.monotonic() < deadline:
            try:
                await client.complete(PROMPT, SHORT, timeout=3)
            except ServerBusyError:
                return True
            except DeadlineError:
                continue
    return False


def test_a_busy_server_is_asked_again(server):
    async def work(asynchronous):
        with crowd(server.grpc_url):
            assert await is_refused(server.grpc_url, seconds=60)
            patient = asyncio.create_task(asynchronous.complete(PROMPT, SHORT))
            await asyncio.sleep(0.3)
        return await patient

    assert run(server, work, retries=Retries(30, 0.1, 0.5)).num_output_tokens == 5


def test_a_cancelled_task_frees_its_place(server, client):
    async def work(asynchronous):
        tasks = [asyncio.create_task(asynchronous.complete(PROMPT, LONG)) for _ in range(12)]
        await asyncio.sleep(0.3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        started = time.monotonic()
        answer = await asynchronous.complete(PROMPT, SHORT, timeout=20)
        return answer, time.monotonic() - started

    answer, _ = run(server, work, retries=Retries(20, 0.05))
    assert answer.num_output_tokens == 5


@pytest.mark.parametrize("retries", [-1])
def test_impossible_retries_are_refused(retries):
    with pytest.raises(InputError, match="negative"):
        Retries(retries)


def test_a_server_that_dies_within_an_answer_is_not_asked_for_it_again(long_artifact, tmp_path):
    from hebbline.serve.triton.launch import TritonServer
    from hebbline.serve.triton.repository import fill_repository
    from hebbline.serve.triton.settings import Settings

    fill_repository(long_artifact, tmp_path / "repository", Settings(slots=2, threads=1))
    with TritonServer(tmp_path / "repository", tmp_path, free_ports(), drain_seconds=1) as server:
        server.wait_ready()

        async def work(asynchronous):
            async with aclosing(asynchronous.stream(PROMPT, LONG)) as chunks:
                await anext(chunks)
                (model,) = model_processes(server.pid)
                os.kill(model.pid, signal.SIGSTOP)  # so that it has not finished by the time it is killed
                os.kill(server.pid, signal.SIGKILL)
                return [chunk async for chunk in chunks]

        with pytest.raises(ServerUnavailableError):
            run(server, work)

        async def after(asynchronous):
            await asynchronous.wait_ready(60)
            return await asynchronous.complete(PROMPT, SHORT)

        assert run(server, after, retries=Retries(30, 0.2, 0.5)).num_output_tokens == 5
