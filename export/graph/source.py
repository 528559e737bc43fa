"""Reading the model to export: configuration, weights and masks, checked before anything is built.

Legend: N out_features, K in_features of a linear layer; C context length, D head size.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM, PretrainedConfig
from transformers.utils import logging

from ...artifacts import InputError, LanguageModelFacts, LayerFacts, Manifest, UnsupportedModelError
from ...artifacts.checkpoints import check_weights_fit
from ...artifacts.model_directory import open_model_directory

SUPPORTED_ROPE = ("default", "linear", "llama3")
HEAD_SIZE_STEP = 16
"""Both forms of attention take head sizes that are multiples of this."""


@dataclass(frozen=True)
class SourceModel:
    """A loaded model with the mask (bool [N, K]) of each of its projections.

    `masks_stored` says whether the masks came with the model; otherwise they are the non-zero weights.
    """

    path: Path
    model: LlamaForCausalLM
    masks: dict[str, NDArray[np.bool_]]
    masks_stored: bool
    manifest: Manifest | None
    eos_token_ids: tuple[int, ...]

    @property
    def config(self) -> LlamaConfig:
        """The model's transformers configuration."""
        return self.model.config

    @property
    def head_dim(self) -> int:
        """Size D of one attention head."""
        return _head_dim(self.config)

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads; as many as query heads where the configuration names none."""
        return self.config.num_key_value_heads or self.config.num_attention_heads

    @property
    def dense_bytes(self) -> int:
        """Bytes of all projections in float32, links or not."""
        return sum(mask.size for mask in self.masks.values()) * np.dtype(np.float32).itemsize

    def layer_facts(self, name: str, layout: str | None) -> LayerFacts:
        """The manifest's line on one projection."""
        return LayerFacts.of_mask(name, self.masks[name], layout)

    def facts(self) -> LanguageModelFacts:
        """What a runner needs to know; the context is the model's own."""
        config = self.config
        return LanguageModelFacts(
            context_length=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            num_layers=config.num_hidden_layers,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            eos_token_ids=self.eos_token_ids,
        )

    def weight(self, name: str) -> NDArray[np.float32]:
        """A parameter as float32, by its name in the state dict without `.weight`."""
        return self.parameter(f"{name}.weight")

    def parameter(self, name: str) -> NDArray[np.float32]:
        """A parameter as float32, by its full name."""
        return self.model.get_parameter(name).detach().numpy()

    def rotary_tables(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosines and sines [C, D / 2] of the rotary embedding, computed by the model's own module."""
        positions = torch.arange(self.config.max_position_embeddings)[None]
        with torch.no_grad():
            cos_1CD, sin_1CD = self.model.model.rotary_emb(torch.zeros(1), positions)
        half = self.head_dim // 2
        return cos_1CD[0, :, :half].contiguous().numpy(), sin_1CD[0, :, :half].contiguous().numpy()


def load_source(path: Path) -> SourceModel:
    """Load a Llama model directory in float32, with its masks.

    Raises:
        InputError: no model, no tokenizer, unreadable weights, NaN or infinite weights (the layer is named), weights
            off the mask; UnsupportedModelError: another architecture or a variant that the graph does not cover.
    """
    directory = open_model_directory(path)
    _check_supported(_read_config(path))
    model = _read_model(path)
    _check_finite(model)
    projections = {
        name: module.weight.detach().numpy()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not _is_tied_head(model, name)
    }
    masks = directory.masks or {}
    unknown = sorted(set(masks) - set(projections))
    if unknown:
        raise InputError(f"{path}: masks.safetensors names '{unknown[0]}', which is not a linear layer of the model")
    for name, weight_NK in projections.items():
        masks.setdefault(name, weight_NK != 0)
        _check_mask(path, name, weight_NK, masks[name])
    stored = directory.masks is not None
    return SourceModel(path, model, masks, stored, directory.manifest, _eos_token_ids(path, model.config))


def _is_tied_head(model: LlamaForCausalLM, name: str) -> bool:
    return name == "lm_head" and model.config.tie_word_embeddings


def _read_config(path: Path) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise UnsupportedModelError(f"{path}/config.json: {_first_line(error)}") from error


def _check_supported(config: PretrainedConfig) -> None:
    architectures = config.architectures or [type(config).__name__]
    if config.model_type != "llama" or architectures not in (["LlamaForCausalLM"], ["LlamaConfig"]):
        raise UnsupportedModelError(
            f"architecture {', '.join(architectures)} is not supported; export takes LlamaForCausalLM"
        )
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    if rope_type not in SUPPORTED_ROPE:
        raise UnsupportedModelError(
            f"rope_type '{rope_type}' is not supported; export takes {', '.join(SUPPORTED_ROPE)}"
        )
    if _head_dim(config) % HEAD_SIZE_STEP:
        raise UnsupportedModelError(
            f"attention heads of size {_head_dim(config)} are not supported; export takes multiples of {HEAD_SIZE_STEP}"
        )
    if config.hidden_act != "silu":
        raise UnsupportedModelError(f"hidden_act '{config.hidden_act}' is not supported; export takes silu")


def _head_dim(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _read_model(path: Path) -> LlamaForCausalLM:
    logging.disable_progress_bar()
    try:
        loaded: Any = LlamaForCausalLM.from_pretrained(
            path, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise InputError(f"{path}: cannot read the weights: {_first_line(error)}") from error
    model, info = loaded
    check_weights_fit(str(path), info)
    return model.eval()


def _check_finite(model: LlamaForCausalLM) -> None:
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


def _eos_token_ids(path: Path, config: LlamaConfig) -> tuple[int, ...]:
    """End tokens: those of generation_config.json, else those of config.json."""
    eos = config.eos_token_id
    if (path / "generation_config.json").is_file():
        eos = GenerationConfig.from_pretrained(path, local_files_only=True).eos_token_id
    return () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
