"""The measurements that a cost table was fitted to: lines of JSON, appended as they are made, so that a run resumes."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ...artifacts import InputError
from ...kernels.cost import Work


@dataclass(frozen=True)
class Sample:
    """One call, timed.

    Attributes:
        isa, family, values, blocks: as `CostCell`.
        out_features, in_features, links: of the layer.
        density: that was asked for.
        tokens: of the call.
        cached: the weight was found in a cache.
        us: median microseconds of a layer.
        dense_us: those of ONNX Runtime's dense float32 layer, in the same rounds.
    """

    isa: str
    family: str
    values: str
    out_features: int
    in_features: int
    density: float
    blocks: bool
    links: int
    tokens: int
    cached: bool
    us: float
    dense_us: float

    @property
    def work(self) -> Work:
        """The layer as the cost model knows it."""
        return Work(self.out_features, self.in_features, self.links, self.values, self.blocks)

    @property
    def layer(self) -> tuple[int, int, float, str, bool, int, bool]:
        """What samples of different families have in common."""
        shape = (self.out_features, self.in_features)
        return (*shape, self.density, self.values, self.blocks, self.tokens, self.cached)


class Ledger:
    """The samples of one instruction set, in a file that is created when the first is added."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def samples(self) -> list[Sample]:
        """All of them; InputError where a line is not a sample."""
        if not self._path.is_file():
            return []
        samples = []
        for number, line in enumerate(self._path.read_text().splitlines(), 1):
            try:
                samples.append(Sample(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise InputError(f"{self._path}, line {number}: not a sample of the cost model: {error}") from error
        return samples

    def add(self, samples: Iterable[Sample]) -> None:
        """Append samples."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as stream:
            stream.writelines(json.dumps(asdict(sample)) + "\n" for sample in samples)
