"""What torch says of the model that is exported: logits, greedy tokens, and how far its float32 is from float64.

Legend: S tokens, V vocabulary, N out_features, K in_features.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from ..runtime.torch_scores import greedy_logits
from .graph.source import SourceModel
from .layerwise import LayerwiseModel, Wanted

T = TypeVar("T")
Keep = Callable[[int, Tensor], T]
_WIDENED_BYTES = 64 << 20
"""Of a weight, so many bytes at a time are in float64."""


class TorchReference:
    """The answers of a float32 model, each computed once: all graphs of an artifact are held against the same ones.

    `continuations` are the greedy tokens that were found for prompts, by torch or by a graph that torch is then asked
    about; `tolerance` is the largest difference of logits that was allowed so far.

    Args:
        model: in memory, or whose parameters are read a layer at a time. progress: told how many layers have run.
    """

    def __init__(
        self, model: PreTrainedModel | SourceModel, progress: Callable[[str], None] = lambda stage: None
    ) -> None:
        if isinstance(model, SourceModel) and model.stored is None:
            model = model.model
        self._whole = None if isinstance(model, SourceModel) else model
        self._layerwise = LayerwiseModel(model, progress) if isinstance(model, SourceModel) else None
        self._known: dict[tuple[Wanted, bool], NDArray] = {}
        self.continuations: dict[tuple[int, ...], list[int]] = {}
        self.tolerance = 0.0

    def prepare(self, texts: Iterable[Wanted], *, wide: bool = False) -> None:
        """Compute the logits of all these texts that are not known yet, in one pass over the layers.

        `wide`: with the weights in float64.
        """
        missing = [text for text in dict.fromkeys(texts) if (text, wide) not in self._known]
        if missing:
            # A view of the logits after all tokens would keep them all.
            for text, logits in zip(missing, self.each(missing, lambda _, x: x.numpy().copy(), wide), strict=True):
                self._known[text, wide] = logits

    def logits(self, text: Wanted) -> NDArray[np.float32]:
        """The logits [S, V] that are wanted of a text."""
        self.prepare([text])
        return self._known[text, False]

    def rounding(self, texts: Sequence[Wanted]) -> float:
        """Largest difference between the logits of the texts in float32 and those of the same weights in float64."""
        self.prepare(texts)
        self.prepare(texts, wide=True)
        return max(
            float(np.abs(self._known[text, False] - self._known[text, True]).max()) for text in dict.fromkeys(texts)
        )

    def greedy(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """The `count` tokens that torch generates greedily after each prompt: a pass over the layers for each."""
        tokens: list[list[int]] = [[] for _ in prompts]
        for _ in range(count):
            texts = [Wanted((*prompt, *found), 1) for prompt, found in zip(prompts, tokens, strict=True)]
            for found, best in zip(tokens, self.each(texts, lambda _, x: int(x[-1].argmax())), strict=True):
                found.append(best)
        return tokens

    def each(self, texts: Sequence[Wanted], keep: Keep[T], wide: bool = False) -> list[T]:
        """What `keep` makes of the logits [S, V] of each text, given with its place, in order."""
        with _WidenedWeights() if wide else nullcontext():
            if self._layerwise is not None:
                words = f"torch in {'float64' if wide else 'float32'}"
                return self._layerwise.run(texts, keep, words)
            assert self._whole is not None
            with torch.inference_mode():
                return [keep(place, _logits(self._whole, text)) for place, text in enumerate(texts)]


def _logits(model: Any, text: Wanted) -> Tensor:
    return model(torch.tensor([list(text.ids_S)]), use_cache=False, logits_to_keep=text.last).logits[0]


def torch_greedy(model: PreTrainedModel, prompt: Sequence[int], count: int) -> tuple[list[int], float]:
    """The `count` tokens that torch generates greedily, and the least margin between its two best logits."""
    tokens, margin = [], float("inf")
    for logits_V in islice(greedy_logits(model, prompt), count):
        best = torch.topk(logits_V, 2).values
        margin = min(margin, float(best[0] - best[1]))
        tokens.append(int(logits_V.argmax()))
    return tokens, margin


def float32_rounding(model: PreTrainedModel, ids_S: Sequence[int], last: int = 0) -> float:
    """Largest difference between the logits of a float32 model and of the same weights in float64.

    The weights stay as they are: each is widened as it is used, a part at a time.
    """
    return TorchReference(model).rounding([Wanted(tuple(ids_S), last)])


class _WidenedWeights(TorchFunctionMode):
    """Inside, embeddings come as float64, and what a function is given beside float64 is widened to it."""

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
        if any(_is(value, torch.float64) for value in (*args, *given.values())):
            args = tuple(_widened(value) for value in args)
            given = {name: _widened(value) for name, value in given.items()}
        result = func(*args, **given)
        return result.double() if func is functional.embedding else result


def _is(value: object, kind: torch.dtype) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == kind


def _widened(value: Any) -> Any:
    return value.double() if _is(value, torch.float32) else value


def _linear(x: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + bias in float64."""
    rows = max(1, _WIDENED_BYTES // (8 * weight_NK.shape[1]))
    y = torch.cat([x @ part_RK.double().T for part_RK in weight_NK.split(rows)], dim=-1)
    return y if bias_N is None else y + bias_N
