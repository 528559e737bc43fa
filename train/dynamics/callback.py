"""The Sparsifier as a callback of the Hugging Face Trainer."""

from dataclasses import asdict
from typing import Any

from numpy.typing import ArrayLike
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .config import SparsityConfig
from .sparsifier import Sparsifier
from .update import UpdateReport


class SparsityCallback(TrainerCallback):
    """Trains a model sparse under the Hugging Face Trainer: `Trainer(..., callbacks=[SparsityCallback(config)])`.

    `sparsifier` is there from the start of training on; `updates` holds a report of each topology update.
    """

    def __init__(self, config: SparsityConfig, *, inputs: ArrayLike | None = None) -> None:
        """`inputs` is the data, float [samples, features], for initial graphs of kind "csti"."""
        self.config = config
        self._inputs = inputs
        self._state: dict[str, Any] | None = None
        self.sparsifier: Sparsifier | None = None
        self.updates: list[UpdateReport] = []

    def resume(self, state: dict[str, Any], updates: list[UpdateReport]) -> None:
        """Go on from the state of a sparsifier and the reports of its updates, when training begins."""
        self._state, self.updates = state, list(updates)

    def start(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Put the graphs on the model and watch its optimizer. Training begins with that, where it was not done before.

        Layers of links must be there before the weights of a checkpoint can go into them.
        """
        self.sparsifier = Sparsifier(model, self.config, self._state, inputs=self._inputs)
        # accelerate wraps the optimizer; the hooks must sit on the one that steps.
        self.sparsifier.attach(getattr(optimizer, "optimizer", optimizer))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """See `start`."""
        assert model is not None and optimizer is not None
        if self.sparsifier is None:
            self.start(model, optimizer)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step; keep and log the report of an update."""
        assert self.sparsifier is not None
        report = self.sparsifier.step()
        if report is not None:
            self.updates.append(report)
            state.log_history.append({f"sparsity/{name}": value for name, value in asdict(report).items()})
