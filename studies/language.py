"""Language modelling on the Brown corpus: the methods at 30%, 10% and 5%, at equal numbers of tokens."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..data import load_documents, pack_tokens
from ..train.dynamics.config import RegrowthConfig, SparsityConfig, TopologyConfig
from ..train.tasks import LanguageModelRecipe, train_language_model
from ..train.tasks.recipe import DataConfig, ModelConfig, OptimizationConfig
from ..train.tasks.result import TrainingResult
from .measure import outcome_of, step_clock
from .study import DENSE, Arm, Claim, Outcome, Purpose, Run, Study, sparsity_of

_DATA = DataConfig(source="brown", validation_share=0.1, sequence_length=128)
_STEPS = 300
_STEPS_AN_UPDATE = 30
_BATCH = 8
_MODEL = ModelConfig(
    hidden_size=128, intermediate_size=352, layers=2, heads=4, kv_heads=4, context_length=128, vocab_size=1024
)
_SCORE_BATCH = 16

ER = TopologyConfig(kind="er")
TOP = RegrowthConfig(rule="top")
_SHARP = RegrowthConfig(temperature=4.0)


def brf(r: float) -> TopologyConfig:
    """Bipartite receptive fields of this randomness."""
    return TopologyConfig(kind="brf", r=r)


# Every method has the same density in all layers, so that they differ in their graphs alone.
_ARMS = (
    DENSE,
    Arm("static ER", {"method": "static", "topology": ER}),
    Arm("static BRF", {"method": "static", "topology": brf(0.25)}),
    Arm("SET", {"method": "set", "distribution": "uniform"}),
    Arm("RigL", {"method": "rigl", "distribution": "uniform"}),
    Arm("MEST", {"method": "mest"}),
    Arm("GMP", {"method": "gmp"}),
    Arm("GraNet", {"method": "granet", "distribution": "uniform"}),
    Arm("CHTs", {"method": "chts"}),
    Arm("CHTs, sharpened", {"method": "chts", "regrowth": _SHARP}),
    Arm("CHTs, top", {"method": "chts", "regrowth": TOP}),
    Arm("CHTss", {"method": "chtss"}),
    Arm("CHTss, sharpened", {"method": "chtss", "regrowth": _SHARP}),
    Arm("CHTss, top", {"method": "chtss", "regrowth": TOP}),
    Arm("CHTss, r = 0", {"method": "chtss", "topology": brf(0.0)}),
    Arm("CHTss, r = 1", {"method": "chtss", "topology": brf(1.0)}),
    Arm("CHTss, 2:4", {"method": "chtss", "structure": "2:4"}),
    Arm("CHTss, 8x8 blocks", {"method": "chtss", "structure": "block", "block_size": 8}),
)


@dataclass(frozen=True)
class LanguageStudy(Study):
    """Perplexity of held-out documents: one half chooses learning rates, the other is reported.

    Args:
        steps: of training; topology updates come in the first four fifths.
    """

    steps: int = _STEPS

    def perform(self, run: Run) -> Outcome:
        """Train a Llama and score it."""
        with step_clock() as clock:
            result = self.train(run)
        return outcome_of(result, clock, perplexity_of(result.model, held_out(result, run.purpose)))

    def train(self, run: Run) -> TrainingResult:
        """Train a Llama."""
        return train_language_model(self.recipe(run))

    def recipe(self, run: Run) -> LanguageModelRecipe:
        """What a run trains."""
        return recipe_of(run, self.steps, sparsity_of(run, self.steps, _updates(self.steps)))


def _budget(steps: int) -> str:
    return (
        f"{size_of(steps)}; {_updates(steps)} updates; AdamW, 3e-3 for embeddings and norms, the chosen rate for "
        "projections"
    )


def size_of(steps: int) -> str:
    """Model, data and length of a run, in words."""
    return (
        f"a Llama of {_MODEL.layers} layers, {_MODEL.hidden_size} wide, with {_MODEL.vocab_size} tokens; {steps} "
        f"steps of {_BATCH} x {_DATA.sequence_length} tokens of the Brown corpus"
    )


def _updates(steps: int) -> int:
    return steps * 4 // 5 // _STEPS_AN_UPDATE


_FROM_ER = tuple(Arm(f"{name}, from ER", {"method": name.lower(), "topology": ER}) for name in ("CHTs", "CHTss"))
_OTHERS = ("SET", "RigL", "MEST", "GMP", "GraNet")
_BEATS_OTHERS = tuple(
    Claim(f"{arm} beats the other dynamic methods at 30%", arm, _OTHERS, 0.3) for arm in ("CHTs", "CHTss")
)

LANGUAGE = LanguageStudy(
    name="language",
    title="Language modelling",
    metric="perplexity",
    higher_is_better=False,
    arms=_ARMS,
    densities=(0.3, 0.1, 0.05),
    rates=(2e-4, 6e-4, 2e-3, 8e-3, 3e-2),
    seeds=(1, 2, 3),
    budget=_budget(_STEPS),
    claims=(
        *_BEATS_OTHERS,
        Claim("a 2:4 structure costs CHTss less than 1% of perplexity at 30%", "CHTss, 2:4", ("CHTss",), 0.3, 0.01),
    ),
    note="The Brown corpus stands in for C4 and OpenWebText, in a model and for a time that are far below the paper's: "
    "the figures are comparable with each other, not with the paper's.",
)


_LONG = {DENSE.name, "static ER", "static BRF", *_OTHERS, "CHTs", "CHTss"}
LANGUAGE_LONG = replace(
    LANGUAGE,
    name="language-long",
    title="Language modelling, three times as long",
    arms=(*(arm for arm in _ARMS if arm.name in _LONG), *_FROM_ER),
    densities=(0.3,),
    rates=(2e-3, 8e-3),
    budget=_budget(3 * _STEPS),
    claims=(
        Claim("with more steps CHTss is at least as good as a static random graph", "CHTss", ("static ER",), 0.3),
        *_BEATS_OTHERS,
        Claim("CHTs from a random graph beats the other dynamic methods at 30%", "CHTs, from ER", _OTHERS, 0.3),
        Claim("at 30% CHTs is better off with a random initial graph", "CHTs, from ER", ("CHTs",), 0.3),
    ),
    note="The same, to tell whether the order of the methods is one of the budget.",
    steps=3 * _STEPS,
)


def recipe_of(run: Run, steps: int, sparsity: SparsityConfig) -> LanguageModelRecipe:
    """The study's model and data, trained for so many steps at the run's rate."""
    optimization = OptimizationConfig(
        steps=steps,
        batch_size=_BATCH,
        learning_rate=3e-3,
        projection_learning_rate=run.rate,
        warmup_steps=steps // 10,
        log_every=50,
        seed=run.seed,
    )
    return LanguageModelRecipe(model=_MODEL, data=_DATA, optimization=optimization, sparsity=sparsity)


def held_out(result: TrainingResult, purpose: Purpose) -> Tensor:
    """Blocks of tokens [B, S] of every other held-out document, or of those between, which are reported."""
    assert result.tokenizer is not None
    documents = _validation_documents()[0 if purpose == "tuning" else 1 :: 2]
    return pack_tokens(result.tokenizer, documents, _DATA.sequence_length)


@lru_cache(maxsize=1)
def _validation_documents() -> tuple[str, ...]:
    return tuple(load_documents(_DATA.source, _DATA.validation_share).validation)


@torch.inference_mode()
def perplexity_of(model: nn.Module, blocks_BS: Tensor) -> float:
    """exp of the mean loss over all predicted tokens; infinite where it is too large for a float."""
    losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in blocks_BS.split(_SCORE_BATCH)]
    mean = sum(losses) / len(blocks_BS)
    return math.exp(mean) if mean < 700 else math.inf
