"""Requests that are far too long cost the other requests nothing: not their time, nor the server its memory."""

import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hebbline.artifacts import InputError
from hebbline.serve.client import Client
from hebbline.serve.parameters import SamplingParameters

PROMPT = "the quick brown fox"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("the quick brown fox jumps over 12 lazy dogs. " * 230_000, r"text_input has 10\d{6} bytes"),
        (np.zeros(10 << 20, np.int32), "input_ids has 10485760 tokens, more than the context of 4096 tokens"),
    ],
    ids=["10 MB of text", "40 MB of tokens"],
)
def test_a_prompt_that_is_far_too_long_stops_nobody(server, client, prompt, message):
    gaps: list[float] = []
    started = threading.Event()

    def listen():
        with Client(server.grpc_url, timeout=60) as other:
            last = time.monotonic()
            for number, _ in enumerate(other.stream(PROMPT, SamplingParameters(max_tokens=4000))):
                now = time.monotonic()
                if number:
                    gaps.append(now - last)
                last = now
                started.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert started.wait(20)
    before = _resident_peak(server.pid)
    with pytest.raises(InputError, match=message):
        client.complete(prompt)
    listener.join(60)
    assert len(gaps) == 3999
    assert max(gaps) < 1.5
    # The message itself is there more than once: the request's buffer, the shared memory, and the bytes.
    assert _resident_peak(server.pid) - before < 250 << 20


def test_the_longest_prompt_that_fits_is_served(client, tokenizer):
    """Refused is by bytes only what could not fit: a text of the longest tokens up to the last place passes."""
    backend = tokenizer.backend_tokenizer
    longest = max((backend.decode([token]) for token in range(len(tokenizer))), key=len)
    count = next(n for n in range(4096, 0, -1) if len(backend.encode(longest * n)) <= 4095)
    answer = client.complete(longest * count, SamplingParameters(max_tokens=1))
    assert answer.num_input_tokens == len(backend.encode(longest * count))
    assert answer.num_output_tokens == 1


def _resident_peak(server: int) -> int:
    """The most bytes that the model's process, a child of the server, had in memory so far."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status = (process / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"\nPPid:\t{server}\n" in status and "python" in (process / "cmdline").read_text():
            return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) << 10
    raise AssertionError("the server has no model process")
