"""Causal language modelling: from a recipe to a trained Llama, its tokenizer and its masks.

Legend: B blocks, S tokens a block.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ...console import progress
from ..data import Documents, load_documents, pack_tokens, train_tokenizer
from ..dynamics import UpdateReport
from ..dynamics.callback import SparsityCallback
from .recipe import LanguageModelRecipe, ModelConfig


@dataclass(frozen=True)
class TrainingResult:
    """What training leaves. `masks` is empty for a dense model; `log` holds loss, density and update records."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    documents: Documents
    masks: dict[str, Tensor]
    updates: list[UpdateReport]
    log: list[dict[str, Any]]
    seconds: float = 0.0
    tokens: int = 0


def build_model(config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights, for this tokenizer's vocabulary."""
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.context_length,
            vocab_size=len(tokenizer),
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def train_language_model(recipe: LanguageModelRecipe) -> TrainingResult:
    """Load the text, train the tokenizer and the model. The same recipe gives the same bits on the same machine."""
    documents = load_documents(recipe.data.source, recipe.data.validation_share)
    tokenizer = train_tokenizer(documents.train, recipe.model.vocab_size)
    blocks_BS = pack_tokens(tokenizer, documents.train, recipe.data.sequence_length)
    set_seed(recipe.optimization.seed)
    model = build_model(recipe.model, tokenizer)
    sparsity = SparsityCallback(recipe.sparsity)
    started = time.perf_counter()
    log = _run_trainer(recipe, model, blocks_BS, sparsity)
    assert sparsity.sparsifier is not None
    steps = recipe.optimization.steps
    return TrainingResult(
        model=model.eval(),
        tokenizer=tokenizer,
        documents=documents,
        masks=sparsity.sparsifier.masks,
        updates=sparsity.updates,
        log=log,
        seconds=time.perf_counter() - started,
        tokens=steps * recipe.optimization.batch_size * recipe.data.sequence_length,
    )


def _run_trainer(
    recipe: LanguageModelRecipe, model: LlamaForCausalLM, blocks_BS: Tensor, sparsity: SparsityCallback
) -> list[dict[str, Any]]:
    optimization = recipe.optimization
    with TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=optimization.steps,
            per_device_train_batch_size=optimization.batch_size,
            learning_rate=optimization.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=optimization.warmup_steps,
            max_grad_norm=optimization.max_grad_norm,
            logging_steps=optimization.log_every,
            seed=optimization.seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=_Blocks(blocks_BS),
            optimizers=(build_optimizer(recipe, model), None),
            callbacks=[sparsity, _ProgressCallback(sparsity, optimization.batch_size * blocks_BS.shape[1])],
        )
        _silence_printing(trainer)
        trainer.train()
        return trainer.state.log_history


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
    return torch.optim.AdamW(groups, lr=optimization.learning_rate, betas=(0.9, optimization.adam_beta2))


@dataclass(frozen=True)
class _Blocks(torch.utils.data.Dataset):
    """Blocks of tokens as the Trainer wants them: the labels are the inputs, shifted by the model."""

    blocks_BS: Tensor

    def __len__(self) -> int:
        return len(self.blocks_BS)

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        block_S = self.blocks_BS[index]
        return {"input_ids": block_S, "labels": block_S}


def _silence_printing(trainer: Trainer) -> None:
    """The progress bar shows what PrinterCallback would print."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


@dataclass
class _ProgressCallback(TrainerCallback):
    """A progress bar with loss, perplexity, density and speed."""

    sparsity: SparsityCallback
    tokens_a_step: int
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.bar = progress("[cyan]{task.fields[facts]}")

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the bar."""
        self.started = time.perf_counter()
        self.task = self.bar.add_task("training", total=state.max_steps, facts="")
        self.bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the newest loss, and keep density and speed with it in the log."""
        if not logs or "loss" not in logs or self.sparsity.sparsifier is None:
            return
        speed = state.global_step * self.tokens_a_step / (time.perf_counter() - self.started)
        density = self.sparsity.sparsifier.density
        state.log_history[-1] |= {"density": density, "tokens_per_second": speed}
        loss = float(logs["loss"])
        facts = f"loss {loss:.2f}, density {density:.2f}, {speed:,.0f} tokens/s"
        self.bar.update(self.task, facts=facts)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        self.bar.stop()
