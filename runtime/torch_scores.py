"""Log-probabilities of a text under a torch model, and the text that follows: what an artifact is compared with.

Legend: S tokens of a text, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .perplexity import Scorer
from .scoring import token_log_probs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def torch_scorer(model: "PreTrainedModel") -> Scorer:
    """The scorer of a causal language model of transformers, which takes a text at once, without a cache."""
    import torch

    def score(ids_S: Sequence[int]) -> NDArray[np.float64]:
        with torch.inference_mode():
            ids_1S = torch.tensor([list(ids_S)], device=model.device)
            logits_SV = model(ids_1S, use_cache=False).logits[0].float().cpu().numpy()
        return token_log_probs(logits_SV[:-1], ids_S[1:])

    return score


def greedy_logits(model: "PreTrainedModel", ids_S: Sequence[int]) -> "Iterator[Tensor]":
    """Logits [V] after S token ids, then after the most probable token each time, without end."""
    import torch

    given, past = list(ids_S), None
    while True:
        with torch.inference_mode():
            output = model(torch.tensor([given]), past_key_values=past, use_cache=True)
        past, logits_V = output.past_key_values, output.logits[0, -1]
        yield logits_V
        given = [int(logits_V.argmax())]


def torch_generator(model: "PreTrainedModel", context_length: int) -> Callable[[Sequence[int]], Iterator[int]]:
    """From S token ids to those that a causal language model gives greedily, until the context is full."""

    def generate(ids_S: Sequence[int]) -> Iterator[int]:
        for logits_V in islice(greedy_logits(model, ids_S), max(0, context_length - len(ids_S))):
            yield int(logits_V.argmax())

    return generate
