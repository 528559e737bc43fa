"""The Sparsifier as a callback of the Hugging Face Trainer."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any
from weakref import ref

from numpy.typing import ArrayLike
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ...artifacts import InputError
from .config import SparsityConfig
from .exported import export_graphs, import_graphs, stop_of
from .promise import shortfall
from .sections import build_section
from .sparsifier import Sparsifier
from .update import UpdateReport


class GraphCallback(TrainerCallback):
    """Puts a sparsifier through the steps of a Trainer. Whoever makes it sees to checkpoints.

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
        self.sparsifier.attach(optimizer)

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


class SparsityCallback(GraphCallback, ExportableState):
    """Trains a model sparse under the Hugging Face Trainer: `Trainer(..., callbacks=[SparsityCallback(config)])`.

    The Trainer's checkpoints hold the graphs too, in `trainer_state.json`: a run that goes on from one ends in the same
    bits as one that was not cut. `update.stop`, where left out, follows from the Trainer's steps. `sparsifier` is there
    from the start of training on; `updates` holds a report of each topology update.
    """

    def __init__(self, config: SparsityConfig | Mapping[str, Any], *, inputs: ArrayLike | None = None) -> None:
        """`inputs` is the data, float [samples, features], for initial graphs of kind "csti"."""
        super().__init__(build_section("sparsity", SparsityConfig, config), inputs=inputs)
        self._given = self.config
        self._model: ref[nn.Module] | None = None

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into its checkpoints: how to make this callback, and its graphs."""
        graphs = None if self.sparsifier is None else export_graphs(self.sparsifier, self.updates)
        return {"args": {"config": asdict(self._given)}, "attributes": {}, "graphs": graphs}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Put the graphs on the model, or go on with those of the checkpoint that training goes on from.

        Raises:
            InputError: see `Sparsifier` and `SparsityConfig.for_run`; the checkpoint holds no graphs, or cannot be gone
                on from; the model was already trained by this callback; or the Trainer is to end with the weights of an
                earlier step.
        """
        assert model is not None and optimizer is not None
        graphs = self._graphs_of(state)
        self.config = self._config_for(state, graphs)
        if args.load_best_model_at_end and self.config.changes:
            raise InputError(
                "load_best_model_at_end would put the weights of an earlier step under the graphs of the last one: "
                "leave it out, or train by method 'static'"
            )
        if self.sparsifier is None or self._model is None or self._model() is not model:
            self._state, self.updates = (None, []) if graphs is None else import_graphs(graphs)
            self._model = ref(model)
            self.start(model, optimizer)
            return
        if graphs is not None:
            links, self.updates = import_graphs(graphs)
            self.sparsifier.load_state_dict(links)
        elif self.sparsifier.steps:
            raise InputError(
                f"this SparsityCallback has trained the model for {self.sparsifier.steps} steps, and training would "
                "begin again: resume from a checkpoint, or load the weights into a new model with a callback of its own"
            )
        self.sparsifier.attach(optimizer)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Say where training was stopped before its last update."""
        assert model is not None and self.sparsifier is not None
        if missed := shortfall(model, self.sparsifier.masks):
            warnings.warn(f"training has ended at step {state.global_step}: {missed}", stacklevel=2)

    def _config_for(self, state: TrainerState, graphs: Mapping[str, Any] | None) -> SparsityConfig:
        """The configuration of this run; a run that goes on keeps to the last update that it began with."""
        config = self._given
        if graphs is not None and config.update.stop is None:
            config = replace(config, update=replace(config.update, stop=stop_of(graphs)))
        return config.for_run(state.max_steps)

    def _graphs_of(self, state: TrainerState) -> Mapping[str, Any] | None:
        """What `state` wrote of the graphs into the checkpoint that training goes on from; None at a start."""
        if not state.global_step:
            return None
        stored: Any = state.stateful_callbacks or {}
        saved = stored.get(type(self).__name__)
        if isinstance(saved, list):
            raise InputError("a run with several SparsityCallbacks cannot go on from a checkpoint; give groups to one")
        if not saved or not saved.get("graphs"):
            raise InputError(
                f"the checkpoint of step {state.global_step} holds no graphs to go on with; to make its weights "
                "sparse, load them with from_pretrained and begin a new run"
            )
        if self._given.compute == "links":
            raise InputError(
                "sparsity.compute 'links': the Trainer's checkpoints hold no dense weights, and a run cannot go on "
                "from them; give sparsity.compute 'masked'"
            )
        graphs: Mapping[str, Any] = saved["graphs"]
        return graphs
