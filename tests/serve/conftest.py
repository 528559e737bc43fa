"""A byte-level tokenizer, a runner in memory, and a real server with the real exporter's artifact in it."""

import queue
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tiny import make_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hebbline.export import export_model
from hebbline.runtime.runner import Segment
from hebbline.serve.client import Client
from hebbline.serve.generation import GenerationRequest
from hebbline.serve.parameters import SamplingParameters
from hebbline.serve.tickets import Failure
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
class PagedMemoryRunner(MemoryRunner):
    """The same over a pool of blocks; it refuses steps in which a block that is written is in another table."""

    num_blocks: int = 32
    steps: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = np.full((self.num_blocks, 16), -1)

    def step(self, segments: Sequence[Segment]) -> np.ndarray:
        uses = Counter(block for s in segments for block in s.table[: -(-(s.past + len(s.ids_S)) // 16)])
        self.steps.append([len(s.ids_S) for s in segments])
        self.prefills += [len(s.ids_S) for s in segments if len(s.ids_S) > 1]
        for s in segments:
            for place, token in enumerate(s.ids_S, s.past):
                assert uses[s.table[place // 16]] == 1
                self.cache[s.table[place // 16], place % 16] = token
        rows = [self._paged_logits(s.table, s.past + row + 1) for s in segments for row in s.rows_N]
        return np.array(rows, np.float32).reshape(len(rows), self.vocab_size)

    def prefill(self, *arguments):
        raise AssertionError("a paged runner is asked for mixed steps only")

    decode = prefill

    def _paged_logits(self, table: Sequence[int], length: int) -> np.ndarray:
        held = self.cache[list(table)].reshape(-1)[:length]
        assert (held >= 0).all()
        return 3 * np.random.default_rng(held + 1).standard_normal(self.vocab_size)


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


@pytest.fixture
def make_paged_runner() -> type[PagedMemoryRunner]:
    return PagedMemoryRunner


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


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A certificate authority, certificates for the server and a client that it has signed, and a stranger's."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not installed")
    directory = tmp_path_factory.mktemp("certificates")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]

    def openssl(*arguments):
        subprocess.run(["openssl", "req", "-x509", *key, *arguments], cwd=directory, check=True, capture_output=True)

    openssl("-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    openssl("-keyout", "stranger.key", "-out", "stranger.pem", "-subj", "/CN=stranger")
    for name in ("server", "client"):
        openssl(
            *("-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", f"{name}.key", "-out", f"{name}.pem"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"),
        )
    return directory
