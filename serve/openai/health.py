"""Whether the model can be used, found out by using it: a token that was generated, not a flag that was set."""

import asyncio
import time
from collections.abc import Callable

from ...artifacts import HebblineError
from ..async_client import NO_RETRIES
from ..parameters import SamplingParameters
from ..triton.settings import MODEL_NAME
from .connection import Connection

FRESH_SECONDS = 2.0
"""A token that was generated so recently, for whomever, shows as much as one for the probe."""
PROBE_SECONDS = 5.0
PROBE_TOKEN = 0
ONE_TOKEN = SamplingParameters(max_tokens=1)


class Health:
    """Asks the model for a token where none has come of late; those who ask at once share the answer.

    Args:
        connection: to the server. The probe has a client of its own, and is sent once.
        last_token: when a token last came, on the monotonic clock.
    """

    def __init__(self, connection: Connection, last_token: Callable[[], float]) -> None:
        self._client = connection.client(MODEL_NAME, NO_RETRIES)
        self._last_token = last_token
        self._probed = -float("inf")
        self._running: asyncio.Task[str | None] | None = None

    async def trouble(self) -> str | None:
        """What is wrong, in words; None where a token has been generated just now."""
        if time.monotonic() - max(self._last_token(), self._probed) < FRESH_SECONDS:
            return None
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._probe())
        return await asyncio.shield(self._running)

    async def close(self) -> None:
        """Close the probe's connection."""
        await self._client.close()

    async def _probe(self) -> str | None:
        try:
            await self._client.complete([PROBE_TOKEN], ONE_TOKEN, timeout=PROBE_SECONDS)
        except HebblineError as error:
            return str(error)
        self._probed = time.monotonic()
        return None
