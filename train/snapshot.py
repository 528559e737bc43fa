"""What a checkpoint of training holds: weights, optimizer, schedule, graphs, random numbers, log; written and read.

Both loops, the Trainer's and that over examples in memory, keep the same.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerState

from ..artifacts.masks import load_masks, save_masks
from .checkpoint import Checkpoint, CheckpointFacts, write_checkpoint
from .dynamics.callback import GraphCallback
from .dynamics.update import UpdateReport
from .state import load_model_tensors, load_optimizer_state, model_tensors, optimizer_state, random_states_of_all

TRAINER_STATE_FILE = "trainer_state.json"
_MASK_PARTS = ("masks", "ever", "grown")


@dataclass(frozen=True)
class CheckpointPlan:
    """Where checkpoints go, of which recipe, and how many stay."""

    folder: Path
    recipe_digest: str
    keep: int


@dataclass(frozen=True)
class Snapshot:
    """What training is made of at a step. The model is not wrapped, the optimizer the one that steps."""

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    graphs: GraphCallback
    state: TrainerState

    def write(self, plan: CheckpointPlan, world_size: int) -> None:
        """Write a checkpoint; all processes must call it, and the first writes."""
        assert self.graphs.sparsifier is not None
        weights = model_tensors(self.model)
        moments, optimizer = optimizer_state(self.model, self.optimizer)
        generators = random_states_of_all()
        sparsity = self.graphs.sparsifier.state_dict()
        if not self.state.is_world_process_zero:
            return
        values = {
            "optimizer": optimizer,
            "scheduler": self.schedule.state_dict(),
            "sparsity": {"steps": sparsity["steps"], "stopped": sparsity["stopped"]},
            "updates": [asdict(report) for report in self.graphs.updates],
        }
        facts = CheckpointFacts(self.state.global_step, plan.recipe_digest, world_size, values)
        with write_checkpoint(plan.folder, facts, plan.keep) as writer:
            writer.tensors("model", weights)
            writer.tensors("optimizer", moments)
            writer.tensors("random", generators)
            for part in _MASK_PARTS if sparsity["masks"] else ():
                arrays = {name: mask_NK.cpu().numpy() for name, mask_NK in sparsity[part].items()}
                save_masks(writer.path(part), arrays)
            self.state.save_to_json(str(writer.directory / TRAINER_STATE_FILE))

    def read_weights(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint's weights into the model, which has the graphs."""
        load_model_tensors(self.model, checkpoint.tensors("model"))

    def read_optimizer(self, checkpoint: Checkpoint) -> None:
        """Put optimizer and schedule into a checkpoint's state."""
        values = checkpoint.facts.values
        load_optimizer_state(self.model, self.optimizer, checkpoint.tensors("optimizer"), values["optimizer"])
        self.schedule.load_state_dict(values["scheduler"])


def resume_graphs(graphs: GraphCallback, checkpoint: Checkpoint) -> None:
    """Let a run's graphs begin as those of a checkpoint."""
    state: dict[str, Any] = dict(checkpoint.facts.values["sparsity"])
    for part in _MASK_PARTS:
        state[part] = _masks(checkpoint, part) if checkpoint.has(part) else {}
    graphs.resume(state, [UpdateReport(**report) for report in checkpoint.facts.values["updates"]])


def _masks(checkpoint: Checkpoint, part: str) -> dict[str, Tensor]:
    masks = load_masks(checkpoint.path / f"{part}.safetensors")
    return {layer: torch.from_numpy(mask_NK) for layer, mask_NK in masks.items()}
