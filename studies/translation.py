"""Translation from English to German: short passages of software manuals, at 10% and 5% density."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from transformers import MarianMTModel, PreTrainedTokenizerFast

from ..data.pairs import Pair, load_pairs
from ..train.dynamics.config import FractionConfig, RemovalConfig, TopologyConfig
from ..train.tasks import TranslationRecipe
from ..train.tasks.result import TrainingResult
from ..train.tasks.translation import score_bleu, train_translation
from ..train.tasks.translation_recipe import NoamConfig, PairData, SearchConfig, TransformerShape
from .measure import outcome_of, step_clock
from .study import DENSE, Arm, Claim, Outcome, Run, Study, sparsity_of

_DATA = PairData(source="libreoffice-help", languages=("en", "de"), test_share=0.05, test_pairs=1)
_SHAPE = TransformerShape(
    hidden_size=128, feed_forward_size=512, layers=2, heads=4, dropout=0.1, vocab_size=2000, max_tokens=16
)
_STEPS, _WARMUP = 500, 150
_LONG_STEPS, _LONG_WARMUP = 1500, 400
_BATCH_TOKENS = 500
_UPDATES = 10
_TUNING_PAIRS = 300
_REPORTED_PAIRS = 600
_TUNING_SEARCH = SearchConfig(beams=1)
_SEARCH = SearchConfig(beams=4)

# The paper's settings for translation (arXiv 2501.19107): 30% replaced, sampled at temperatures from 1 to 3.
_PAPER = {
    "fraction": FractionConfig(kind="cosine", initial=0.3),
    "removal": RemovalConfig(temperature=(1.0, 3.0), chains=True),
}
_ARMS = (
    DENSE,
    Arm("static ER", {"method": "static", "topology": TopologyConfig(kind="er")}),
    Arm("SET", {"method": "set", "distribution": "uniform"}),
    Arm("RigL", {"method": "rigl", "distribution": "uniform"}),
    Arm("CHTs", {"method": "chts", **_PAPER}),
    Arm("CHTss", {"method": "chtss", **_PAPER}),
)


@dataclass(frozen=True)
class TranslationStudy(Study):
    """BLEU on held-out pages: every other pair chooses learning rates, the others are reported.

    Args:
        steps: of training; topology updates come in the first four fifths.
        warmup: steps until the peak of the schedule.
    """

    steps: int = _STEPS
    warmup: int = _WARMUP

    def perform(self, run: Run) -> Outcome:
        """Train an encoder-decoder Transformer, and translate."""
        with step_clock() as clock:
            result = train_translation(_recipe(run, self.steps, self.warmup))
        held_out = _short_pairs(_held_out(), result)
        if run.purpose == "tuning":
            return outcome_of(result, clock, _bleu(result, held_out[::2][:_TUNING_PAIRS], _TUNING_SEARCH))
        return outcome_of(result, clock, _bleu(result, held_out[1::2][:_REPORTED_PAIRS], _SEARCH))


def _budget(steps: int, warmup: int) -> str:
    return (
        f"{_SHAPE.layers} + {_SHAPE.layers} layers, {_SHAPE.hidden_size} wide, {_SHAPE.vocab_size} tokens; {steps} "
        f"steps of {_BATCH_TOKENS} tokens; passages of at most {_SHAPE.max_tokens} tokens; {_UPDATES} updates; Adam, "
        f"the schedule of Vaswani et al. with warm-up {warmup} and the chosen factor; {_SEARCH.beams} beams"
    )


TRANSLATION = TranslationStudy(
    name="translation",
    title="Translation, English to German",
    metric="BLEU",
    higher_is_better=True,
    arms=_ARMS,
    densities=(0.1, 0.05),
    rates=(0.1, 0.3, 0.9),
    seeds=(1, 2, 3),
    budget=_budget(_STEPS, _WARMUP),
    claims=(Claim("CHTss at 5% is at least as good as dense", "CHTss", (DENSE.name,), 0.05),),
    note="Short passages of LibreOffice's manuals stand in for Multi30k, IWSLT14 and WMT17, in a smaller model and for "
    "a shorter time: BLEU is comparable within the table, not with the paper's.",
)
TRANSLATION_LONG = replace(
    TRANSLATION,
    name="translation-long",
    title="Translation, three times as long",
    arms=tuple(arm for arm in _ARMS if arm.name != "RigL"),
    densities=(0.05,),
    rates=(0.3, 0.5, 0.9),
    budget=_budget(_LONG_STEPS, _LONG_WARMUP),
    note="The same at 5%, until there is something to compare.",
    steps=_LONG_STEPS,
    warmup=_LONG_WARMUP,
)


def _recipe(run: Run, steps: int, warmup: int) -> TranslationRecipe:
    optimization = NoamConfig(
        steps=steps,
        batch_tokens=_BATCH_TOKENS,
        learning_rate=run.rate,
        warmup_steps=warmup,
        seed=run.seed,
    )
    # The task itself scores a pair or two; the study scores what it holds out.
    return TranslationRecipe(
        model=_SHAPE,
        data=_DATA,
        optimization=optimization,
        search=_TUNING_SEARCH,
        sparsity=sparsity_of(run, steps, _UPDATES),
    )


def _held_out() -> list[Pair]:
    return load_pairs(_DATA.source, _DATA.languages, _DATA.test_share).test


def _short_pairs(pairs: Sequence[Pair], result: TrainingResult) -> list[Pair]:
    """Pairs of the lengths that were trained on."""
    assert result.tokenizer is not None
    encode = result.tokenizer
    return [pair for pair in pairs if all(len(encode(side)["input_ids"]) < _SHAPE.max_tokens for side in pair)]


def _bleu(result: TrainingResult, pairs: Sequence[Pair], search: SearchConfig) -> float:
    model = cast(MarianMTModel, result.model)
    tokenizer = cast(PreTrainedTokenizerFast, result.tokenizer)
    return score_bleu(model.eval(), tokenizer, pairs, search, _SHAPE.max_tokens)[0]
