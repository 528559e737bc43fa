"""The linear layers of decoder blocks, whatever class they are of.

Legend: N out_features, K in_features.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...artifacts import InputError, UnsupportedModelError
from .blocks import Blocks
from .config import PruneConfig

LINEAR_TYPES = (nn.Linear, Conv1D)
_STACKED = 3
"""Dimensions of a parameter that holds a matrix for each of several experts."""


@dataclass(frozen=True)
class Layer:
    """A linear layer of a decoder block, by its name in the block and in the model."""

    local_name: str
    name: str
    module: nn.Linear | Conv1D

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, columns = self.weight.shape
        return rows, columns

    @property
    def weight(self) -> Tensor:
        """The weight as [N, K]; of GPT-2's Conv1D, which holds it as [K, N], a transposed view."""
        weight = self.module.weight.detach()
        return weight.T if isinstance(self.module, Conv1D) else weight

    def of(self, block: nn.Module) -> "Layer":
        """The same layer of a copy of the block."""
        module = block.get_submodule(self.local_name)
        assert isinstance(module, LINEAR_TYPES)
        return Layer(self.local_name, self.name, module)

    def as_held(self, mask_NK: Tensor) -> Tensor:
        """A mask in the orientation in which the module holds its weight."""
        return mask_NK.T if isinstance(self.module, Conv1D) else mask_NK

    @torch.no_grad()
    def set(self, weight_NK: Tensor) -> None:
        """Put other weights in place."""
        self.weight.copy_(weight_NK)


def block_layers(block: nn.Module, prefix: str, config: PruneConfig) -> list[Layer]:
    """The layers of a decoder block that are to be pruned.

    Args:
        block: the block.
        prefix: its name in the model, such as "model.layers.3".
        config: whose globs select layers, and whose structure is to be admitted.

    Raises:
        UnsupportedModelError: the block holds matrices of experts in one tensor, which no glob excludes.
        InputError: the structure does not admit a layer's shape or the density.
    """
    layers = []
    for local_name, module in block.named_modules():
        name = f"{prefix}.{local_name}"
        if isinstance(module, LINEAR_TYPES) and config.selects(name):
            layers.append(Layer(local_name, name, module))
    for local_name, parameter in block.named_parameters():
        if parameter.ndim >= _STACKED and config.selects(f"{prefix}.{local_name}"):
            raise UnsupportedModelError(
                f"layer '{prefix}.{local_name}' holds the matrices of several experts in one tensor, which are not "
                "pruned here; leave it dense with --exclude"
            )
    for layer in layers:
        config.mask_structure.check(layer.name, *layer.shape, config.density)
    return layers


def check_globs(blocks: Blocks, config: PruneConfig) -> None:
    """Refuse globs that match no linear layer of the decoder blocks, and those that leave none (InputError)."""
    names = []
    for prefix, block in zip(blocks.names, blocks.modules, strict=True):
        linear = [name for name, module in block.named_modules() if isinstance(module, LINEAR_TYPES)]
        stacked = [name for name, parameter in block.named_parameters() if parameter.ndim >= _STACKED]
        names += [f"{prefix}.{name}" for name in linear + stacked]
    for option, globs in (("include", config.include), ("exclude", config.exclude)):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in names):
                raise InputError(f"prune: {option} '{glob}' matches no linear layer, such as '{names[0]}'")
    if not any(config.selects(name) for name in names):
        raise InputError("prune: exclude leaves no layer to prune")
