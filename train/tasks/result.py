"""What every task returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..dynamics import UpdateReport
from ..training import Trained


@dataclass(frozen=True)
class TrainingResult:
    """A trained model.

    `tokenizer` is None where the task has none. `facts` are the task's figures, such as test accuracy, as JSON values;
    `summary` says in a line what was done.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    trained: Trained
    summary: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def masks(self) -> dict[str, Tensor]:
        """bool [N, K] by layer; empty for a dense model."""
        return self.trained.masks

    @property
    def updates(self) -> list[UpdateReport]:
        """A report of each topology update."""
        return self.trained.updates

    @property
    def log(self) -> list[dict[str, Any]]:
        """Loss, density and update records."""
        return self.trained.log

    @property
    def seconds(self) -> float:
        """The time that training took."""
        return self.trained.seconds
