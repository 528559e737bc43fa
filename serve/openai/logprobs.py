"""Log-probabilities in the two forms of OpenAI's APIs. T: tokens."""

from collections.abc import Sequence
from typing import Any

from ..generation import Chunk
from .tokens import TokenBytes

TopLogProbs = Sequence[tuple[int, float]]
LOWEST = -9999.0
"""In place of minus infinity, which JSON has no word for."""


class CompletionScores:
    """Of one completion of /v1/completions: parallel lists, with the offset of each token in the text."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._bytes = token_bytes
        self._offset = 0

    def of_prompt(self, ids_T: Sequence[int], chunk: Chunk) -> dict[str, list[Any]]:
        """Of an echoed prompt; its first token has no probability. `chunk` is the completion's last."""
        top = chunk.prompt_top_log_probs or ()
        return self._lists(ids_T, [None, *(chunk.prompt_log_probs or ())], [None, *top] if top else ())

    def of_chunk(self, chunk: Chunk) -> dict[str, list[Any]]:
        """Of what a chunk generated."""
        return self._lists(chunk.token_ids, chunk.log_probs, chunk.top_log_probs)

    def _lists(
        self, ids_T: Sequence[int], scores_T: Sequence[float | None], tops_T: Sequence[TopLogProbs | None]
    ) -> dict[str, list[Any]]:
        none_T: list[TopLogProbs] = [()] * len(ids_T)
        texts_T = [self._bytes.text(token) for token in ids_T]
        offsets_T = []
        for text in texts_T:
            offsets_T.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts_T,
            "token_logprobs": [None if score is None else _finite(score) for score in scores_T],
            "top_logprobs": [self._top(*place) for place in zip(ids_T, scores_T, tops_T or none_T, strict=True)],
            "text_offset": offsets_T,
        }

    def _top(self, token: int, score: float | None, top: TopLogProbs | None) -> dict[str, float] | None:
        """The likeliest tokens of a place, and the one that was taken, by their texts."""
        if score is None:
            return None
        values: dict[str, float] = {}
        for other, value in [*(top or ()), (token, score)]:
            values.setdefault(self._bytes.text(other), _finite(value))
        return values


def joined(first: dict[str, list[Any]], second: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Two pieces of a text's scores as one."""
    return {name: values + second[name] for name, values in first.items()}


def chat_scores(token_bytes: TokenBytes, chunk: Chunk) -> dict[str, Any]:
    """Of what a chunk generated, in the form of /v1/chat/completions."""
    tops_T = chunk.top_log_probs or [()] * len(chunk.token_ids)
    content = [
        {**_entry(token_bytes, token, score), "top_logprobs": [_entry(token_bytes, *pair) for pair in top]}
        for token, score, top in zip(chunk.token_ids, chunk.log_probs, tops_T, strict=True)
    ]
    return {"content": content, "refusal": None}


def _entry(token_bytes: TokenBytes, token: int, score: float) -> dict[str, Any]:
    data = token_bytes.of(token)
    return {"token": token_bytes.text(token), "logprob": _finite(score), "bytes": list(data)}


def _finite(score: float) -> float:
    return max(score, LOWEST)
