"""/v1/completions: prompts as text or tokens, several at a time, with echo and log-probabilities."""

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from ..generation import Chunk, join_chunks
from .answers import Head, JsonStream, finish_reason, usage
from .errors import invalid
from .logprobs import CompletionScores, joined
from .model import Job, ServedModel, with_seed
from .records import Record
from .schema import COMPLETION_TOKENS, MAX_PROMPTS, CompletionRequest


class Completions:
    """One request's jobs, and its answers."""

    def __init__(self, model: ServedModel, request: CompletionRequest, record: Record) -> None:
        self._model, self._request, self._record = model, request, record
        self._head = Head("text_completion", model.name, "cmpl")
        self._prompt_texts: list[str] = []
        self._jobs: list[Job] = []

    async def prepare(self) -> None:
        """Read the prompts; raises ApiError or InputError where the request is wrong."""
        request = self._request
        request.check()
        if not 0 < len(request.prompts) * request.choices <= MAX_PROMPTS:
            raise invalid(f"prompt: a request takes 1 to {MAX_PROMPTS} prompts, times n", "prompt")
        for number, prompt in enumerate(request.prompts):
            ids = await self._tokens(prompt)
            self._record.prompt_tokens += len(ids)
            if request.echo:
                self._prompt_texts.append(prompt if isinstance(prompt, str) else self._model.decode(ids))
            self._jobs += [self._job(number, choice, ids) for choice in range(request.choices)]
        self._record.set_prompt(str(request.prompt))

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        collected: dict[int, Chunk] = {}
        async with aclosing(self._model.run(self._jobs, self._record)) as chunks:
            async for job, chunk in chunks:
                collected[job.index] = join_chunks(collected.get(job.index), chunk)
        choices = [self._choice(job, collected[job.index], self._scores(), is_first=True) for job in self._jobs]
        return {**self._head.fields(), "choices": choices, "usage": usage(self._record)}

    async def stream(self) -> JsonStream:
        """The answer as it comes."""
        scores = {job.index: self._scores() for job in self._jobs}
        begun: set[int] = set()
        head = self._head.fields()
        async with aclosing(self._model.run(self._jobs, self._record)) as chunks:
            async for job, chunk in chunks:
                if not chunk.text and not chunk.token_ids and chunk.finish_reason is None:
                    continue
                is_first = job.index not in begun
                begun.add(job.index)
                yield {**head, "choices": [self._choice(job, chunk, scores[job.index], is_first)]}
        if self._request.includes_usage:
            yield {**head, "choices": [], "usage": usage(self._record)}

    async def _tokens(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return await self._model.encode(prompt)
        return self._model.checked(prompt)

    def _job(self, number: int, choice: int, ids: tuple[int, ...]) -> Job:
        request = self._request
        wanted = COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
        if request.max_tokens is None:
            wanted = min(wanted, self._model.tokens_left(ids, None))
        sampling = request.sampling(self._model.tokens_left(ids, wanted), top_logprobs=request.logprobs or None)
        scored = request.logprobs is not None
        return Job(
            index=number * request.choices + choice,
            prompt_ids=ids,
            sampling=with_seed(sampling, choice),
            log_probs=scored,
            # Where nothing is generated, the prompt's scores are all that the model can be asked for.
            prompt_log_probs=bool(request.echo) and (scored or wanted == 0),
        )

    def _scores(self) -> CompletionScores:
        return CompletionScores(self._model.token_bytes)

    def _choice(self, job: Job, chunk: Chunk, scores: CompletionScores, is_first: bool) -> dict[str, Any]:
        """A choice of an answer, or of an event, from its chunk."""
        echo = bool(self._request.echo) and is_first
        text = self._prompt_texts[job.index // self._request.choices] + chunk.text if echo else chunk.text
        lists = None
        if self._request.logprobs is not None:
            prompt = scores.of_prompt(job.prompt_ids, chunk) if echo else None
            lists = scores.of_chunk(chunk)
            lists = joined(prompt, lists) if prompt else lists
        reason = finish_reason(chunk.finish_reason)
        self._record.end = reason or self._record.end
        self._record.add_completion(chunk.text)
        return {"index": job.index, "text": text, "logprobs": lists, "finish_reason": reason}
