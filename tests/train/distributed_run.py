"""What two processes run in `test_distributed.py`, started by torchrun: training by DDP and by FSDP2."""

import sys
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tiny import make_llama
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hebbline.artifacts import CheckError
from hebbline.data.images import Images
from hebbline.train import Sparsifier, SparsityConfig
from hebbline.train.dynamics import UpdateConfig
from hebbline.train.dynamics.sharding import check_masks, whole
from hebbline.train.state import load_model_tensors, load_optimizer_state, model_tensors, optimizer_state
from hebbline.train.tasks import image, read_recipe


def train(kind: str, method: str) -> tuple[dict[str, Tensor], Sparsifier]:
    """Train some steps as "ddp", "fsdp2" or "single"; returns weights and masks, and the sparsifier."""
    model = make_llama(64)
    wrapped: nn.Module = model
    if kind == "fsdp2":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in (*model.model.layers, model):
            fully_shard(layer, mesh=mesh)
    config = SparsityConfig(method=method, density=0.3, update=UpdateConfig(every=2, stop=6), exclude=["lm_head"])
    sparsifier = Sparsifier(model, config)
    if kind == "ddp":
        wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    # The same global batch of 4 texts, whatever the number of processes.
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    generator = torch.Generator().manual_seed(0)
    for step in range(7):
        ids_BS = torch.randint(0, 64, (4, 12), generator=generator).chunk(size)[rank]
        optimizer.zero_grad()
        wrapped(ids_BS, labels=ids_BS).loss.backward()
        optimizer.step()
        sparsifier.step()
        if step == 3:
            reload(model, optimizer)
    state = {name: whole(value.detach()).contiguous() for name, value in model.named_parameters()}
    return state | {f"mask:{name}": mask.to(torch.uint8) for name, mask in sparsifier.masks.items()}, sparsifier


def train_images(processes: int) -> dict[str, Tensor]:
    """A perceptron by its recipe, on batches of 8 images in all."""
    generator = torch.Generator().manual_seed(0)
    labels_I = torch.randint(0, 4, (64,), generator=generator)
    pixels_IF = torch.randn(64, 36, generator=generator) + 4 * nn.functional.one_hot(labels_I, 36)
    found = Images(pixels_IF, labels_I, pixels_IF[:8], labels_I[:8])
    options = ["--model.width=1", "--optimization.epochs=2", f"--optimization.batch_size={8 // processes}"]
    options += [
        "--sparsity.density=0.3",
        "--sparsity.method=set",
        "--sparsity.update.every=4",
        "--sparsity.update.stop=12",
    ]
    recipe, _ = read_recipe("mnist-mlp", options)
    with patch.object(image, "load_images", lambda *_: found):
        result = image.train_image_classifier(recipe)
    return {name: value.contiguous() for name, value in result.model.state_dict().items()}


def reload(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write over the state and take it back, as a resumed run does."""
    weights = {name: value.clone() for name, value in model_tensors(model).items()}
    moments, values = optimizer_state(model, optimizer)
    moments = {name: value.clone() for name, value in moments.items()}
    load_model_tensors(model, {name: torch.zeros_like(value) for name, value in weights.items()})
    load_model_tensors(model, weights)
    load_optimizer_state(model, optimizer, moments, values)


def refuse_other_masks(sparsifier: Sparsifier) -> None:
    name = next(iter(sparsifier.masks))
    if dist.get_rank() == 1:
        sparsifier.masks[name][0, 0] ^= True
    try:
        check_masks(sparsifier.masks)
    except CheckError as error:
        assert "the masks of processes [1] differ" in str(error)
        return
    raise AssertionError("masks that differ went unnoticed")


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for kind, method in (("ddp", "rigl"), ("fsdp2", "mest")):
        state, sparsifier = train(kind, method)
        save_file(state, out / f"{kind}-{dist.get_rank()}.safetensors")
    save_file(train_images(dist.get_world_size()), out / f"images-{dist.get_rank()}.safetensors")
    refuse_other_masks(sparsifier)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
