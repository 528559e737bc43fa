"""A teacher's distributions on disk: of each next token of a text, the most probable tokens and what the others share.

Legend: N blocks of the text, B blocks of a batch, S tokens a block, P = S - 1 predicted tokens, K tokens kept.

A folder holds `cache.json`, which says what the distributions are of, and `distributions.bin`, a row for each block:
the K ids (int32 [P, K]), their natural-log probabilities and that of all others together (float32 [P, K + 1]), and a
checksum. Its size is known, and reserved on the disk, before training. A row is filled when its block first comes up,
from a teacher that is given this block alone: so its bits depend on nothing else, and a run that goes on finds the same
ones. A row that was cut in the writing fails its checksum, and is filled again.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..artifacts import InputError
from ..artifacts.publishing import write_atomically

_FACTS_FILE, _ROWS_FILE = "cache.json", "distributions.bin"
_SCHEMA_VERSION = 1
_EMPTY = 0
"""The checksum of a row that was never filled; one that comes out as this is stored as 1."""


@dataclass(frozen=True)
class CacheFacts:
    """What a cache is of: all that its distributions depend on.

    Attributes:
        teacher: SHA-256 of the teacher's weights and configuration.
        tokenizer: SHA-256 of its vocabulary.
        text: SHA-256 of the blocks of tokens.
        blocks, tokens: N and S.
        kept: K.
        temperature: that the distributions are softened by.
        precision: of the teacher's products.
    """

    teacher: str
    tokenizer: str
    text: str
    blocks: int
    tokens: int
    kept: int
    temperature: float
    precision: str
    schema_version: int = _SCHEMA_VERSION

    @property
    def bytes(self) -> int:
        """That the distributions of all blocks take."""
        return self.blocks * _row_type(self).itemsize


@dataclass(frozen=True)
class Distributions:
    """Of each predicted token: K ids [B, P, K], their log-probabilities, and that of all others [B, P]."""

    ids_BPK: Tensor
    log_probs_BPK: Tensor
    others_BP: Tensor


class TeacherCache:
    """The distributions of one teacher on one text. Make one with `open_cache`."""

    def __init__(self, folder: Path, facts: CacheFacts, blocks_NS: Tensor) -> None:
        self._facts = facts
        self._places = {_key(ids_S): place for place, ids_S in enumerate(blocks_NS)}
        kind = _row_type(facts)
        self._rows: NDArray[Any] = np.memmap(folder / _ROWS_FILE, kind, "r+", shape=(facts.blocks,))

    @cached_property
    def filled(self) -> int:
        """How many blocks had their distributions when this was first asked."""
        return sum(self._stored(place) is not None for place in self._places.values())

    @property
    def complete(self) -> bool:
        """Whether no teacher is needed any more."""
        return self.filled == len(self._places)

    def distributions(self, ids_BS: Tensor, teacher: Callable[[Tensor], Tensor]) -> Distributions:
        """Those of a batch of the text's blocks; what is not there is asked of the teacher, and kept.

        Args:
            ids_BS: blocks of the text.
            teacher: from one block [1, S] to its logits [1, S, V].
        """
        rows = [self._row(ids_S, teacher) for ids_S in ids_BS]
        ids, log_probs = (torch.from_numpy(np.stack([row[part] for row in rows])) for part in ("ids", "log_probs"))
        found = (ids.long(), log_probs[..., :-1], log_probs[..., -1])
        return Distributions(*(part.to(ids_BS.device) for part in found))

    def _row(self, ids_S: Tensor, teacher: Callable[[Tensor], Tensor]) -> NDArray[Any]:
        place = self._places[_key(ids_S)]
        stored = self._stored(place)
        if stored is not None:
            return stored
        row = np.zeros((), self._rows.dtype)
        row["ids"], row["log_probs"] = _most_probable(teacher(ids_S[None])[0, :-1], self._facts)
        row["checksum"] = _checksum(row)
        self._rows[place] = row
        return row

    def _stored(self, place: int) -> NDArray[Any] | None:
        row = self._rows[place]
        return row if row["checksum"] != _EMPTY and row["checksum"] == _checksum(row) else None


def open_cache(folder: Path, facts: CacheFacts, blocks_NS: Tensor) -> TeacherCache:
    """The cache in a folder, or a new one where there is none.

    Args:
        folder: of this cache alone.
        facts: what it must be of.
        blocks_NS: the text, int64 [N, S].

    Raises:
        InputError: the folder holds a cache of something else, what differs is named; or the disk has no room for it.
    """
    path, size = folder / _FACTS_FILE, facts.bytes
    if path.is_file():
        _check_facts(path, facts)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        _reserve(folder / _ROWS_FILE, size)
        write_atomically(path, json.dumps(asdict(facts), indent=2) + "\n")
    rows = folder / _ROWS_FILE
    if not rows.is_file() or rows.stat().st_size != size:
        raise InputError(f"{rows} is not the file that {path} describes; delete the folder to fill the cache again")
    return TeacherCache(folder, facts, blocks_NS)


def cache_facts(
    teacher: nn.Module,
    configuration: dict[str, Any],
    vocabulary: dict[str, int],
    blocks_NS: Tensor,
    *,
    kept: int,
    temperature: float,
    precision: str,
) -> CacheFacts:
    """The facts of a teacher and a text.

    Args:
        teacher: its parameters are hashed.
        configuration: of its architecture.
        vocabulary: from tokens to ids.
        blocks_NS: the text, int64 [N, S].
        kept, temperature, precision: as in `CacheFacts`.
    """
    weights = hashlib.sha256(json.dumps(configuration, sort_keys=True, default=str).encode())
    for name, parameter in teacher.named_parameters():
        weights.update(name.encode())
        weights.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    blocks, tokens = blocks_NS.shape
    return CacheFacts(
        teacher=weights.hexdigest(),
        tokenizer=hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest(),
        text=hashlib.sha256(blocks_NS.numpy().tobytes()).hexdigest(),
        blocks=blocks,
        tokens=tokens,
        kept=kept,
        temperature=temperature,
        precision=precision,
    )


def _reserve(path: Path, size: int) -> None:
    """A file of zeros whose place on the disk is taken, so that no row meets a full disk."""
    try:
        with path.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise InputError(
            f"distill.cache '{path.parent}' takes {size / 1e9:.2f} GB, which its disk does not give "
            f"({error.strerror}): give a smaller distill.cache_top_k, or less text (data.documents)"
        ) from error


def _check_facts(path: Path, facts: CacheFacts) -> None:
    try:
        stored = json.loads(path.read_text())
        differing = [name for name, value in asdict(facts).items() if stored[name] != value]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); delete the folder to fill the cache again") from error
    if differing:
        raise InputError(
            f"distill.cache '{path.parent}' is of another {', '.join(differing)} than this run: give another folder, "
            "or delete it"
        )


def _row_type(facts: CacheFacts) -> np.dtype:
    predicted = facts.tokens - 1
    return np.dtype(
        [
            ("ids", np.int32, (predicted, facts.kept)),
            ("log_probs", np.float32, (predicted, facts.kept + 1)),
            ("checksum", np.uint32),
        ]
    )


@torch.no_grad()
def _most_probable(logits_PV: Tensor, facts: CacheFacts) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The K most probable ids, and their log-probabilities with that of all others behind them."""
    log_probs_PV = (logits_PV.float() / facts.temperature).log_softmax(dim=-1)
    log_probs_PK, ids_PK = log_probs_PV.topk(facts.kept, dim=-1)
    others_P1 = log_probs_PV.scatter(1, ids_PK, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return ids_PK.int().cpu().numpy(), torch.cat([log_probs_PK, others_P1], dim=1).cpu().numpy()


def _checksum(row: NDArray[Any]) -> int:
    return zlib.crc32(row["log_probs"].tobytes(), zlib.crc32(row["ids"].tobytes())) or 1


def _key(ids_S: Tensor) -> bytes:
    return ids_S.cpu().numpy().tobytes()
