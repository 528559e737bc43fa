"""What the benchmark of linear layers measures, and in which order: what tells most comes first.

The order matters where the time is short: one token at a medium density in the first value type says more than 256
tokens at an extreme one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from ..artifacts import InputError
from ..export.layouts import VALUE_TYPES
from .peers import dense_peer_names, sparse_peer_names


@dataclass(frozen=True)
class LinearCases:
    """What to time: all combinations. Shapes are (out_features, in_features); `peers`: other libraries too."""

    shapes: tuple[tuple[int, int], ...] = ((2048, 2048),)
    densities: tuple[float, ...] = (0.3, 0.1, 0.05, 0.01)
    tokens: tuple[int, ...] = (1, 8, 64, 256)
    values: tuple[str, ...] = ("float32", "bfloat16", "int8")
    threads: tuple[int, ...] = (1,)
    peers: bool = False

    def __post_init__(self) -> None:
        for name in ("shapes", "densities", "tokens", "values", "threads"):
            if not getattr(self, name):
                raise InputError(f"--{name} is empty")
        if any(size < 1 for shape in self.shapes for size in shape):
            raise InputError(f"--shapes: sizes must be at least 1, not {self.shapes}")
        if not all(0 < density <= 1 for density in self.densities):
            raise InputError(f"--densities: each must be in (0, 1], not {self.densities}")
        if min(*self.tokens, *self.threads, 1) < 1:
            raise InputError("--tokens and --threads must be at least 1")
        if unknown := set(self.values) - set(VALUE_TYPES):
            raise InputError(f"--values: '{sorted(unknown)[0]}' is none of {', '.join(VALUE_TYPES)}")


@dataclass(frozen=True)
class Cell:
    """What is built once and then timed at one number of tokens after another, beside dense layers of its shape.

    Attributes:
        shape: (out_features, in_features).
        threads: of ONNX Runtime, or of the peer.
        density: share of links; 1 for a dense peer.
        what: a value type, or a peer's name.
        is_peer: which of the two.
        tokens: a row for each.
    """

    shape: tuple[int, int]
    threads: int
    density: float
    what: str
    is_peer: bool
    tokens: tuple[int, ...]


def plan_cells(cases: LinearCases) -> list[Cell]:
    """All cells: everything at the least number of tokens before the others, and our layers before their peers."""
    least, *others = sorted(set(cases.tokens))
    rounds = [(least,), tuple(others)] if others else [(least,)]
    return [cell for tokens in rounds for is_peer in (False, True) for cell in _cells(cases, tokens, is_peer)]


def count_rows(cells: Iterable[Cell]) -> int:
    """Rows that the cells give, one for each of their numbers of tokens."""
    return sum(len(cell.tokens) for cell in cells)


def _cells(cases: LinearCases, tokens: tuple[int, ...], is_peer: bool) -> Iterator[Cell]:
    for shape, threads in product(dict.fromkeys(cases.shapes), dict.fromkeys(cases.threads)):
        candidates = _peers(cases, threads) if is_peer else _layers(cases)
        for what, density in candidates:
            yield Cell(shape, threads, density, what, is_peer, tokens)


def _layers(cases: LinearCases) -> list[tuple[str, float]]:
    """Value types and densities, from the first type at the median density to the last at the extremes."""
    densities = _from_the_middle(cases.densities)
    pairs = product(enumerate(dict.fromkeys(cases.values)), enumerate(densities))
    ranked = sorted((i + j, i, values, density) for (i, values), (j, density) in pairs)
    return [(values, density) for _, _, values, density in ranked]


def _peers(cases: LinearCases, threads: int) -> list[tuple[str, float]]:
    if not cases.peers:
        return []
    densities = _from_the_middle(cases.densities)
    sparse = [(name, density) for density in densities for name in sparse_peer_names(threads)]
    return [(name, 1.0) for name in dense_peer_names()] + sparse


def _from_the_middle(densities: Sequence[float]) -> list[float]:
    falling = sorted(set(densities), reverse=True)
    middle = (len(falling) - 1) // 2
    return [density for _, density in sorted(enumerate(falling), key=lambda pair: abs(pair[0] - middle))]
