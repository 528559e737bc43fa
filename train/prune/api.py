"""`prune`: for those who stay in torch.

Legend: B sequences, S tokens; N out_features, K in_features.
"""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from .config import PruneConfig
from .run import Progress, prune_blocks


def prune(
    model: PreTrainedModel, calibration: Tensor, *, progress: Progress | None = None, **options: Any
) -> dict[str, Tensor]:
    """Prune a pretrained decoder in place.

        masks = prune(model, ids, density=0.5)  # or method="sparsegpt", structure="2:4", ...

    Args:
        model: a transformers causal language model.
        calibration: token ids, int64 [B, S], on the model's device; 128 sequences of 512 tokens are a good start.
        progress: told what is being done, and how many of how many decoder blocks are done.
        options: the fields of `PruneConfig`.

    Returns:
        Masks, bool [N, K] by layer name, exactly as many links as the density asks for.

    Raises:
        InputError: an option out of range, globs that match nothing, a shape or density that the structure does not
            admit, or activations that are not finite; the layer is named.
        UnsupportedModelError: the model is no decoder whose blocks can be run one at a time.
    """
    return prune_blocks(model, calibration, PruneConfig(**options), progress=progress).masks
