"""A multilayer perceptron in the Hugging Face layout.

Legend: B images, F features an image, C classes.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from ..sparse_linear import rows_first


class MlpConfig(PretrainedConfig):
    """Sizes of a perceptron: features in, hidden nodes of each layer, classes out; ValueError where one is below 1."""

    model_type = "hebbline-mlp"

    def __init__(self, features: int = 784, hidden: tuple[int, ...] = (1568,), classes: int = 10, **rest: Any) -> None:
        sizes = [features, classes, *hidden] if isinstance(hidden, list | tuple) else [hidden]
        if len(sizes) < 3 or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(
                f"features {features!r}, hidden {hidden!r} and classes {classes!r} must be a whole number of at least "
                "1, a list of such, and one"
            )
        self.features, self.hidden, self.classes = features, list(hidden), classes
        super().__init__(**rest)


AutoConfig.register(MlpConfig.model_type, MlpConfig)


class Mlp(PreTrainedModel):
    """Linear layers with ReLU between them. `layers.0`, `layers.2`, … are hidden; `head` gives the classes."""

    config_class = MlpConfig
    # The loss is a mean over the batch, not over one that accumulates: the Trainer must not take it for scaled.
    accepts_loss_kwargs = False

    def __init__(self, config: MlpConfig) -> None:
        super().__init__(config)
        stack: list[nn.Module] = []
        sizes = [config.features, *config.hidden]
        for inputs, outputs in zip(sizes, config.hidden, strict=False):
            stack += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*stack)
        self.head = nn.Linear(sizes[-1], config.classes)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Kaiming for ReLU, biases 0."""
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, pixels: Tensor, labels: Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """Classify images.

        Args:
            pixels: float [B, F].
            labels: int64 [B], for the loss.

        Returns:
            `logits` [B, C], and `loss`, the mean cross entropy, where there are labels.
        """
        logits_BC = self.head(rows_first(self.layers(pixels)))
        loss = None if labels is None else nn.functional.cross_entropy(logits_BC, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits_BC)


@torch.no_grad()
def scale_to_links(model: Mlp, densities: dict[str, float]) -> None:
    """SWI: give sparse layers the variance that their links need, std sqrt(2 / (density * inputs))."""
    for name, density in densities.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, std=math.sqrt(2 / (density * layer.in_features)))
