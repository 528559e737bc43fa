"""The training loop over examples that lie in memory, on one process, for steps that are small.

The Trainer's loop costs some milliseconds a step: a data loader, accelerate's wrappers, and callbacks for events that
nobody listens to. A step of a sparse perceptron is done in less. The callbacks here are the Trainer's all the same, of
which those at the beginning and end of training, at a step's end, and at an entry of the log are called; and the
checkpoints are the same.

Legend: B examples of a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.rows import Rows
from .checkpoint import Checkpoint
from .dynamics.callback import GraphCallback
from .settings import LoopPlan
from .snapshot import TRAINER_STATE_FILE, CheckpointPlan, Snapshot, resume_graphs
from .state import load_random_state, own_random_state


@dataclass
class MemoryLoop:
    """Trains a model, whose forward takes the fields of `rows` and gives a `loss`, the mean over a batch.

    `callbacks` are beside `graphs`, which comes first. Checkpoints are written every `arguments.save_steps`, where
    there is a plan for them.
    """

    model: nn.Module
    rows: Rows
    optimizer: Optimizer
    schedule: LambdaLR
    plan: LoopPlan
    arguments: TrainingArguments
    graphs: GraphCallback
    callbacks: Sequence[TrainerCallback]
    checkpoints: CheckpointPlan | None

    def train(self, resumed: Checkpoint | None = None) -> list[dict[str, Any]]:
        """Train, going on from a checkpoint where there is one; returns the log.

        The same seed gives the same bits on the same machine, resumed or not.
        """
        self._state = TrainerState(max_steps=self.plan.steps, save_steps=int(self.arguments.save_steps))
        self._control = TrainerControl()
        self._begin(resumed)
        self._call("on_train_begin")
        self._loss, self._losses = torch.zeros((), device=self.arguments.device), 0
        for step, batch in enumerate(self._batches(self._state.global_step), start=self._state.global_step + 1):
            norm = self._step(batch)
            self._state.global_step = step
            self._state.epoch = self._epoch
            self._call("on_step_end")
            if step % self.plan.log_every == 0:
                self._log(norm)
            if self.checkpoints is not None and step % self.arguments.save_steps == 0:
                self._snapshot().write(self.checkpoints, 1)
            if self._control.should_training_stop:
                break
        self._call("on_train_end")
        return self._state.log_history

    def _begin(self, resumed: Checkpoint | None) -> None:
        self.model.to(self.arguments.device).train()
        self._fields = {name: values.to(self.arguments.device) for name, values in self.rows.fields.items()}
        if resumed is None:
            self.graphs.start(self.model, self.optimizer)
            return
        resume_graphs(self.graphs, resumed)
        self._state = TrainerState.load_from_json(str(resumed.path / TRAINER_STATE_FILE))
        self.graphs.start(self.model, self.optimizer)
        self._snapshot().read_weights(resumed)
        self._snapshot().read_optimizer(resumed)
        load_random_state(own_random_state(resumed.tensors("random")))

    @property
    def _batch(self) -> int:
        return self.plan.batch_size * self.plan.accumulate

    @property
    def _steps_an_epoch(self) -> int:
        return -(-len(self.rows) // self._batch)

    @property
    def _epoch(self) -> float:
        return self._state.global_step / self._steps_an_epoch

    def _batches(self, done: int) -> Iterator[Tensor]:
        """The examples [B] of each step after the first `done`. The order of an epoch follows from its number."""
        for epoch in range(done // self._steps_an_epoch, -(-self.plan.steps // self._steps_an_epoch)):
            generator = torch.Generator().manual_seed((self.plan.seed << 20) + epoch)
            order = torch.randperm(len(self.rows), generator=generator).to(self.arguments.device)
            first = epoch * self._steps_an_epoch
            for step, examples_B in enumerate(order.split(self._batch), start=first):
                if done <= step < self.plan.steps:
                    yield examples_B

    def _step(self, examples_B: Tensor) -> Tensor | None:
        """One optimizer step. Returns the norm of the gradients, where it was to be found."""
        parts = examples_B.split(self.plan.batch_size)
        for part_B in parts:
            with torch.autocast(self.arguments.device.type, torch.bfloat16, enabled=self._halves):
                loss = self.model(**{name: values[part_B] for name, values in self._fields.items()}).loss / len(parts)
            loss.backward()
            self._loss += loss.detach()
        self._losses += 1
        norm = self._norm()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return norm

    @property
    def _halves(self) -> bool:
        return self.plan.precision == "bfloat16"

    def _norm(self) -> Tensor | None:
        """Clips the gradients where it is asked for; otherwise their norm is found for entries of the log alone."""
        parameters = self.model.parameters()
        if self.plan.max_grad_norm:
            return nn.utils.clip_grad_norm_(parameters, self.plan.max_grad_norm)
        if (self._state.global_step + 1) % self.plan.log_every:
            return None
        return nn.utils.get_total_norm([value.grad for value in parameters if value.grad is not None])

    def _log(self, norm: Tensor | None) -> None:
        logs: dict[str, float] = {
            "loss": float(self._loss) / self._losses,
            "learning_rate": float(self.schedule.get_last_lr()[0]),
        }
        if norm is not None:
            logs["grad_norm"] = float(norm)
        self._loss.zero_()
        self._losses = 0
        record: dict[str, float] = {**logs, "epoch": self._epoch, "step": self._state.global_step}
        self._state.log_history.append(record)
        self._call("on_log", logs=logs)

    def _call(self, event: str, **more: Any) -> None:
        for callback in (self.graphs, *self.callbacks):
            method = getattr(callback, event)
            method(self.arguments, self._state, self._control, model=self.model, optimizer=self.optimizer, **more)

    def _snapshot(self) -> Snapshot:
        return Snapshot(self.model, self.optimizer, self.schedule, self.graphs, self._state)
