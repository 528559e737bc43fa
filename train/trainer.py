"""The engine of every task: the Hugging Face Trainer, with sparse layers and checkpoints that resume bit for bit.

`torchrun` makes it distributed (DDP); `accelerate launch` with an FSDP2 configuration splits the weights.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from ..artifacts.masks import load_masks, save_masks
from .checkpoint import Checkpoint, CheckpointFacts, write_checkpoint
from .dynamics.callback import GraphCallback
from .dynamics.update import UpdateReport
from .state import (
    load_model_tensors,
    load_optimizer_state,
    load_random_state,
    model_tensors,
    optimizer_state,
    own_random_state,
    random_states_of_all,
)

TRAINER_STATE_FILE = "trainer_state.json"
MASK_PARTS = ("masks", "ever", "grown")


@dataclass(frozen=True)
class CheckpointPlan:
    """Where checkpoints go, of which recipe, and how many stay."""

    folder: Path
    recipe_digest: str
    keep: int


class SparseTrainer(Trainer):
    """A Trainer whose checkpoints are ours: safetensors and JSON, masks included, atomic.

    It overrides the five methods through which the Trainer writes and reads its state, and two whose cost in each step
    is above that of a sparse one.
    """

    def __init__(
        self,
        *,
        sparsity: GraphCallback,
        checkpoints: CheckpointPlan | None,
        optimizer: Optimizer,
        schedule: LambdaLR | None,
        **arguments: Any,
    ) -> None:
        """`sparsity` joins the callbacks; without a `schedule`, it is the arguments'. The rest is the Trainer's."""
        callbacks = [sparsity, *arguments.pop("callbacks", [])]
        super().__init__(callbacks=callbacks, **arguments)
        # Given to the Trainer's own constructor, they would be refused under FSDP.
        self.optimizer, self.lr_scheduler = optimizer, schedule
        self._sparsity = sparsity
        self._checkpoints = checkpoints
        self._resumed: Checkpoint | None = None

    def resume(self, checkpoint: Checkpoint | None) -> None:
        """Train, going on from a checkpoint where there is one."""
        self._resumed = checkpoint
        if checkpoint is not None:
            self._sparsity.resume(_sparsity_state(checkpoint), _reports(checkpoint))
        if self._sparsity.config.compute == "links":
            assert self.model is not None and self.optimizer is not None
            self._sparsity.start(self.model, self.optimizer)
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.path))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        del trial
        assert self._checkpoints is not None and self._sparsity.sparsifier is not None
        assert self.lr_scheduler is not None
        unwrapped = self.accelerator.unwrap_model(model)
        weights = model_tensors(unwrapped)
        moments, optimizer = optimizer_state(unwrapped, _inner(self.optimizer))
        generators = random_states_of_all()
        sparsity = self._sparsity.sparsifier.state_dict()
        values = {
            "optimizer": optimizer,
            "scheduler": self.lr_scheduler.state_dict(),
            "sparsity": {"steps": sparsity["steps"], "stopped": sparsity["stopped"]},
            "updates": [asdict(report) for report in self._sparsity.updates],
        }
        if self.is_world_process_zero():
            digest = self._checkpoints.recipe_digest
            facts = CheckpointFacts(self.state.global_step, digest, self.args.world_size, values)
            with write_checkpoint(self._checkpoints.folder, facts, self._checkpoints.keep) as writer:
                writer.tensors("model", weights)
                writer.tensors("optimizer", moments)
                writer.tensors("random", generators)
                for part in MASK_PARTS if sparsity["masks"] else ():
                    arrays = {name: mask.cpu().numpy() for name, mask in sparsity[part].items()}
                    save_masks(writer.path(part), arrays)
                self.state.save_to_json(str(writer.directory / TRAINER_STATE_FILE))
        if dist.is_initialized():
            dist.barrier()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        del resume_from_checkpoint
        assert self._resumed is not None
        load_model_tensors(self.accelerator.unwrap_model(model or self.model), self._resumed.tensors("model"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self._resumed is None:
            return
        assert self.lr_scheduler is not None
        values = self._resumed.facts.values
        model = self.accelerator.unwrap_model(self.model)
        load_optimizer_state(model, _inner(self.optimizer), self._resumed.tensors("optimizer"), values["optimizer"])
        self.lr_scheduler.load_state_dict(values["scheduler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._resumed is not None:
            load_random_state(own_random_state(self._resumed.tensors("random")))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """There is none: float16, which needs one, is not offered."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: it would walk over all modules in every step, to count what a dense model does."""
        return 0

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm that clipping has found; without clipping, the one that a step's record shows, at those steps."""
        if grad_norm is None and (self.state.global_step + 1) % int(self.args.logging_steps):
            return None
        return super()._get_grad_norm(model, grad_norm)


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer that accelerate has wrapped."""
    return getattr(optimizer, "optimizer", optimizer)


def _sparsity_state(checkpoint: Checkpoint) -> dict[str, Any]:
    state: dict[str, Any] = dict(checkpoint.facts.values["sparsity"])
    for part in MASK_PARTS:
        state[part] = _masks(checkpoint, part) if checkpoint.has(part) else {}
    return state


def _masks(checkpoint: Checkpoint, part: str) -> dict[str, torch.Tensor]:
    masks = load_masks(checkpoint.path / f"{part}.safetensors")
    return {layer: torch.from_numpy(mask_NK) for layer, mask_NK in masks.items()}


def _reports(checkpoint: Checkpoint) -> list[UpdateReport]:
    return [UpdateReport(**report) for report in checkpoint.facts.values["updates"]]


def world_size() -> int:
    """The processes of this run, before the process group is there."""
    return int(os.environ.get("WORLD_SIZE", "1"))
