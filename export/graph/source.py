"""The model to export: what it is, and its weights and masks, which are in memory or read as they are asked for.

Legend: N out_features, K in_features of a linear layer; C context length, D head size, D2 pairs of places that turn.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ...architectures import Decoder, Part, rotary_tables
from ...artifacts import LanguageModelFacts, LayerFacts, Manifest
from ...artifacts.checkpoints.stored import StoredParameters


@dataclass(frozen=True)
class SourceModel:
    """A model, what it is, and the mask (bool [N, K]) of each linear layer that transformers' model has.

    Where there is `stored`, the parameters of `model` are on the device "meta": they have shapes and no values, and
    each is read from the checkpoint when it is asked for. `loaded` gives the same model in memory.

    A graph's projections may be some rows of such a layer: `projections` names them, and `weight`, `mask` and `bias`
    give them by these names, with heads of the size that graphs have (see `Decoder.graph_head_size`). `masks_stored`
    says whether the masks came with the model; otherwise they are the non-zero weights.
    """

    path: Path
    model: PreTrainedModel
    decoder: Decoder
    masks: Mapping[str, NDArray[np.bool_]]
    masks_stored: bool
    manifest: Manifest | None
    eos_token_ids: tuple[int, ...]
    stored: StoredParameters | None = None

    @property
    def head_dim(self) -> int:
        """Size D of one attention head in a graph and its caches."""
        return self.decoder.graph_head_size

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads."""
        return self.decoder.attention.kv_heads

    @property
    def head_is_tied(self) -> bool:
        """Whether lm_head is the embedding: the weights say so, whatever the configuration says."""
        decoder = self.decoder
        return self.model.get_parameter(f"{decoder.head}.weight") is self.model.get_parameter(
            f"{decoder.embedding}.weight"
        )

    @property
    def dense_bytes(self) -> int:
        """Bytes of all projections in float32, links or not."""
        shapes = (self.model.get_parameter(f"{name}.weight").shape for name in self.masks)
        return sum(prod(shape) for shape in shapes) * np.dtype(np.float32).itemsize

    def loaded(self) -> "SourceModel":
        """The model with all parameters and masks in memory; itself where they are."""
        if self.stored is None:
            return self
        model = copy.deepcopy(self.model)
        made: dict[int, torch.nn.Parameter] = {}
        for module_name, module in model.named_modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    name = f"{module_name}.{key}"
                    made.setdefault(id(parameter), torch.nn.Parameter(self.tensor(name).clone()))
                    module._parameters[key] = made[id(parameter)]
        return replace(self, model=model, masks=dict(self.masks), stored=None)

    def layer_facts(self, name: str, layout: str | None) -> LayerFacts:
        """The manifest's line on one projection."""
        return LayerFacts.of_mask(name, self.mask(name), layout)

    def facts(self) -> LanguageModelFacts:
        """What a runner needs to know; the context is the model's own."""
        return LanguageModelFacts(
            context_length=self.decoder.context_length,
            vocab_size=self.decoder.vocab_size,
            num_layers=len(self.decoder.layers),
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            eos_token_ids=self.eos_token_ids,
        )

    def attention_parts(self, layer: int) -> tuple[Part, Part, Part]:
        """Queries, keys and values of a layer."""
        return self.decoder.attention.parts(self.decoder.layer(layer))

    def mlp_parts(self, block: str) -> tuple[Part, ...]:
        """Gate and up of a block (see `Mlp.blocks`), or its one input."""
        mlp = self.decoder.mlp
        return mlp.parts(block, self.model.get_parameter(f"{block}.{mlp.output}.weight").shape[1])

    @cached_property
    def projections(self) -> dict[str, Part]:
        """The projections of all layers by name, and lm_head where it has a weight of its own."""
        found: list[Part] = []
        for layer in range(len(self.decoder.layers)):
            path = self.decoder.layer(layer)
            output = f"{path}.{self.decoder.attention.output}"
            found += [*self.attention_parts(layer), Part(output, output)]
            for block in self.decoder.mlp.blocks(path):
                output = f"{block}.{self.decoder.mlp.output}"
                found += [*self.mlp_parts(block), Part(output, output)]
        if not self.head_is_tied:
            found.append(Part(self.decoder.head, self.decoder.head))
        return {part.name: part for part in found}

    def projection_masks(self) -> Mapping[str, NDArray[np.bool_]]:
        """The mask of each projection, read when it is asked for."""
        return _ProjectionMasks(self)

    def shape(self, name: str) -> tuple[int, int]:
        """Sizes N and K of a projection."""
        part = self.projections[name]
        rows, columns = self.model.get_parameter(f"{part.module}.weight").shape
        sizes = [rows if part.rows is None else len(part.rows), columns]
        if (axis := self._head_axis(name)) is not None:
            sizes[axis] = sizes[axis] // self.decoder.attention.head_size * self.head_dim
        return sizes[0], sizes[1]

    def weight(self, name: str) -> NDArray[np.float32]:
        """The weight of a projection or of any other module, as float32."""
        part = self.projections.get(name)
        if part is None:
            return self.parameter(f"{name}.weight")
        return self._with_whole_heads(name, _rows(self.parameter(f"{part.module}.weight"), part))

    def mask(self, name: str) -> NDArray[np.bool_]:
        """The mask [N, K] of a projection."""
        part = self.projections[name]
        return self._with_whole_heads(name, _rows(self.masks[part.module], part))

    def bias(self, name: str) -> NDArray[np.float32] | None:
        """The bias [N] of a projection; None where it has none."""
        part = self.projections[name]
        if self.model.get_submodule(part.module).bias is None:
            return None
        bias_N = _rows(self.parameter(f"{part.module}.bias"), part)
        # That of an attention's output is of the hidden state, which has no heads.
        return bias_N if self._head_axis(name) == 1 else self._with_whole_heads(name, bias_N)

    def parameter(self, name: str) -> NDArray[np.float32]:
        """A parameter as float32, by its full name."""
        return self.tensor(name).numpy()

    def tensor(self, name: str) -> torch.Tensor:
        """A parameter as float32, by its full name."""
        if self.stored is None:
            return self.model.get_parameter(name).detach()
        decoder = self.decoder
        tied = name == f"{decoder.head}.weight" and self.head_is_tied
        return self.stored.read(f"{decoder.embedding}.weight" if tied else name)

    def rotary_tables(self) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Cosines and sines [C, D2] of each rotary table, computed by the model's own module."""
        return rotary_tables(self.model, self.decoder, self.decoder.context_length)

    def _head_axis(self, name: str) -> int | None:
        return self._head_axes.get(name)

    @cached_property
    def _head_axes(self) -> dict[str, int]:
        """Along which axis projections of attention have heads. Queries and keys that are normed are widened later."""
        axes: dict[str, int] = {}
        for layer in range(len(self.decoder.layers)):
            q, k, v = self.attention_parts(layer)
            widened = (v,) if self.decoder.attention.norm is not None else (q, k, v)
            axes |= {part.name: 0 for part in widened}
            axes[f"{self.decoder.layer(layer)}.{self.decoder.attention.output}"] = 1
        return axes

    def _with_whole_heads(self, name: str, array: NDArray) -> NDArray:
        """Places without links behind those of each head, where a graph's heads are larger than the model's."""
        size, whole, axis = self.decoder.attention.head_size, self.head_dim, self._head_axis(name)
        if size == whole or axis is None:
            return array
        extents = array.shape
        split = array.reshape(*extents[:axis], -1, size, *extents[axis + 1 :])
        padding = [(0, 0)] * split.ndim
        padding[axis + 1] = (0, whole - size)
        return np.pad(split, padding).reshape(*extents[:axis], -1, *extents[axis + 1 :])


def _rows(array: NDArray, part: Part) -> NDArray:
    return array if part.rows is None else array[part.rows]


class _ProjectionMasks(Mapping[str, NDArray[np.bool_]]):
    def __init__(self, source: SourceModel) -> None:
        self._source = source

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        return self._source.mask(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.projections)

    def __len__(self) -> int:
        return len(self._source.projections)
