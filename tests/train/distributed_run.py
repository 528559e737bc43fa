"""What two processes run in `test_distributed.py`, started by torchrun: trains by DDP or FSDP2 and writes what came out."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tiny import make_llama
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hebbline.artifacts import CheckError
from hebbline.train import Sparsifier, SparsityConfig
from hebbline.train.dynamics import UpdateConfig
from hebbline.train.dynamics.sharding import check_masks, whole


def main(kind: str, method: str, out: Path) -> None:
    torch.set_num_threads(1)
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    model = make_llama(64)
    wrapped: nn.Module = model
    if kind == "fsdp2":
        for layer in model.model.layers:
            fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    config = SparsityConfig(method=method, density=0.3, update=UpdateConfig(every=2, stop=6), exclude=["lm_head"])
    sparsifier = Sparsifier(model, config)
    if kind == "ddp":
        wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    train(wrapped, optimizer, sparsifier)
    state = {name: whole(value.detach()).contiguous() for name, value in model.named_parameters()}
    state |= {f"mask:{name}": mask.to(torch.uint8) for name, mask in sparsifier.masks.items()}
    rank = dist.get_rank() if dist.is_initialized() else 0
    save_file(state, out / f"{kind}-{method}-{rank}.safetensors")
    if kind == "ddp":
        refuse_other_masks(sparsifier, rank)
    if dist.is_initialized():
        dist.destroy_process_group()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier) -> None:
    """The same global batch of 4 texts, whatever the number of processes."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(7):
        ids_BS = torch.randint(0, 64, (4, 12), generator=generator).chunk(size)[rank]
        optimizer.zero_grad()
        model(ids_BS, labels=ids_BS).loss.backward()
        optimizer.step()
        sparsifier.step()


def refuse_other_masks(sparsifier: Sparsifier, rank: int) -> None:
    name = next(iter(sparsifier.masks))
    if rank == 1:
        sparsifier.masks[name][0, 0] ^= True
    try:
        check_masks(sparsifier.masks)
    except CheckError as error:
        assert "the masks of processes [1] differ" in str(error)
        return
    raise AssertionError("masks that differ went unnoticed")


main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
