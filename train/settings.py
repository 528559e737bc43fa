"""Settings that the recipes of all tasks share."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from ..artifacts import InputError


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints to resume from, in the folder `OUT.run/checkpoints` beside the model directory.

    Args:
        every: optimizer steps between checkpoints; 0 for none.
        keep: how many of the newest stay.
    """

    every: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        if self.every < 0 or self.keep < 1:
            raise InputError("checkpoint.every must be at least 0 and checkpoint.keep at least 1")


@dataclass(frozen=True)
class LoggingConfig:
    """What is recorded beside `training.jsonl`, which always is.

    Args:
        report: measure the graphs before and after, and write training_report.html into the model directory.
        tensorboard: write event files to the folder `OUT.run/tensorboard`.
        wandb: log to this project of Weights & Biases, whose package must be installed; empty for none.
    """

    report: bool = False
    tensorboard: bool = False
    wandb: str = ""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What the optimization sections of all tasks share.

    Args:
        max_grad_norm: gradients are clipped to this norm; 0 for no clipping.
        log_every: steps between entries of the log.
        seed: of weights, dropout and data order.
        accumulate: batches a step; the batch of the recipe is one of them, on one process.
        precision: of products: "float32", or "bfloat16" with float32 weights.
    """

    max_grad_norm: float = 0.0
    log_every: int = 100
    seed: int = 0
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("log_every", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"optimization.{name} must be at least 1")

    def loop_plan(self, *, steps: int, batch_size: int) -> "LoopPlan":
        """What the training loop is told."""
        shared = {part.name: getattr(self, part.name) for part in fields(LoopConfig)}
        return LoopPlan(steps=steps, batch_size=batch_size, **shared)


@dataclass(frozen=True, kw_only=True)
class LoopPlan(LoopConfig):
    """What the training loop is told of a run: the shared settings, optimizer steps, items of the data set a batch."""

    steps: int
    batch_size: int


@dataclass(frozen=True)
class RunSettings:
    """How a recipe is run.

    Args:
        out: the model directory to be.
        recipe_digest: SHA-256 of what the recipe says of the result.
        checkpoint: when to save.
        logging: what to record.
        resume: go on from the newest checkpoint.
    """

    out: Path
    recipe_digest: str = ""
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    resume: bool = False

    @property
    def folder(self) -> Path:
        """Of what a run leaves beside the model directory."""
        return self.out.with_name(f"{self.out.name}.run")

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"
