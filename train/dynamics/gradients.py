"""Dense gradients, for the methods that look at them: kept at the steps that an update follows, and only then.

Legend: N out_features, K in_features.
"""

import torch
from torch import Tensor


class DenseGradients:
    """The gradients of whole weight matrices, absent links included, over the micro-batches of one optimizer step.

    They are those of the loss as it is differentiated: before clipping.
    """

    def __init__(self) -> None:
        self._gradients: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, name: str, gradient_NK: Tensor, accumulated_NK: Tensor | None = None) -> None:
        """Take in the gradient of a micro-batch.

        Args:
            name: of the layer.
            gradient_NK: this process's rows.
            accumulated_NK: bool, the places that hold earlier micro-batches' gradients too; none where left out.
        """
        gradient_NK = gradient_NK.float()
        if name in self._gradients:
            earlier_NK = self._gradients[name]
            gradient_NK = gradient_NK + (
                earlier_NK if accumulated_NK is None else earlier_NK.masked_fill(accumulated_NK, 0)
            )
        self._gradients[name] = gradient_NK.clone()

    def take(self) -> dict[str, Tensor]:
        """The gradients by layer, float32 [N, K] of this process's rows; none are kept."""
        gradients, self._gradients = self._gradients, {}
        return gradients
