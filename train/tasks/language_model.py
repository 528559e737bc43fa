"""Causal language modelling: from a recipe to a trained decoder, its tokenizer and its masks.

Legend: B blocks, S tokens a block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from ...architectures import Decoder, check_fits, check_layers, describe, describe_at, settle
from ...artifacts import InputError
from ...artifacts.checkpoints import (
    check_checkpoint,
    check_configuration,
    check_weights_fit,
    from_pretrained,
    load_model,
    read_config,
)
from ...artifacts.tokenizer_files import check_tokenizer_fits, fast_tokenizer
from ...console import console
from ...data import load_documents, pack_tokens, train_tokenizer
from ...data.documents import Documents
from ...data.rows import Rows, as_is
from ...runtime.perplexity import Perplexity, perplexity, token_windows
from ...runtime.torch_scores import torch_scorer
from ..distill import Distillation, check_vocabulary
from ..link_adamw import LinkAdamW
from ..settings import RunSettings
from ..teacher_cache import TeacherCache, cache_facts, open_cache
from ..trainer import world_size
from ..training import Training, run_training
from .recipe import LanguageModelRecipe, ModelConfig
from .result import TrainingResult

_WINDOWS = 64
"""Of held-out text that a report's perplexity is measured on, at most."""


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
    config = read_config(path)
    describe_at(f"model.config '{path}'", config)
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
    dense = (
        load_pretrained(recipe.model.pretrained, "model.pretrained", recipe.data.sequence_length)
        if recipe.model.pretrained
        else None
    )
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
    _hold_in(model, recipe.optimization.weights)
    is_reported = settings is not None and settings.logging.report and world_size() == 1
    before = _held_out(model, tokenizer, documents, recipe) if is_reported and dense is not None else None
    distillation = _distillation(recipe, model, tokenizer, blocks_BS)
    optimization = recipe.optimization
    tokens_a_step = optimization.batch_size * optimization.accumulate * world_size() * recipe.data.sequence_length
    training = Training(
        model=model,
        # The labels are the inputs, shifted by the model.
        dataset=Rows({"input_ids": blocks_BS, "labels": blocks_BS}),
        collate=as_is,
        optimizer=build_optimizer(recipe, model),
        sparsity=recipe.sparsity,
        loop=optimization.loop,
        warmup_steps=optimization.warmup_steps,
        unit="tokens",
        units_a_step=tokens_a_step,
        distillation=distillation,
    )
    trained = run_training(training, settings)
    tokens = optimization.steps * tokens_a_step
    train_bytes, validation_bytes = documents.bytes
    summary = (
        f"{tokens:,} tokens in {trained.seconds:.0f} s ({tokens / trained.seconds:,.0f} tokens/s) from "
        f"{train_bytes / 1e6:.2f} MB of text; {validation_bytes / 1e6:.2f} MB in other documents are held out"
    )
    after = _held_out(model, tokenizer, documents, recipe) if is_reported else None
    facts: dict[str, Any] = {"tokens": tokens}
    if before is not None:
        facts["dense_perplexity"] = before.value
    if after is not None:
        facts |= {"held_out_perplexity": after.value, "held_out_tokens": after.tokens}
    return TrainingResult(model.eval(), tokenizer, trained, summary, facts)


def _hold_in(model: PreTrainedModel, weights: str) -> None:
    """Let the parameters be of this type; buffers, such as the frequencies of positions, stay as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, weights))


def _held_out(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, documents: Documents, recipe: LanguageModelRecipe
) -> Perplexity | None:
    """Perplexity of the documents that are not trained on, for the report; None where they fill no window."""
    texts, length = documents.validation, recipe.data.sequence_length
    try:
        windows = token_windows(tokenizer.backend_tokenizer, texts, tokenizer.eos_token_id, length, _WINDOWS)
    except InputError:
        return None
    return perplexity(windows, torch_scorer(model.eval()))


def _distillation(
    recipe: LanguageModelRecipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, blocks_BS: Tensor
) -> Distillation | None:
    """The recipe's teacher, whose logits are of the same tokens as the model's, and what is kept of them."""
    source = recipe.distill.teacher
    if not source or not recipe.distill.weight:
        return None
    if recipe.distill.cache and world_size() > 1:
        raise InputError("distill.cache is filled by one process; leave it out, or train on one")
    teacher, other = load_pretrained(source, "distill.teacher", recipe.data.sequence_length)
    check_vocabulary(source, teacher, other, model, tokenizer)
    cache = _teacher_cache(recipe, teacher, other, blocks_BS) if recipe.distill.cache else None
    return Distillation(teacher, recipe.distill, cache)


def _teacher_cache(
    recipe: LanguageModelRecipe, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, blocks_BS: Tensor
) -> TeacherCache:
    distill = recipe.distill
    facts = cache_facts(
        teacher,
        teacher.config.to_dict(),
        tokenizer.get_vocab(),
        blocks_BS,
        kept=min(distill.cache_top_k, teacher.config.vocab_size),
        temperature=distill.temperature,
        precision=recipe.optimization.precision,
    )
    cache = open_cache(Path(distill.cache), facts, blocks_BS)
    console.print(
        f"{distill.cache} has the teacher's distributions of {cache.filled:,} of {facts.blocks:,} blocks of text; of "
        f"all, it takes {facts.bytes / 1e6:,.0f} MB"
    )
    return cache


def _warn_of_random_graphs(recipe: LanguageModelRecipe) -> None:
    sparsity = recipe.sparsity
    kind = sparsity.topology.kind
    if sparsity.method != "dense" and kind not in (None, "magnitude", "nonzero") and sparsity.first_density < 1:
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
    with _about("model.tokenizer"):
        tokenizer: PreTrainedTokenizerFast = fast_tokenizer(source)
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"model.tokenizer '{source}' has no eos_token, which texts end with: set it in tokenizer_config.json"
        )
    return tokenizer


def load_pretrained(source: str, field: str, sequence_length: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A dense model of a known family and its tokenizer, from a directory or the hub.

    Raises:
        InputError: there is none, it cannot be exported, its weights are compressed, quantised or incomplete, or its
        context is too short.
    """
    where, path = f"{field} '{source}'", Path(source)
    with _about(field):
        if path.is_dir():
            check_checkpoint(path)
        config = read_config(source)
    decoder = describe_at(where, config)
    _check_context(where, sequence_length, decoder.context_length)
    with _about(field):
        tokenizer = fast_tokenizer(source)
        if path.is_dir():
            check_tokenizer_fits(path, decoder.vocab_size)
            check_layers(decoder, path)
            model = load_model(AutoModelForCausalLM, path, settle=partial(settle, decoder=decoder)).model
        else:
            model = _from_hub(source, config, decoder)
        check_fits(decoder, model)
    return model, tokenizer


@contextmanager
def _about(field: str) -> Iterator[None]:
    """Let errors begin with the field of the recipe that names what they are about."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{field}: {error}") from error


def _check_context(where: str, sequence_length: int, context_length: int) -> None:
    if sequence_length > context_length:
        raise InputError(f"data.sequence_length {sequence_length} is above the context of {where}, {context_length}")


def build_optimizer(recipe: LanguageModelRecipe, model: nn.Module) -> torch.optim.Optimizer:
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
    rate, betas, new = optimization.learning_rate, (0.9, optimization.adam_beta2), recipe.sparsity.new_links
    if new.own_steps:
        return LinkAdamW([groups[0] | {"young_steps": new.young_steps}, groups[1]], lr=rate, betas=betas)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)


def _from_hub(source: str, config: PretrainedConfig, decoder: Decoder) -> Any:
    check_configuration(config.to_dict(), source)
    model, found = from_pretrained(AutoModelForCausalLM, source, source, dtype=torch.float32)
    check_weights_fit(source, settle(model, found, decoder))
    return model
