"""The time of a whole model before and after, measured here: the figure that the others are promises of.

Both run in ONNX Runtime with its fusions, on one thread, the packed one with the op library. They take turns, and the
medians are compared.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from ...kernels.isa import kernels_isa
from ..layouts import Objective
from .inputs import NoInputsError, feeds_of_sizes, graph_inputs

_SIZES: dict[Objective, tuple[tuple[int, int], ...]] = {
    "latency": ((1, 16), (1, 32), (1, 224), (1, 512), (1, 640), (1, 1)),
    "throughput": ((8, 64), (8, 32), (4, 224), (1, 512), (1, 640), (64, 64)),
    "size": ((1, 16), (1, 32), (1, 224), (1, 512), (1, 640), (1, 1)),
}
"""Sizes to try: of the first dimension of an input, which is most often the batch, and of other free ones."""
_IMAGES = ((1, 320, None), (1, 224, None), (1, 640, None), (1, 48, 320), (1, 32, 320), (1, 32, None))
"""Tried first for an image, of which little can be said at a size of 16; the third is the width of a line of text."""
_MOST_COLOURS = 4
SECONDS = 20.0
"""About so long the two models are timed; where three rounds take three times as long, they are not."""


@dataclass(frozen=True)
class ModelSpeed:
    """Milliseconds of a run of the original and of the packed model with the op library: medians of `rounds`.

    `isa` is the instruction set of the kernels, `inputs` the shapes that were given. Times are None where nothing was
    measured; `note` says why.
    """

    original_ms: float | None
    packed_ms: float | None
    rounds: int
    isa: str
    inputs: str
    note: str

    @property
    def speedup(self) -> float | None:
        """Original over packed."""
        return None if self.original_ms is None or not self.packed_ms else self.original_ms / self.packed_ms

    @property
    def words(self) -> str:
        """One sentence."""
        if self.speedup is None:
            return f"the speed of the whole model was not measured: {self.note}"
        return (
            f"measured: {self.speedup:.2f} times as fast as the original, {self.packed_ms:.3g} ms and "
            f"{self.original_ms:.3g} ms ({self.isa}, one thread, {self.inputs}, median of {self.rounds})"
        )

    def to_json(self) -> dict[str, Any]:
        """The figures by name."""
        return asdict(self) | {"speedup": self.speedup}


def not_measured(why: str) -> ModelSpeed:
    """What is reported where there is no figure."""
    return ModelSpeed(None, None, 0, "", "", why)


def timing_feeds(proto: ModelProto, objective: Objective) -> list[dict[str, NDArray]]:
    """Inputs to time a model on, in the order to try them; none where they cannot be made up."""
    return list(_feeds(proto, objective))


def _feeds(proto: ModelProto, objective: Objective) -> Iterator[dict[str, NDArray]]:
    seen = set()
    images = _IMAGES if _takes_an_image(proto) else ()
    for leading, other, width in (*images, *((*pair, None) for pair in _SIZES[objective])):
        try:
            feeds = feeds_of_sizes(proto, leading, other, width)
        except NoInputsError:
            return
        shapes = tuple(array.shape for array in feeds.values())
        if shapes not in seen:
            seen.add(shapes)
            yield feeds


def _takes_an_image(proto: ModelProto) -> bool:
    """Whether one input, and no other, has four dimensions, and its second is that of colours."""
    dimensions = [value.type.tensor_type.shape.dim for value in graph_inputs(proto)]
    found = [item for item in dimensions if len(item) == 4]
    return len(found) == 1 and 1 <= found[0][1].dim_value <= _MOST_COLOURS


def save_timing_feeds(feeds: list[dict[str, NDArray]], scratch: Path) -> list[str]:
    """Files of the inputs, for the process that runs them."""
    paths = [str(scratch / f"timing_{place}.npz") for place in range(len(feeds))]
    for path, feed in zip(paths, feeds, strict=True):
        np.savez(path, *feed.values())
    return paths


def speed_of(answer: dict[str, Any]) -> ModelSpeed:
    """What the process answered, see `model_runs`."""
    timing = answer.get("timing")
    if timing is None or timing.get("error"):
        return not_measured((timing or {}).get("error") or "the model does not run on larger inputs")
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in timing["shapes"].items())
    first, second = (1e3 * float(np.median(seconds)) for seconds in timing["seconds"])
    return ModelSpeed(first, second, len(timing["seconds"][0]), kernels_isa(), f"inputs {shapes}", "")
