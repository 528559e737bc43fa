"""Reading the model to export: configuration, weights and masks, checked before anything is built.

Legend: N out_features, K in_features of a linear layer; C context length, D head size, D2 pairs of places that turn.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from ...architectures import (
    Decoder,
    Part,
    check_fits,
    describe,
    rotary_tables,
    settle,
)
from ...artifacts import InputError, LanguageModelFacts, LayerFacts, Manifest, UnsupportedModelError
from ...artifacts.checkpoints import load_model
from ...artifacts.model_directory import open_model_directory


@dataclass(frozen=True)
class SourceModel:
    """A loaded model, what it is, and the mask (bool [N, K]) of each linear layer that transformers' model has.

    A graph's projections may be some rows of such a layer: `projections` names them, and `weight`, `mask` and `bias`
    give them by these names, with heads of the size that graphs have (see `Decoder.graph_head_size`). `masks_stored`
    says whether the masks came with the model; otherwise they are the non-zero weights.
    """

    path: Path
    model: PreTrainedModel
    decoder: Decoder
    masks: dict[str, NDArray[np.bool_]]
    masks_stored: bool
    manifest: Manifest | None
    eos_token_ids: tuple[int, ...]

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
        return sum(mask.size for mask in self.masks.values()) * np.dtype(np.float32).itemsize

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

    def mlp_parts(self, layer: int) -> tuple[Part, ...]:
        """Gate and up of a layer, or its one input."""
        path, mlp = self.decoder.layer(layer), self.decoder.mlp
        width = self.masks[f"{path}.{mlp.output}"].shape[1]
        return mlp.parts(path, width)

    @cached_property
    def projections(self) -> dict[str, Part]:
        """The projections of all layers by name, and lm_head where it has a weight of its own."""
        found: list[Part] = []
        for layer in range(len(self.decoder.layers)):
            path = self.decoder.layer(layer)
            outputs = [f"{path}.{self.decoder.attention.output}", f"{path}.{self.decoder.mlp.output}"]
            found += [*self.attention_parts(layer), Part(outputs[0], outputs[0])]
            found += [*self.mlp_parts(layer), Part(outputs[1], outputs[1])]
        if not self.head_is_tied:
            found.append(Part(self.decoder.head, self.decoder.head))
        return {part.name: part for part in found}

    def projection_masks(self) -> dict[str, NDArray[np.bool_]]:
        """The mask of each projection."""
        return {name: self.mask(name) for name in self.projections}

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
        return self.model.get_parameter(name).detach().numpy()

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


def load_source(path: Path) -> SourceModel:
    """Load a model directory in float32, with its masks.

    Raises:
        InputError: no model, no tokenizer, unreadable weights, NaN or infinite weights (the layer is named), weights
            off the mask; UnsupportedModelError: another architecture or a variant that the graph does not cover.
    """
    directory = open_model_directory(path)
    decoder = describe(_read_config(path))
    loaded = load_model(AutoModelForCausalLM, path, settle=partial(settle, decoder=decoder))
    model = loaded.model.eval()
    check_fits(decoder, model)
    _check_finite(model)
    projections = {
        name: module.weight.detach().numpy()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not _is_tied_head(model, decoder, name)
    }
    masks = directory.masks or {name: mask for name, mask in loaded.masks.items() if name in projections}
    stored = bool(masks)
    unknown = sorted(set(masks) - set(projections))
    if unknown:
        raise InputError(f"{path}: masks.safetensors names '{unknown[0]}', which is not a linear layer of the model")
    for name, weight_NK in projections.items():
        masks.setdefault(name, weight_NK != 0)
        _check_mask(path, name, weight_NK, masks[name])
    return SourceModel(path, model, decoder, masks, stored, directory.manifest, _eos_token_ids(path, model.config))


def _is_tied_head(model: PreTrainedModel, decoder: Decoder, name: str) -> bool:
    embedding = model.get_parameter(f"{decoder.embedding}.weight")
    return name == decoder.head and model.get_parameter(f"{name}.weight") is embedding


def _read_config(path: Path) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise UnsupportedModelError(f"{path}/config.json: {_first_line(error)}") from error


def _check_finite(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            count = int((~torch.isfinite(parameter)).sum())
            raise InputError(
                f"layer '{name}' has {count} weights that are NaN or infinite; the model cannot be exported"
            )


def _check_mask(path: Path, name: str, weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> None:
    if mask_NK.shape != weight_NK.shape:
        raise InputError(f"{path}: the mask of '{name}' is {mask_NK.shape}, its weight {weight_NK.shape}")
    lost = int(np.count_nonzero(weight_NK[~mask_NK]))
    if lost:
        raise InputError(f"{path}: layer '{name}' has {lost} non-zero weights off its mask")


def _eos_token_ids(path: Path, config: PretrainedConfig) -> tuple[int, ...]:
    """End tokens: those of generation_config.json, else those of config.json."""
    eos = config.eos_token_id
    if (path / "generation_config.json").is_file():
        eos = GenerationConfig.from_pretrained(path, local_files_only=True).eos_token_id
    return () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
