"""A byte-level tokenizer, a runner in memory, and a real server with the real exporter's artifact in it."""

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tiny import make_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hebbline.export import export_model
from hebbline.serve.client import Client
from hebbline.serve.generation import GenerationRequest
from hebbline.serve.sampling import SamplingParameters
from hebbline.serve.scheduler import Failure
from hebbline.serve.triton.launch import TritonServer
from hebbline.serve.triton.process import free_ports
from hebbline.serve.triton.repository import fill_repository
from hebbline.serve.triton.settings import Settings
from hebbline.train import Sparsifier, SparsityConfig
from hebbline.train.save import save_model_directory


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """A token for each of the 256 bytes; the ids are in the order of ByteLevel's alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@dataclass
class MemoryRunner:
    """Logits that are a function of the tokens that a slot really holds: a stale or foreign token changes them all."""

    slots: int = 4
    context_length: int = 128
    vocab_size: int = 256
    prefills: list[int] = field(default_factory=list)
    decodes: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = np.full((self.slots, self.context_length), -1)

    def prefill(self, slot: int, ids_S: Sequence[int], past: int, rows_N: Sequence[int]) -> np.ndarray:
        assert past + len(ids_S) <= self.context_length
        self.prefills.append(len(ids_S))
        self.cache[slot, past : past + len(ids_S)] = ids_S
        rows = [self._logits(slot, past + row + 1) for row in rows_N]
        return np.array(rows, np.float32).reshape(len(rows), self.vocab_size)

    def decode(self, first_slot: int, ids_B: Sequence[int], past_B: Sequence[int]) -> np.ndarray:
        assert max(past_B) < self.context_length
        self.decodes.append((first_slot, len(ids_B)))
        for index, (token, past) in enumerate(zip(ids_B, past_B, strict=True)):
            self.cache[first_slot + index, past] = token
        return np.array([self._logits(first_slot + i, past + 1) for i, past in enumerate(past_B)], np.float32)

    def _logits(self, slot: int, length: int) -> np.ndarray:
        generator = np.random.default_rng(self.cache[slot, :length] + 1)
        return 3 * generator.standard_normal(self.vocab_size)


@dataclass
class Receiver:
    """Collects the events of one request."""

    events: queue.Queue = field(default_factory=queue.Queue)

    def __call__(self, event):
        self.events.put(event)

    def chunks(self):
        result = []
        while not result or result[-1].finish_reason is None:
            event = self.events.get(timeout=20)
            if isinstance(event, Failure):
                raise event.error
            result.append(event)
        assert self.events.empty()
        return result

    def tokens(self):
        return [token for chunk in self.chunks() for token in chunk.token_ids]


def submit_request(scheduler, prompt, **sampling):
    flags = {name: sampling.pop(name) for name in list(sampling) if name.startswith("return_")}
    receiver = Receiver()
    receiver.ticket = scheduler.submit(
        GenerationRequest(tuple(prompt), SamplingParameters(**sampling), **flags), receiver
    )
    return receiver


@pytest.fixture
def submit():
    return submit_request


@pytest.fixture
def make_runner() -> type[MemoryRunner]:
    return MemoryRunner


@pytest.fixture(scope="session")
def long_artifact(tmp_path_factory, tokenizer) -> Path:
    """A small exported model with a context so long that a request which is not cancelled takes seconds."""
    model = make_llama(len(tokenizer), max_position_embeddings=4096)
    sparsifier = Sparsifier(model, SparsityConfig(method="static", density=0.3))
    directory = tmp_path_factory.mktemp("long")
    save_model_directory(directory / "model", model, tokenizer, sparsifier.masks, method="static")
    export_model(directory / "model", directory / "artifact")
    return directory / "artifact"


@pytest.fixture(scope="session")
def server(tmp_path_factory, long_artifact) -> Iterator[TritonServer]:
    """A running server with 4 slots."""
    directory = tmp_path_factory.mktemp("server")
    fill_repository(long_artifact, directory / "repository", Settings(slots=4, threads=1, max_waiting=8))
    with TritonServer(directory / "repository", directory, free_ports(), drain_seconds=1) as running:
        running.wait_ready()
        yield running


@pytest.fixture
def client(server) -> Iterator[Client]:
    with Client(server.grpc_url, timeout=60) as connected:
        connected.wait_ready(30)
        yield connected
