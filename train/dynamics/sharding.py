"""Weights that are split over processes (FSDP2), and decisions that all processes share (DDP and FSDP2).

Legend: N out_features, K in_features; n rows on this process.

Masks are whole on every process. FSDP2 splits a weight by rows: a process applies its rows of the mask to its rows of
the weight, and scores are formed from the gathered whole.
"""

import hashlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from ...artifacts import CheckError, InputError


def local(value: Tensor | None) -> Tensor:
    """The part of a tensor that this process holds: itself, where it is not split."""
    assert value is not None
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor that may be split. All processes must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_rows(mask_NK: Tensor, weight: Tensor) -> Tensor:
    """The rows [n, K] of a mask that belong to this process's part of the weight."""
    if not isinstance(weight, DTensor):
        return mask_NK
    if weight.placements != (Shard(0),):
        raise InputError(f"a weight split as {weight.placements}: hebbline trains sparse under DDP or FSDP2, by rows")
    rank, size = weight.device_mesh.get_local_rank(), weight.device_mesh.size()
    rows = -(-mask_NK.shape[0] // size)
    return mask_NK[rank * rows : (rank + 1) * rows]


def gather_rows(values_nK: Tensor, weight: Tensor) -> Tensor:
    """The whole [N, K] of values held by rows like the weight; under DDP, the mean over processes."""
    if isinstance(weight, DTensor):
        split = DTensor.from_local(
            values_nK, weight.device_mesh, weight.placements, shape=weight.shape, stride=weight.stride()
        )
        return split.full_tensor()
    if is_distributed():
        values_nK = values_nK.contiguous()
        dist.all_reduce(values_nK)
        values_nK /= dist.get_world_size()
    return values_nK


def is_distributed() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def decides() -> bool:
    """Whether this process makes the choices: the only one, or the first."""
    return not is_distributed() or dist.get_rank() == 0


def share_masks(masks: dict[str, Tensor]) -> None:
    """Give every process the masks of the first, in place, and check that all hold the same.

    Raises:
        CheckError: the digests of two processes differ.
    """
    if not is_distributed():
        return
    for mask_NK in masks.values():
        bytes_NK = mask_NK.to(torch.uint8)
        dist.broadcast(bytes_NK, src=0)
        mask_NK.copy_(bytes_NK)
    check_masks(masks)


def check_masks(masks: Mapping[str, Tensor]) -> None:
    """Compare the masks of all processes by digest; raises CheckError where they differ."""
    if not is_distributed():
        return
    device = next(iter(masks.values())).device if masks else torch.device("cpu")
    digest = torch.frombuffer(bytearray.fromhex(masks_digest(masks)), dtype=torch.uint8).to(device)
    digests = [torch.empty_like(digest) for _ in range(dist.get_world_size())]
    dist.all_gather(digests, digest)
    differing = [rank for rank, other in enumerate(digests) if not torch.equal(other, digests[0])]
    if differing:
        raise CheckError(f"the masks of processes {differing} differ from those of process 0")


def masks_digest(masks: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and links of masks."""
    digest = hashlib.sha256()
    for name, mask_NK in sorted(masks.items()):
        digest.update(f"{name}{tuple(mask_NK.shape)}".encode())
        digest.update(mask_NK.cpu().numpy().tobytes())
    return digest.hexdigest()
