"""The recipe of a translation model: an encoder-decoder Transformer."""

from dataclasses import dataclass, field
from typing import Literal

from ...artifacts import InputError
from ..dynamics import SparsityConfig
from ..settings import CheckpointConfig, LoggingConfig, LoopConfig, LoopPlan


@dataclass(frozen=True)
class TransformerShape:
    """Shape of the encoder and of the decoder.

    Args:
        hidden_size: width of the residual stream.
        feed_forward_size: width of the feed-forward layers.
        layers: of the encoder, and as many of the decoder.
        heads: of attention.
        dropout: of the residual stream.
        vocab_size: entries of the tokenizer, which both languages share.
        max_tokens: the longest sentence.
    """

    hidden_size: int = 512
    feed_forward_size: int = 2048
    layers: int = 6
    heads: int = 8
    dropout: float = 0.1
    vocab_size: int = 10000
    max_tokens: int = 128

    def __post_init__(self) -> None:
        if self.heads < 1 or self.hidden_size < 1 or self.hidden_size % self.heads:
            raise InputError(f"model.hidden_size {self.hidden_size} is not a multiple of model.heads {self.heads}")
        if self.vocab_size < 300 or self.max_tokens < 8 or self.layers < 1 or self.feed_forward_size < 1:
            raise InputError("model.vocab_size must be at least 300, max_tokens 8, layers and feed_forward_size 1")


@dataclass(frozen=True)
class PairData:
    """Where the sentence pairs come from.

    Args:
        source: "libreoffice-help" (English and German user manuals, from pinned distribution packages), a .tsv file
            (source, tab, target), or hub://NAME[:CONFIGURATION] of a data set with the languages as columns or in a
            column `translation`.
        languages: from and to, such as ["en", "de"].
        test_share: share of the pairs held out for BLEU where the source has no test part of its own.
        test_pairs: use at most so many for BLEU; 0 for all.
    """

    source: str = "libreoffice-help"
    languages: tuple[str, str] = ("en", "de")
    test_share: float = 0.02
    test_pairs: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1:
            raise InputError(f"data.test_share {self.test_share} is outside (0, 1)")


@dataclass(frozen=True, kw_only=True)
class NoamConfig(LoopConfig):
    """How the weights are trained: Adam with the schedule of Vaswani et al. (arXiv 1706.03762).

    Args:
        steps: optimizer steps.
        batch_tokens: tokens of the longer side in a batch, on one process.
        learning_rate: the factor of the schedule.
        warmup_steps: until the peak.
        label_smoothing: of the loss.
    """

    steps: int = 20000
    batch_tokens: int = 10000
    learning_rate: float = 2.0
    warmup_steps: int = 6000
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch_tokens", "warmup_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"optimization.{name} must be at least 1")

    @property
    def loop(self) -> LoopPlan:
        """What the training loop is told: an item of the data is a batch."""
        return self.loop_plan(steps=self.steps, batch_size=1)


@dataclass(frozen=True)
class SearchConfig:
    """How the model translates for BLEU.

    Args:
        beams: of beam search; 1 is greedy.
        length_penalty: exponent of the length that scores are divided by.
    """

    beams: int = 5
    length_penalty: float = 1.0


@dataclass(frozen=True)
class TranslationRecipe:
    """Everything that determines a training run.

    Args:
        model: its shape.
        data: its pairs.
        optimization: its weights' training.
        search: how it translates.
        sparsity: its graphs' training.
        checkpoint: what to resume from.
        logging: what is recorded.
        task: "translation".
    """

    model: TransformerShape = field(default_factory=TransformerShape)
    data: PairData = field(default_factory=PairData)
    optimization: NoamConfig = field(default_factory=NoamConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    task: Literal["translation"] = "translation"
