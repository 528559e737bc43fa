"""Runs one training: the Trainer with its arguments, logs, progress bar, checkpoints and resumption."""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..artifacts import InputError
from ..artifacts.text_cost import LOG_FILE
from ..console import console, progress
from ..data.rows import Rows
from .checkpoint import Checkpoint, checkpoints, open_latest
from .distill import Distillation
from .dynamics import SparsityConfig, UpdateReport
from .dynamics.callback import GraphCallback
from .dynamics.sparsifier import initial_masks
from .loop import MemoryLoop
from .settings import LoopPlan, RunSettings
from .snapshot import CheckpointPlan
from .trainer import SparseTrainer, world_size


@dataclass(frozen=True)
class Training:
    """What a task gives to be trained.

    `unit` names what `units_a_step` counts, such as tokens. `schedule` makes the learning-rate schedule; without it, it
    is a cosine after `warmup_steps`. `collate` makes a batch of what the data set gives for it. `inputs` is the data,
    for initial graphs of kind "csti". `in_memory` trains by `MemoryLoop` on one process, which takes a schedule, and no
    label smoothing; whatever else, the Trainer does.
    """

    model: nn.Module
    dataset: Dataset
    collate: Callable[[Any], Mapping[str, Tensor]]
    optimizer: Optimizer
    sparsity: SparsityConfig
    loop: LoopPlan
    unit: str
    units_a_step: float
    warmup_steps: int = 0
    schedule: Callable[[Optimizer], LambdaLR] | None = None
    inputs: ArrayLike | None = None
    label_smoothing: float = 0.0
    in_memory: bool = False
    distillation: Distillation | None = None


@dataclass(frozen=True)
class Trained:
    """What training leaves beside the model: masks, update reports, the log, and the seconds it took.

    `initial_masks` are there where a report was asked for.
    """

    masks: dict[str, Tensor]
    initial_masks: dict[str, Tensor]
    updates: list[UpdateReport]
    log: list[dict[str, Any]]
    seconds: float


def check_run(settings: RunSettings, sparsity: SparsityConfig) -> None:
    """Raise an InputError at once where a run could not begin, before data is loaded."""
    find_checkpoint(settings, sparsity)
    if sparsity.compute == "links" and world_size() > 1:
        raise InputError("sparsity.compute 'links' trains on one process; give sparsity.compute 'masked'")
    if settings.logging.wandb and find_spec("wandb") is None:
        raise InputError("logging.wandb needs the package 'wandb': pip install wandb")


def find_checkpoint(settings: RunSettings, sparsity: SparsityConfig) -> Checkpoint | None:
    """The checkpoint that a run is to go on from; None for a run from the start.

    Raises:
        InputError: it cannot go on, or a run from the start would lose the checkpoints of an earlier one.
    """
    if settings.resume:
        masks = sparsity.method != "dense"
        digest = settings.recipe_digest
        return open_latest(settings.checkpoints, recipe_digest=digest, world_size=world_size(), masks=masks)
    if settings.checkpoint.every and checkpoints(settings.checkpoints):
        raise InputError(
            f"{settings.checkpoints} holds checkpoints of a run that did not end; give --resume or delete them"
        )
    return None


def run_training(training: Training, settings: RunSettings | None) -> Trained:
    """Train a model in place. The same recipe gives the same bits on the same machine, resumed or not.

    Raises:
        InputError: see `find_checkpoint`, `SparsityConfig.for_run` and `Sparsifier`.
    """
    training = replace(training, sparsity=training.sparsity.for_run(training.loop.steps))
    checkpoint = None if settings is None else find_checkpoint(settings, training.sparsity)
    sparsity = GraphCallback(training.sparsity, inputs=training.inputs)
    report = settings is not None and settings.logging.report
    initial = initial_masks(training.model, training.sparsity, training.inputs) if report else {}
    started = time.perf_counter()
    with TemporaryDirectory() as scratch:
        loop = _memory_loop if training.in_memory and world_size() == 1 else _trainer
        log = loop(training, settings, sparsity, checkpoint, scratch)
    assert sparsity.sparsifier is not None
    sparsity.sparsifier.densify()
    return Trained(
        masks=sparsity.sparsifier.masks,
        initial_masks=initial,
        updates=sparsity.updates,
        log=log,
        seconds=time.perf_counter() - started,
    )


def _trainer(
    training: Training, settings: RunSettings | None, sparsity: GraphCallback, resumed: Checkpoint | None, scratch: str
) -> list[dict[str, Any]]:
    """Train by the Hugging Face Trainer; returns the log."""
    trainer = SparseTrainer(
        sparsity=sparsity,
        checkpoints=_checkpoint_plan(settings),
        model=training.model,
        args=_arguments(training, settings, scratch),
        train_dataset=training.dataset,
        data_collator=training.collate,
        optimizer=training.optimizer,
        schedule=None if training.schedule is None else training.schedule(training.optimizer),
        callbacks=_callbacks(training, settings, sparsity),
        distillation=training.distillation,
    )
    # The progress bar shows what PrinterCallback would print.
    trainer.remove_callback(PrinterCallback)
    trainer.resume(resumed)
    return [_without_estimates(record) for record in trainer.state.log_history]


def _memory_loop(
    training: Training, settings: RunSettings | None, sparsity: GraphCallback, resumed: Checkpoint | None, scratch: str
) -> list[dict[str, Any]]:
    """Train without the Trainer; returns the log."""
    assert training.schedule is not None and isinstance(training.dataset, Rows)
    loop = MemoryLoop(
        model=training.model,
        rows=training.dataset,
        optimizer=training.optimizer,
        schedule=training.schedule(training.optimizer),
        plan=training.loop,
        arguments=_arguments(training, settings, scratch),
        graphs=sparsity,
        callbacks=_callbacks(training, settings, sparsity),
        checkpoints=_checkpoint_plan(settings),
    )
    return loop.train(resumed)


def _without_estimates(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "total_flos"}


def _checkpoint_plan(settings: RunSettings | None) -> CheckpointPlan | None:
    if settings is None or not settings.checkpoint.every:
        return None
    return CheckpointPlan(settings.checkpoints, settings.recipe_digest, settings.checkpoint.keep)


def _arguments(training: Training, settings: RunSettings | None, scratch: str) -> TrainingArguments:
    plan = training.loop
    every = settings.checkpoint.every if settings is not None else 0
    # Without being told, the Trainer takes processes without accelerators for unrelated ones, and refuses bfloat16.
    on_cpu = not torch.accelerator.is_available()
    return TrainingArguments(
        output_dir=scratch,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and world_size() > 1 else None,
        ddp_find_unused_parameters=False,
        max_steps=plan.steps,
        per_device_train_batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.accumulate,
        bf16=plan.precision == "bfloat16",
        learning_rate=training.optimizer.param_groups[-1]["lr"],
        lr_scheduler_type="cosine",
        warmup_steps=training.warmup_steps,
        max_grad_norm=plan.max_grad_norm,
        label_smoothing_factor=training.label_smoothing,
        logging_steps=plan.log_every,
        logging_nan_inf_filter=False,
        seed=plan.seed,
        save_strategy="steps" if every else "no",
        save_steps=every or 1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _callbacks(training: Training, settings: RunSettings | None, sparsity: GraphCallback) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [_ProgressCallback(sparsity, training.unit, training.units_a_step)]
    if settings is None:
        return callbacks
    if settings.checkpoint.every or settings.logging.tensorboard:
        callbacks.append(_JsonlCallback(settings))
    if settings.logging.tensorboard:
        callbacks.append(_TensorBoardCallback(settings))
    if settings.logging.wandb:
        callbacks.append(_wandb_callback(settings.logging.wandb))
    return callbacks


LINE_SECONDS = 10.0
"""Between the lines that show how far a training is where the output is no terminal."""


@dataclass
class _ProgressCallback(TrainerCallback):
    """A progress bar with loss, density and speed; where the output is no terminal, a line now and then."""

    sparsity: GraphCallback
    unit: str
    units_a_step: float
    started: float = field(default_factory=time.perf_counter)
    first_step: int = 0
    facts: str = ""
    told: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.bar = progress("[cyan]{task.fields[facts]}")

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the bar."""
        self.started, self.first_step = time.perf_counter(), state.global_step
        self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step, facts="")
        if state.is_local_process_zero:
            self.bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar, or say where it would be."""
        self.bar.update(self.task, completed=state.global_step)
        now = time.perf_counter()
        if not console.is_terminal and state.is_local_process_zero and now - self.told >= LINE_SECONDS:
            self.told = now
            facts = f", {self.facts}" if self.facts else ""
            console.print(f"{now - self.started:.0f} s: {state.global_step} of {state.max_steps} steps{facts}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the newest loss, and keep density and speed with it in the log."""
        if not logs or "loss" not in logs or self.sparsity.sparsifier is None:
            return
        steps = state.global_step - self.first_step
        speed = steps * self.units_a_step / (time.perf_counter() - self.started)
        density = self.sparsity.sparsifier.density
        added = {"density": density, f"{self.unit}_per_second": speed}
        state.log_history[-1] |= added
        logs |= added
        loss = float(logs["loss"])
        self.facts = f"loss {loss:.2f}, density {density:.2f}, {speed:,.0f} {self.unit}/s"
        self.bar.update(self.task, facts=self.facts)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        self.bar.stop()


class _JsonlCallback(TrainerCallback):
    """Appends every new record of the log to `OUT.run/training.jsonl` while training goes on."""

    def __init__(self, settings: RunSettings) -> None:
        self._path = settings.folder / LOG_FILE
        self._written = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin the file, or, resumed, write again what the checkpoint knows."""
        if state.is_world_process_zero:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text("")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write what is new."""
        if state.is_world_process_zero and len(state.log_history) > self._written:
            with self._path.open("a") as stream:
                stream.writelines(json.dumps(record) + "\n" for record in state.log_history[self._written :])
            self._written = len(state.log_history)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the rest."""
        self.on_step_end(args, state, control)


class _TensorBoardCallback(TrainerCallback):
    """Writes losses, densities and the facts of updates as scalars."""

    def __init__(self, settings: RunSettings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer_class, self._folder = SummaryWriter, settings.folder / "tensorboard"
        self._writer: Any = None
        self._written = 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write what is new in the log."""
        if not state.is_world_process_zero:
            return
        self._writer = self._writer or self._writer_class(str(self._folder))
        for record in state.log_history[self._written :]:
            for name, value in record.items():
                if isinstance(value, int | float) and name not in ("step", "sparsity/step"):
                    self._writer.add_scalar(name, value, record.get("step", record.get("sparsity/step")))
        self._written = len(state.log_history)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the rest and close."""
        self.on_step_end(args, state, control)
        if self._writer is not None:
            self._writer.close()


def _wandb_callback(project: str) -> TrainerCallback:
    from transformers.integrations import WandbCallback

    os.environ.setdefault("WANDB_PROJECT", project)
    return WandbCallback()
