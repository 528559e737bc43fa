"""Block-wise reconstruction: the links of a part of a block are trained until the block gives what the dense one gave.

Legend: S tokens, D width of the residual stream; N out_features, K in_features.

As in "A Free Lunch in LLM Compression: Revisiting Retraining after Pruning" (arXiv 2510.14444), attention and MLP are
trained one after the other, on the calibration text, with what pruned blocks before make of it.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .blocks import Call
from .config import PruneConfig
from .layers import Layer

_BATCH = 1


def reconstruct(
    block: nn.Module,
    call: Call,
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    layers: Sequence[Layer],
    masks: Mapping[str, Tensor],
    config: PruneConfig,
) -> None:
    """Train the links of some layers of a block, in place, by Adam on the error of the block's outputs.

    The error of a token is |pruned - dense|^2 over |dense|^2: the norm that comes next scales each token by itself.

    Args:
        block: float32; its other parameters stay.
        call: how it is called.
        inputs: what it is given, one [1, S, D] a sequence.
        targets: what the dense block gave for the same text, as `inputs`.
        layers: whose links are trained.
        masks: bool [N, K] by the layers' names; weights off them stay 0.
        config: passes over all sequences, the learning rate, and the seed of the order of sequences.
    """
    weights = [layer.module.weight for layer in layers]
    absent = [~layer.as_held(masks[layer.name]) for layer in layers]
    for parameter in block.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in weights))
    optimizer = torch.optim.Adam(weights, lr=config.learning_rate, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(config.seed)
    batches = torch.cat([torch.randperm(len(inputs), generator=generator) for _ in range(config.passes)]).split(_BATCH)
    for step, indices in enumerate(batches):
        optimizer.param_groups[0]["lr"] = config.learning_rate * (1 + math.cos(math.pi * step / len(batches))) / 2
        for index in indices.tolist():
            loss = _token_error(call.run(block, inputs[index]), targets[index])
            (loss / len(indices)).backward()
        for weight, absent_links in zip(weights, absent, strict=True):
            if weight.grad is not None:
                weight.grad.masked_fill_(absent_links, 0)
        optimizer.step()
        optimizer.zero_grad()
    block.requires_grad_(False)


def token_errors(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
    """|output - target|^2 over |target|^2, mean over the tokens of all sequences."""
    errors = [float(_token_error(output, target)) for output, target in zip(outputs, targets, strict=True)]
    return sum(errors) / len(errors)


def parts(layers: Sequence[Layer]) -> list[list[Layer]]:
    """A block's layers by the child of the block that they are in; those that are children themselves together."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.local_name.rpartition(".")[0].partition(".")[0], []).append(layer)
    return list(found.values())


def _token_error(output_1SD: Tensor, target_1SD: Tensor) -> Tensor:
    power_1S = target_1SD.square().mean(dim=2).clamp(min=torch.finfo(torch.float32).tiny)
    return ((output_1SD - target_1SD).square().mean(dim=2) / power_1S).mean()
