"""What two processes run in `test_distributed.py`, started by accelerate: a recipe by FSDP2, through the Trainer.

accelerate takes up a configuration of FSDP only where there are accelerators; on CPUs it would train by DDP without a
word. That one condition is lifted here, and everything else is as on a machine with accelerators.
"""

import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from hebbline.train import training as runs
from hebbline.train.dynamics.sharding import masks_digest
from hebbline.train.publish import train_and_publish
from hebbline.train.settings import RunSettings
from hebbline.train.state import is_split
from hebbline.train.tasks import read_recipe, train_language_model
from hebbline.train.tasks.reading import recipe_digest

plain_init = AcceleratorState.__init__


def init_on_cpu(self: AcceleratorState, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    plain_init(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def cut(recipe: Any, out: Path, step: int) -> Any:
    """Train up to a step, and leave the checkpoints of a run that was killed."""
    made = runs._callbacks
    runs._callbacks = lambda *arguments: [*made(*arguments), StopAt(step)]
    settings = RunSettings(out, recipe_digest(recipe), recipe.checkpoint, recipe.logging)
    return train_language_model(recipe, settings)


def main(recipe_path: str, out: Path, mode: str) -> None:
    AcceleratorState.__init__ = init_on_cpu
    recipe, yaml = read_recipe(recipe_path)
    if mode == "cut":
        result = cut(recipe, out, step=4)
    else:
        result = train_and_publish(recipe, yaml, out, resume=mode == "resume")
    assert is_split(result.model), "FSDP2 splits the weights"
    digests = [""] * dist.get_world_size()
    dist.all_gather_object(digests, masks_digest(result.masks))
    assert len(digests) == 2 and digests[0] == digests[1]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
