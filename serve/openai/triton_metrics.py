"""The metrics of the Triton server and of the model in it, which Triton publishes at a port of their own."""

import asyncio
import http.client
from urllib.parse import urlsplit

from .metrics import parse_samples

SECONDS = 2.0
MODEL_PREFIX = "hebbline_"


class TritonMetrics:
    """Reads them when somebody asks.

    Args:
        url: such as http://127.0.0.1:8002/metrics; None where they are not published.
    """

    def __init__(self, url: str | None) -> None:
        self._url = url

    async def exposition(self) -> str:
        """All of them in Prometheus' text form; empty where the server does not answer."""
        return "" if self._url is None else await asyncio.to_thread(read_metrics, self._url)

    async def model_figures(self, model: str | None) -> dict[str, float]:
        """Those of a model by its name on the server, or the sums of all, without the prefix that they all have."""
        samples = parse_samples(await self.exposition(), MODEL_PREFIX, model)
        return {name.removeprefix(MODEL_PREFIX): value for name, value in samples.items()}


def read_metrics(url: str) -> str:
    """What is published there; empty where the server does not answer."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=SECONDS)
    try:
        connection.request("GET", address.path)
        response = connection.getresponse()
        return response.read().decode(errors="replace") if response.status == 200 else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()
