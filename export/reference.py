"""What torch says of the model that is exported: logits, greedy tokens, and how far its float32 is from float64.

Legend: S tokens, V vocabulary, N out_features, K in_features.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

_WIDENED_BYTES = 64 << 20
"""Of a weight, so many bytes at a time are in float64."""


class TorchReference:
    """The answers of a float32 model, each computed once: all graphs of an artifact are held against the same ones."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._known: dict[tuple[object, ...], Any] = {}

    def logits(self, ids_S: Sequence[int], last: int = 0) -> NDArray[np.float32]:
        """The logits [S, V] of a whole sequence, or those after its `last` tokens."""
        return self._once(("logits", last, *ids_S), lambda: torch_logits(self.model, ids_S, last))

    def greedy(self, prompt: Sequence[int], count: int) -> tuple[list[int], float]:
        """See `torch_greedy`."""
        return self._once(("greedy", count, *prompt), lambda: torch_greedy(self.model, prompt, count))

    def rounding(self, ids_S: Sequence[int], last: int = 0) -> float:
        """See `float32_rounding`."""
        return self._once(("rounding", last, *ids_S), lambda: float32_rounding(self.model, ids_S, last))

    def _once(self, key: tuple[object, ...], compute: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


def torch_logits(model: PreTrainedModel, ids_S: Sequence[int], last: int = 0) -> NDArray[np.float32]:
    """The logits [S, V] of a whole sequence, or those after its `last` tokens."""
    with torch.inference_mode():
        return model(torch.tensor([list(ids_S)]), use_cache=False, logits_to_keep=last).logits[0].numpy()


def torch_greedy(model: PreTrainedModel, prompt: Sequence[int], count: int) -> tuple[list[int], float]:
    """The `count` tokens that torch generates greedily, and the least margin between its two best logits."""
    ids, margin, cache = list(prompt), float("inf"), None
    step = torch.tensor([ids])
    with torch.inference_mode():
        for _ in range(count):
            output = model(step, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            best = torch.topk(output.logits[0, -1], 2).values
            margin = min(margin, float(best[0] - best[1]))
            ids.append(int(output.logits[0, -1].argmax()))
            step = torch.tensor([ids[-1:]])
    return ids[len(prompt) :], margin


def float32_rounding(model: PreTrainedModel, ids_S: Sequence[int], last: int = 0) -> float:
    """Largest difference between the logits of a float32 model and of the same weights in float64; see `torch_logits`.

    The weights stay as they are: each is widened as it is used, a part at a time.
    """
    single_SV = torch_logits(model, ids_S, last)
    with _WidenedWeights():
        double_SV = torch_logits(model, ids_S, last)
    return float(np.abs(single_SV - double_SV).max())


class _WidenedWeights(TorchFunctionMode):
    """Inside, embeddings come as float64, and linear layers take it: all else follows the type of its inputs."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func is functional.linear:
            return _linear(*args, **given)
        result = func(*args, **given)
        return result.double() if func is functional.embedding else result


def _linear(x: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + bias in float64."""
    rows = max(1, _WIDENED_BYTES // (8 * weight_NK.shape[1]))
    y = torch.cat([x @ part_RK.double().T for part_RK in weight_NK.split(rows)], dim=-1)
    return y if bias_N is None else y + bias_N
