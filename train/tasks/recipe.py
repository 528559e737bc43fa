"""The recipe of a language model."""

from dataclasses import dataclass, field
from typing import Literal

from ...architectures.decoder import HEAD_SIZE_STEP
from ...artifacts import InputError
from ..distill import DistillConfig
from ..dynamics import SparsityConfig
from ..settings import CheckpointConfig, LoggingConfig, LoopConfig, LoopPlan


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the model: a Llama, or what `config` or `pretrained` say.

    Args:
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        layers: decoder layers.
        heads: query heads.
        kv_heads: key/value heads; fewer than `heads` is grouped-query attention.
        context_length: longest text, prompt and completion together, in tokens.
        vocab_size: entries of the tokenizer that is trained on the data.
        tie_embeddings: share the input embedding with lm_head.
        config: a transformers `config.json` of any family that can be exported, for a model with random weights; of the
            fields above only `vocab_size` then counts.
        pretrained: a directory or hub name of a dense model of such a family to start from, with its tokenizer; the
            fields above then do not count. Initial graphs of kind "magnitude" keep its largest weights.
        tokenizer: a directory or hub name of a tokenizer to take in place of one that is trained on the data;
            `vocab_size` then does not count.
    """

    hidden_size: int = 256
    intermediate_size: int = 688
    layers: int = 5
    heads: int = 8
    kv_heads: int = 4
    context_length: int = 512
    vocab_size: int = 4096
    tie_embeddings: bool = True
    config: str = ""
    pretrained: str = ""
    tokenizer: str = ""

    def __post_init__(self) -> None:
        if self.pretrained and self.tokenizer:
            raise InputError("model.tokenizer: model.pretrained comes with its own; leave one of the two out")
        for name in ("hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "context_length"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} must be at least 1")
        if self.vocab_size < 257:
            raise InputError(
                f"model.vocab_size {self.vocab_size} is below 257: a byte-level tokenizer needs 256 and one"
            )
        if self.config and self.pretrained:
            raise InputError("model.config and model.pretrained are both given: a model starts from one of them")
        if self.hidden_size % (HEAD_SIZE_STEP * self.heads):
            raise InputError(
                f"model.hidden_size {self.hidden_size} is not a multiple of {HEAD_SIZE_STEP} * model.heads = "
                f"{HEAD_SIZE_STEP * self.heads}: the exported attention takes heads whose size is a multiple of "
                f"{HEAD_SIZE_STEP}"
            )
        if self.heads % self.kv_heads:
            raise InputError(f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}")


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from.

    Args:
        source: "python" (text that comes with CPython), "brown" (the Brown corpus), a .txt or .jsonl file, or
            hub://NAME[:CONFIGURATION].
        validation_share: share of documents held out.
        sequence_length: tokens a training example.
        documents: take the first so many documents; 0 for all. Whole C4 and OpenWebText do not fit into memory.
    """

    source: str = "python"
    validation_share: float = 0.05
    sequence_length: int = 256
    documents: int = 0

    def __post_init__(self) -> None:
        if self.documents < 0:
            raise InputError("data.documents must be at least 0")


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig(LoopConfig):
    """How the weights are trained: AdamW, linear warm-up, cosine decay.

    Args:
        steps: optimizer steps.
        batch_size: sequences a batch, on one process.
        learning_rate: peak learning rate of the embeddings and norms.
        projection_learning_rate: peak learning rate of the linear layers.
        warmup_steps: steps of linear warm-up.
        weight_decay: of the linear layers.
        adam_beta2: 0.95 lets a regrown link, whose moments start at 0, move at the common pace at once; with 0.999 its
            first steps would be up to six times too large.
        weights: what parameters, gradients and Adam's moments are held in: "float32", or "bfloat16", in which small
            steps are lost to rounding; `precision` says it of products alone.
    """

    steps: int = 600
    batch_size: int = 8
    learning_rate: float = 3e-3
    projection_learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.1
    adam_beta2: float = 0.95
    max_grad_norm: float = 1.0
    log_every: int = 10
    weights: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"optimization.{name} must be at least 1")

    @property
    def loop(self) -> LoopPlan:
        """What the training loop is told."""
        return self.loop_plan(steps=self.steps, batch_size=self.batch_size)


@dataclass(frozen=True)
class LanguageModelRecipe:
    """Everything that determines a training run.

    Args:
        model: its shape.
        data: its text.
        optimization: its weights' training.
        sparsity: its graphs' training.
        distill: what it learns from beside the text.
        checkpoint: what to resume from.
        logging: what is recorded.
        task: "language-model".
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    task: Literal["language-model"] = "language-model"

    def __post_init__(self) -> None:
        if self.model.pretrained or self.model.config:
            return
        if not 2 <= self.data.sequence_length <= self.model.context_length:
            raise InputError(
                f"data.sequence_length {self.data.sequence_length} is outside [2, model.context_length = "
                f"{self.model.context_length}]"
            )
