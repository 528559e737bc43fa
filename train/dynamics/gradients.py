"""Dense gradients, for the methods that look at them: kept at the steps that an update follows, and only then.

Legend: N out_features, K in_features.
"""

import torch
from torch import Tensor

from .sharding import local


class DenseGradients:
    """The gradients of whole weight matrices, absent links included, over the micro-batches of one optimizer step.

    They are those of the loss as it is differentiated: before clipping.
    """

    def __init__(self) -> None:
        self._gradients: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, name: str, weight_NK: Tensor, mask_NK: Tensor) -> None:
        """Take in a gradient that was just accumulated, before it is masked.

        Off the mask the accumulated gradient is this micro-batch's alone, as the earlier ones' were zeroed there.
        """
        gradient_NK = local(weight_NK.grad).float()
        if name in self._gradients:
            gradient_NK = gradient_NK + self._gradients[name].masked_fill(mask_NK, 0)
        self._gradients[name] = gradient_NK.clone()

    def take(self) -> dict[str, Tensor]:
        """The gradients by layer, float32 [N, K] of this process's rows; none are kept."""
        gradients, self._gradients = self._gradients, {}
        return gradients
