"""More clients than a server has places for."""

import asyncio
import contextlib
import threading

from hebbline.serve.async_client import AsyncClient, Retries
from hebbline.serve.parameters import SamplingParameters

CLIENTS = 24
"""Twice as many as the tests' server has places, those to wait at included."""


@contextlib.contextmanager
def crowd(url):
    """Clients that ask for text again and again, in a thread of their own, and stop when the context ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asking = asyncio.run_coroutine_threadsafe(_ask_again_and_again(url), loop)
    try:
        yield
    finally:
        asking.cancel()
        asyncio.run_coroutine_threadsafe(_end_tasks(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _ask_again_and_again(url):
    async with AsyncClient(url, retries=Retries(1000, 0.01, 0.05)) as client:
        await asyncio.gather(*(_ask_for_ever(client) for _ in range(CLIENTS)))


async def _ask_for_ever(client):
    while True:
        await client.complete("the quick brown fox", SamplingParameters(max_tokens=4000))


async def _end_tasks():
    """Wait for all tasks of the loop, which have been cancelled."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*tasks, return_exceptions=True)
