"""Translation: from a recipe to a trained encoder-decoder Transformer and its BLEU.

Legend: B sentences of a batch, S tokens of the longest source, T tokens of the longest target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast, set_seed

from ...artifacts import InputError
from ...data.pairs import Pair, load_pairs
from ...data.tokens import END_OF_TEXT, PADDING, train_tokenizer
from ..link_adamw import LinkAdamW
from ..settings import RunSettings
from ..trainer import world_size
from ..training import Training, run_training
from .result import TrainingResult
from .translation_recipe import SearchConfig, TransformerShape, TranslationRecipe

_IGNORED = -100
_SEARCH_BATCH = 32


def train_translation(recipe: TranslationRecipe, settings: RunSettings | None = None) -> TrainingResult:
    """Load the pairs, train the tokenizer and the model, translate the test part.

    The same recipe gives the same bits on the same machine.

    Args:
        recipe: what to train.
        settings: where checkpoints and logs go; without them, there are none.
    """
    pairs = load_pairs(recipe.data.source, recipe.data.languages, recipe.data.test_share)
    tokenizer = train_tokenizer(
        (text for pair in pairs.train for text in pair), recipe.model.vocab_size, [END_OF_TEXT, PADDING]
    )
    batches = make_batches(pairs.train, tokenizer, recipe.optimization.batch_tokens, recipe.model.max_tokens)
    set_seed(recipe.optimization.seed)
    model = build_transformer(recipe.model, tokenizer)
    optimization = recipe.optimization
    # The smoothed loss is scaled by the tokens of a whole step; the model's own is a mean over each batch.
    model.accepts_loss_kwargs = optimization.label_smoothing > 0  # type: ignore[assignment]
    tokens = sum(int((batch["labels"] != _IGNORED).sum()) for batch in batches) / len(batches)
    training = Training(
        model=model,
        dataset=_Batches(batches),
        optimizer=_optimizer(recipe, model),
        schedule=lambda optimizer: _noam(optimizer, recipe),
        sparsity=recipe.sparsity,
        loop=optimization.loop,
        unit="tokens",
        units_a_step=tokens * optimization.accumulate * world_size(),
        collate=lambda items: items[0],
        label_smoothing=optimization.label_smoothing,
    )
    trained = run_training(training, settings)
    test = pairs.test[: recipe.data.test_pairs or None]
    bleu, signature = score_bleu(model.eval(), tokenizer, test, recipe.search, recipe.model.max_tokens)
    facts = {"bleu": bleu, "bleu_signature": signature, "test_pairs": len(test), "train_pairs": len(pairs.train)}
    summary = (
        f"BLEU {bleu:.2f} ({signature}) on {len(test):,} held-out pairs of {recipe.data.source}, after "
        f"{optimization.steps:,} steps on {len(pairs.train):,} pairs in {trained.seconds:.0f} s"
    )
    return TrainingResult(model, tokenizer, trained, summary, facts)


def build_transformer(shape: TransformerShape, tokenizer: PreTrainedTokenizerFast) -> MarianMTModel:
    """The Transformer of Vaswani et al. with random weights: sinusoidal positions, embeddings tied throughout."""
    layers: dict[str, Any] = {}
    for part in ("encoder", "decoder"):
        layers |= {
            f"{part}_layers": shape.layers,
            f"{part}_attention_heads": shape.heads,
            f"{part}_ffn_dim": shape.feed_forward_size,
        }
    return MarianMTModel(
        MarianConfig(
            vocab_size=len(tokenizer),
            d_model=shape.hidden_size,
            max_position_embeddings=shape.max_tokens,
            activation_function="relu",
            dropout=shape.dropout,
            attention_dropout=shape.dropout,
            scale_embedding=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            decoder_start_token_id=tokenizer.pad_token_id,
            forced_eos_token_id=None,
            **layers,
        )
    )


def make_batches(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerFast, batch_tokens: int, max_tokens: int
) -> list[dict[str, Tensor]]:
    """Pairs of like length, together within a budget of tokens of the longer side, padding counted.

    Pairs longer than `max_tokens` on a side are left out.

    Returns:
        Batches of int64 `input_ids` and `attention_mask` [B, S], `decoder_input_ids` and `labels` [B, T]; labels of
        padding are -100.

    Raises:
        InputError: no pair is short enough.
    """
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    sides = [
        tokenizer(list(side), add_special_tokens=False, verbose=False)["input_ids"] for side in zip(*pairs, strict=True)
    ]
    encoded = [([*source, eos], [*target, eos]) for source, target in zip(*sides, strict=True)]
    fitting = [pair for pair in encoded if max(map(len, pair)) <= max_tokens]
    if not fitting:
        raise InputError(f"no sentence pair is within model.max_tokens {max_tokens} tokens")
    batches: list[dict[str, Tensor]] = []
    batch: list[tuple[list[int], list[int]]] = []
    for pair in sorted(fitting, key=lambda pair: (max(map(len, pair)), pair)):
        # Sorted by length: this pair is the longest so far.
        if batch and (len(batch) + 1) * max(map(len, pair)) > batch_tokens:
            batches.append(_batch(batch, pad))
            batch = []
        batch.append(pair)
    return [*batches, _batch(batch, pad)]


def _batch(pairs: Sequence[tuple[list[int], list[int]]], pad: int) -> dict[str, Tensor]:
    source_BS = _padded([source for source, _ in pairs], pad)
    labels_BT = _padded([target for _, target in pairs], _IGNORED)
    shifted_BT = _padded([[pad, *target[:-1]] for _, target in pairs], pad)
    return {
        "input_ids": source_BS,
        "attention_mask": (source_BS != pad).long(),
        "decoder_input_ids": shifted_BT,
        "labels": labels_BT,
    }


def _padded(rows: Sequence[Sequence[int]], filling: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[filling] * (length - len(row))] for row in rows])


def score_bleu(
    model: MarianMTModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Pair],
    search: SearchConfig,
    max_tokens: int,
) -> tuple[float, str]:
    """Corpus BLEU of beam-search translations by sacrebleu, and the signature that says how it was counted."""
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    found = translate(model, tokenizer, [source for source, _ in pairs], search, max_tokens)
    score = metric.corpus_score(found, [[target for _, target in pairs]])
    return score.score, str(metric.get_signature())


@torch.inference_mode()
def translate(
    model: MarianMTModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    search: SearchConfig,
    max_tokens: int,
) -> list[str]:
    """Translate sentences by beam search; those longer than `max_tokens` are cut."""
    device = next(model.parameters()).device
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    order = sorted(range(len(texts)), key=lambda index: len(encoded[index]))
    found = [""] * len(texts)
    for start in range(0, len(order), _SEARCH_BATCH):
        indices = order[start : start + _SEARCH_BATCH]
        source_BS = _padded([[*encoded[index][: max_tokens - 1], eos] for index in indices], pad).to(device)
        output_BT: Any = model.generate(  # type: ignore[misc]
            input_ids=source_BS,
            attention_mask=(source_BS != pad).long(),
            num_beams=search.beams,
            length_penalty=search.length_penalty,
            max_new_tokens=max_tokens - 1,
            do_sample=False,
        )
        for index, text in zip(indices, tokenizer.batch_decode(output_BT, skip_special_tokens=True), strict=True):
            found[index] = text.strip()
    return found


def _optimizer(recipe: TranslationRecipe, model: nn.Module) -> Optimizer:
    """Adam, without weight decay."""
    betas, new = (0.9, 0.998), recipe.sparsity.new_links
    if new.own_steps:
        parameters = model.parameters()
        return LinkAdamW(parameters, lr=1.0, betas=betas, weight_decay=0.0, young_steps=new.young_steps)
    return torch.optim.Adam(model.parameters(), lr=1.0, betas=betas, fused=True)


def _noam(optimizer: Optimizer, recipe: TranslationRecipe) -> LambdaLR:
    """lr d^-0.5 min(step^-0.5, step warmup^-1.5), with steps from 1 (arXiv 1706.03762, equation 3)."""
    optimization = recipe.optimization
    scale = optimization.learning_rate * recipe.model.hidden_size**-0.5
    return LambdaLR(
        optimizer, lambda step: scale * min((step + 1) ** -0.5, (step + 1) * optimization.warmup_steps**-1.5)
    )


@dataclass(frozen=True)
class _Batches(torch.utils.data.Dataset):
    """An item is a batch."""

    batches: list[dict[str, Tensor]]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        return self.batches[index]
