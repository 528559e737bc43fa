"""The Hugging Face Trainer with sparse layers: the loop of every task, with checkpoints that resume bit for bit.

`torchrun` makes it distributed (DDP); `accelerate launch` with an FSDP2 configuration splits the weights.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from .checkpoint import Checkpoint
from .distill import Distillation
from .dynamics.callback import GraphCallback
from .snapshot import CheckpointPlan, Snapshot, resume_graphs
from .state import load_model_tensors, load_random_state, own_random_state


class SparseTrainer(Trainer):
    """A Trainer whose checkpoints are ours: safetensors and JSON, masks included, atomic.

    It overrides the five methods through which the Trainer writes and reads its state, the loss for distillation, and
    two whose cost in each step is above that of a sparse one.
    """

    def __init__(
        self,
        *,
        sparsity: GraphCallback,
        checkpoints: CheckpointPlan | None,
        optimizer: Optimizer,
        schedule: LambdaLR | None,
        distillation: Distillation | None = None,
        **arguments: Any,
    ) -> None:
        """`sparsity` joins the callbacks; without a `schedule`, it is the arguments'. The rest is the Trainer's.

        With a `distillation`, the loss is that of the text and of the teacher.
        """
        callbacks = [sparsity, *arguments.pop("callbacks", [])]
        super().__init__(callbacks=callbacks, **arguments)
        # Given to the Trainer's own constructor, they would be refused under FSDP.
        self.optimizer, self.lr_scheduler = optimizer, schedule
        self._sparsity = sparsity
        self._checkpoints = checkpoints
        self._resumed: Checkpoint | None = None
        self._distillation = distillation
        if distillation is not None:
            # Both parts of the loss are means over a batch: all tokens of blocks of one length count alike.
            self.model_accepts_loss_kwargs = False
            distillation.to(self.args.device)

    def resume(self, checkpoint: Checkpoint | None) -> None:
        """Train, going on from a checkpoint where there is one."""
        self._resumed = checkpoint
        if checkpoint is not None:
            resume_graphs(self._sparsity, checkpoint)
        if self._sparsity.config.compute == "links":
            assert self.model is not None and self.optimizer is not None
            self._sparsity.start(self.model, self.optimizer)
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.path))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        del trial
        assert self._checkpoints is not None
        self._snapshot(model).write(self._checkpoints, self.args.world_size)
        if dist.is_initialized():
            dist.barrier()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        del resume_from_checkpoint
        assert self._resumed is not None
        load_model_tensors(self.accelerator.unwrap_model(model or self.model), self._resumed.tensors("model"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self._resumed is None:
            return
        self._snapshot(self.model).read_optimizer(self._resumed)

    def _snapshot(self, model: nn.Module | None) -> Snapshot:
        assert model is not None and self.lr_scheduler is not None
        unwrapped = self.accelerator.unwrap_model(model)
        return Snapshot(unwrapped, _inner(self.optimizer), self.lr_scheduler, self._sparsity, self.state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._resumed is not None:
            load_random_state(own_random_state(self._resumed.tensors("random")))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """There is none: float16, which needs one, is not offered."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of the text, and the teacher's part where there is one."""
        if self._distillation is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        text_loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = self._distillation.loss(text_loss, outputs.logits, inputs)
        return (loss, outputs) if return_outputs else loss

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


def world_size() -> int:
    """The processes of this run, before the process group is there."""
    return int(os.environ.get("WORLD_SIZE", "1"))
