"""What an export reports: what became of each layer and why, and how exact the result is. `report_page` writes it.

Legend: N out_features, K in_features.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts.text_cost import TextCost, TrainedPerplexity
from .forecast import Forecast
from .layouts import Choice, Objective
from .passes.report import PassReport
from .quality import QualityFigures, Rounding
from .speed import MeasuredSpeed
from .verify import ParityFigures


@dataclass(frozen=True)
class LayerReport:
    """One projection: its size, how it is stored, and the reason for the choice."""

    name: str
    out_features: int
    in_features: int
    links: int
    density: float
    layout: str
    bytes: int
    dense_bytes: int
    reason: str


@dataclass(frozen=True)
class ExportReport:
    """The whole export.

    `masks` says where they came from; `file_bytes` counts the ONNX files, `dense_bytes` those of the same model dense;
    `stored` is what its numbers are stored as; `objective` is what layouts were chosen for;
    `passes` are those that changed the model before it was packed;
    `pruning` is what `prune` measured of the model, `training` what `train` did; `quality` is what rounded values cost;
    `forecast` is the predicted speed, None where there is no op library to predict with.
    """

    source: str
    masks: str
    layers: list[LayerReport]
    parity: ParityFigures
    file_bytes: int
    dense_bytes: int
    stored: Rounding
    objective: Objective = "latency"
    passes: tuple[PassReport, ...] = ()
    pruning: tuple[TextCost, ...] = ()
    training: TrainedPerplexity | None = None
    quality: QualityFigures | None = None
    engine_layers: tuple[LayerReport, ...] = ()
    """How an engine that comes with the ONNX holds each projection."""
    forecast: Forecast | None = None
    speed: MeasuredSpeed | None = None
    """What was measured here; None where there is no op library to measure with."""

    @property
    def density(self) -> float:
        """Links over possible links, of all projections together."""
        possible = sum(layer.out_features * layer.in_features for layer in self.layers)
        return sum(layer.links for layer in self.layers) / possible

    @property
    def beside_dense(self) -> str:
        """How good the model is beside a dense one, or what tells that where it is not known; "" where it is dense."""
        if self.pruning:
            return f"perplexity when it was pruned, {'; '.join(map(str, self.pruning))}"
        known = "" if self.training is None else f"perplexity of held-out text when it was trained: {self.training}"
        if self.density == 1 or (self.training is not None and self.training.before is not None):
            return known
        unknown = (
            "what its missing links cost is not known here: run `hebbline eval` on it and on a dense one, with the "
            "same --source"
        )
        return f"{known}; {unknown}" if known else unknown

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        quality = None if self.quality is None else self.quality.to_json()
        return asdict(self) | {"density": self.density, "quality": quality}


def layer_report(name: str, mask_NK: NDArray[np.bool_], choice: Choice) -> LayerReport:
    """The report's line on one layer."""
    out_features, in_features = mask_NK.shape
    links = int(np.count_nonzero(mask_NK))
    return LayerReport(
        name=name,
        out_features=out_features,
        in_features=in_features,
        links=links,
        density=links / mask_NK.size,
        layout=choice.layout.name if choice.layout is not None else "dense",
        bytes=choice.packed_bytes,
        dense_bytes=choice.dense_bytes,
        reason=choice.reason,
    )
