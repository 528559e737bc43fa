"""Changing a decoder without touching the one given: selecting from axes of its parameters, and clearing links.

Legend: N out_features, K in_features.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ...architectures import Decoder, Part, describe
from ...artifacts import InputError, UnsupportedModelError
from .report import Masks


@dataclass(frozen=True)
class Use:
    """Where a dimension of the model is indexed: an axis of a parameter, from `start` on."""

    parameter: str
    axis: int
    start: int = 0

    @property
    def layer(self) -> str:
        """The module that holds the parameter; masks go by this name."""
        return self.parameter.rpartition(".")[0]


@dataclass(frozen=True)
class Heads:
    """The heads of every layer: key/value heads, the query heads that read each, and the places of one."""

    groups: int
    readers: int
    size: int

    @property
    def queries(self) -> int:
        """Query heads."""
        return self.groups * self.readers


class ModelEdit:
    """A model that shares its parameters with `model` until they are changed, and the masks that go with it.

    `decoder` says what it is; None: what its configuration says.

    Raises:
        InputError: a projection has no mask, one does not fit its weight, or a weight off its mask is not zero;
        UnsupportedModelError: the model has experts.
    """

    def __init__(self, model: PreTrainedModel, masks: Masks, decoder: Decoder | None = None) -> None:
        self.decoder = decoder or describe(model.config)
        if self.decoder.mlp.experts is not None:
            raise UnsupportedModelError(f"{self.decoder.family}: models with experts are not compacted or permuted")
        _check(model, masks, self.decoder)
        shared = {id(parameter): parameter for parameter in model.parameters()}
        self.model: PreTrainedModel = copy.deepcopy(model, shared)
        self.masks: dict[str, NDArray[np.bool_]] = dict(masks)

    def select(self, use: Use, indices: NDArray[np.int64], size: int | None = None) -> None:
        """Put `indices` of the `size` places from `use.start` on in place of these (by default, of the whole axis).

        Indices count from `use.start`. Fewer than `size` shrink the parameter, and the mask with it.
        """
        parameter = self.model.get_parameter(use.parameter)
        extent = parameter.shape[use.axis]
        end = extent if size is None else use.start + size
        index = np.concatenate([np.arange(use.start), use.start + indices, np.arange(end, extent)])
        self._replace(use.parameter, parameter.detach().index_select(use.axis, torch.from_numpy(index)))
        if use.layer in self.masks and use.parameter.endswith(".weight"):
            self.masks[use.layer] = np.take(self.masks[use.layer], index, axis=use.axis)

    def clear(self, layer: str, mask_NK: NDArray[np.bool_]) -> None:
        """Give `layer` a mask with fewer links, and the value 0 to the weights that leave."""
        weight = self.model.get_parameter(f"{layer}.weight").detach()
        self._replace(f"{layer}.weight", weight.where(torch.from_numpy(mask_NK), weight.new_zeros(())))
        self.masks[layer] = mask_NK

    def _replace(self, name: str, value: torch.Tensor) -> None:
        """Wherever the parameter is used: a tied head stays tied."""
        old = self.model.get_parameter(name)
        new = torch.nn.Parameter(value, requires_grad=old.requires_grad)
        for module in self.model.modules():
            for key, parameter in module._parameters.items():
                if parameter is old:
                    module._parameters[key] = new
                    _resize(module, new)


def parameters_of(model: PreTrainedModel, layer: str, axis: int, start: int = 0) -> list[Use]:
    """The uses of a dimension that is `axis` of a linear layer's weight: the weight, and along axis 0 the bias."""
    uses = [Use(f"{layer}.weight", axis, start)]
    if axis == 0 and model.get_submodule(layer).bias is not None:
        uses.append(Use(f"{layer}.bias", 0, start))
    return uses


def rows_of(model: PreTrainedModel, part: Part) -> NDArray[np.int64]:
    """The rows of a projection in its linear layer."""
    return np.arange(len(model.get_parameter(f"{part.module}.weight"))) if part.rows is None else part.rows


def mlp_parts(model: PreTrainedModel, decoder: Decoder, layer: str) -> tuple[Part, ...]:
    """Gate and up of a layer, which may be narrower than the configuration says, or its one input."""
    return decoder.mlp.parts(layer, model.get_parameter(f"{layer}.{decoder.mlp.output}.weight").shape[1])


def heads_of(decoder: Decoder) -> Heads:
    """The heads of every layer."""
    attention = decoder.attention
    return Heads(attention.kv_heads, attention.readers, attention.head_size)


def _resize(module: torch.nn.Module, weight: torch.Tensor) -> None:
    if isinstance(module, torch.nn.Linear) and module.weight is weight:
        module.out_features, module.in_features = weight.shape


def _check(model: PreTrainedModel, masks: Masks, decoder: Decoder) -> None:
    for layer in decoder.projections():
        if layer not in masks:
            raise InputError(f"layer '{layer}' has no mask; give every projection one, all True where it is dense")
    for layer, mask_NK in masks.items():
        weight = model.get_parameter(f"{layer}.weight").detach()
        if mask_NK.shape != tuple(weight.shape):
            raise InputError(f"the mask of '{layer}' is {mask_NK.shape}, its weight {tuple(weight.shape)}")
        lost = int(torch.count_nonzero(weight[torch.from_numpy(~mask_NK)]))
        if lost:
            raise InputError(f"layer '{layer}' has {lost} non-zero weights off its mask")
