"""Causal language modelling: from a recipe to a trained decoder, its tokenizer and its masks.

Legend: B blocks, S tokens a block.
"""

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from ...architectures import Decoder, check_fits, describe, settle
from ...artifacts import InputError
from ...artifacts.checkpoints import check_configuration, check_weights_fit, load_model
from ...console import console
from ..data import load_documents, pack_tokens, train_tokenizer
from ..data.rows import Rows, as_is
from ..engine import Training, run_training
from ..settings import RunSettings
from ..trainer import world_size
from .recipe import LanguageModelRecipe, ModelConfig
from .result import TrainingResult


def build_model(config: ModelConfig, vocab_size: int, eos_token_id: int | None) -> PreTrainedModel:
    """A model with random weights, for a tokenizer's vocabulary and its end token.

    Raises:
        InputError: there is no file `model.config`, or it is no configuration; UnsupportedModelError: it is of a model
            that cannot be exported.
    """
    shape = read_configuration(config.config) if config.config else _llama(config)
    shape.vocab_size, shape.bos_token_id, shape.eos_token_id = vocab_size, None, eos_token_id
    if (shape.pad_token_id or 0) >= vocab_size:
        shape.pad_token_id = None
    decoder = describe(shape)
    model = AutoModelForCausalLM.from_config(shape)
    settle(model, {}, decoder)
    return model


def read_configuration(path: str) -> PretrainedConfig:
    """A transformers configuration of a model that can be exported.

    Raises:
        InputError: there is no such file, or it is no configuration; UnsupportedModelError: the model is of no family
            that is known, or has a part that there is not.
    """
    if not Path(path).is_file():
        raise InputError(f"model.config '{path}' is not a file: give a transformers config.json")
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model.config '{path}' cannot be read: {' '.join(str(error).split())}") from error
    describe(config)
    return config


def _llama(config: ModelConfig) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.context_length,
        tie_word_embeddings=config.tie_embeddings,
    )


def train_language_model(recipe: LanguageModelRecipe, settings: RunSettings | None = None) -> TrainingResult:
    """Load the text, train the tokenizer and the model. The same recipe gives the same bits on the same machine.

    Args:
        recipe: what to train.
        settings: where checkpoints and logs go; without them, there are none.
    """
    dense = load_pretrained(recipe.model.pretrained, recipe.data.sequence_length) if recipe.model.pretrained else None
    if recipe.model.config:
        context = read_configuration(recipe.model.config).max_position_embeddings
        _check_context(f"model.config '{recipe.model.config}'", recipe.data.sequence_length, context)
    if dense is not None:
        _warn_of_random_graphs(recipe)
    documents = load_documents(recipe.data.source, recipe.data.validation_share, recipe.data.documents)
    if dense is not None:
        model, tokenizer = dense
        blocks_BS = pack_tokens(tokenizer, documents.train, recipe.data.sequence_length)
        set_seed(recipe.optimization.seed)
    else:
        tokenizer, blocks_BS = _tokenize(tuple(documents.train), recipe.model, recipe.data.sequence_length)
        set_seed(recipe.optimization.seed)
        model = build_model(recipe.model, len(tokenizer), tokenizer.eos_token_id)
    optimization = recipe.optimization
    tokens_a_step = optimization.batch_size * optimization.accumulate * world_size() * recipe.data.sequence_length
    training = Training(
        model=model,
        # The labels are the inputs, shifted by the model.
        dataset=Rows({"input_ids": blocks_BS, "labels": blocks_BS}),
        collate=as_is,
        optimizer=build_optimizer(recipe, model),
        sparsity=recipe.sparsity,
        engine=optimization.engine,
        warmup_steps=optimization.warmup_steps,
        unit="tokens",
        units_a_step=tokens_a_step,
    )
    trained = run_training(training, settings)
    tokens = optimization.steps * tokens_a_step
    train_bytes, validation_bytes = documents.bytes
    summary = (
        f"{tokens:,} tokens in {trained.seconds:.0f} s ({tokens / trained.seconds:,.0f} tokens/s) from "
        f"{train_bytes / 1e6:.2f} MB of text; {validation_bytes / 1e6:.2f} MB in other documents are held out"
    )
    return TrainingResult(model.eval(), tokenizer, trained, summary, {"tokens": tokens})


def _warn_of_random_graphs(recipe: LanguageModelRecipe) -> None:
    sparsity = recipe.sparsity
    kind = sparsity.topology.kind
    if sparsity.method != "dense" and kind not in (None, "magnitude") and sparsity.first_density < 1:
        console.print(
            f"the initial graphs are '{kind}', drawn without a look at the weights of {recipe.model.pretrained}, most "
            "of which they drop; sparsity.topology.kind 'magnitude' keeps the largest",
            style="yellow",
        )


@lru_cache(maxsize=1)
def _tokenize(texts: tuple[str, ...], config: ModelConfig, length: int) -> tuple[PreTrainedTokenizerFast, Tensor]:
    """A tokenizer, trained on texts or loaded, and their blocks [B, S]: kept for the next run on the same texts."""
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else train_tokenizer(texts, config.vocab_size)
    return tokenizer, pack_tokens(tokenizer, texts, length)


def load_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one's own, from a directory or the hub.

    Raises:
        InputError: there is none, it is no fast one (tokenizer.json), or it has no token to end texts with.
    """
    where = f"model.tokenizer '{source}'"
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise InputError(f"{where} cannot be loaded: {' '.join(str(error).split())}") from error
    if not tokenizer.is_fast:
        raise InputError(f"{where} has no tokenizer.json, which all later stages read: save it as a fast tokenizer")
    if tokenizer.eos_token_id is None:
        raise InputError(f"{where} has no eos_token, which texts end with: set it in tokenizer_config.json")
    return tokenizer


def load_pretrained(source: str, sequence_length: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A dense model of a known family and its tokenizer, from a directory or the hub.

    Raises:
        InputError: there is none, it cannot be exported, its weights are compressed, quantised or incomplete, or its
        context is too short.
    """
    where = f"model.pretrained '{source}'"
    try:
        decoder = describe(AutoConfig.from_pretrained(source))
        if (Path(source) / "config.json").is_file():
            model = load_model(AutoModelForCausalLM, Path(source), settle=partial(settle, decoder=decoder)).model
        else:
            model = _from_hub(source, where, decoder)
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise InputError(f"{where} cannot be loaded: {' '.join(str(error).split())}") from error
    check_fits(decoder, model)
    _check_context(where, sequence_length, decoder.context_length)
    return model, tokenizer


def _check_context(where: str, sequence_length: int, context_length: int) -> None:
    if sequence_length > context_length:
        raise InputError(f"data.sequence_length {sequence_length} is above the context of {where}, {context_length}")


def build_optimizer(recipe: LanguageModelRecipe, model: nn.Module) -> torch.optim.AdamW:
    """AdamW with two groups: linear layers, at their own rate and with weight decay, and the rest."""
    optimization = recipe.optimization
    names = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    named = list(model.named_parameters())
    linear = [parameter for name, parameter in named if name in names]
    rest = [parameter for name, parameter in named if name not in names]
    groups = [
        {
            "params": linear,
            "lr": optimization.projection_learning_rate,
            "weight_decay": optimization.weight_decay,
        },
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optimization.learning_rate, betas=(0.9, optimization.adam_beta2), fused=True)


def _from_hub(source: str, where: str, decoder: Decoder) -> Any:
    check_configuration(AutoConfig.from_pretrained(source).to_dict(), where)
    loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    model, found = loaded
    check_weights_fit(where, settle(model, found, decoder))
    return model
