"""Distillation: a model learns from the distribution that a teacher gives for each next token, beside the token itself.

Legend: B blocks, S tokens a block, P = S - 1 predicted tokens, V entries of the vocabulary, K tokens kept in a cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..artifacts import InputError
from .teacher_cache import Distributions, TeacherCache


@dataclass(frozen=True)
class DistillConfig:
    """What to learn from, beside the text (Hinton, Vinyals and Dean, 2015).

    Args:
        teacher: a directory or hub name of a model with the same tokenizer, such as the dense one that was pruned;
            empty for none. It computes its logits in the same step, and takes the memory of its weights.
        weight: of the teacher's part of the loss; the text has the rest.
        temperature: that both distributions are softened by, and by whose square the teacher's part is multiplied.
        cache: a folder that keeps the teacher's distributions of each block of text from when it first comes up, so
            that the teacher computes each but once, in this run and in later ones; empty for none.
        cache_top_k: tokens that the cache keeps of each distribution, the most probable ones; all others count as one.
    """

    teacher: str = ""
    weight: float = 0.5
    temperature: float = 1.0
    cache: str = ""
    cache_top_k: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise InputError(f"distill.weight {self.weight} is outside [0, 1]")
        if not self.temperature > 0:
            raise InputError(f"distill.temperature {self.temperature} must be above 0")
        if self.cache_top_k < 1:
            raise InputError(f"distill.cache_top_k {self.cache_top_k} must be at least 1")
        if self.cache and not self.teacher:
            raise InputError("distill.cache keeps what a teacher gives: name distill.teacher too")


class Distillation:
    """A teacher, and the loss that it adds to that of the text."""

    def __init__(self, teacher: nn.Module, config: DistillConfig, cache: TeacherCache | None = None) -> None:
        """`teacher` is a causal language model; it is not trained, and not kept where the cache has all that it gives.

        With a `cache`, it is asked only for what is not there.
        """
        kept = cache is None or not cache.complete
        self._teacher = teacher.eval().requires_grad_(False) if kept else None
        self._config = config
        self._cache = cache

    def to(self, device: torch.device) -> None:
        """Move the teacher to where the student is."""
        if self._teacher is not None:
            self._teacher.to(device)

    def loss(self, text_loss: Tensor, logits_BSV: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """(1 - weight) text_loss + weight temperature^2 KL(teacher || student), the mean over the tokens of a batch.

        The last token of a block counts for nothing, as none follows it.
        """
        others = {name: value for name, value in inputs.items() if name != "labels"}
        student_BPV = (logits_BSV[:, :-1].float() / self._config.temperature).log_softmax(dim=-1)
        if self._cache is None:
            divergence = self._whole_divergence(student_BPV, others)
        else:
            divergence = kept_divergence(student_BPV, self._cache.distributions(inputs["input_ids"], self._logits))
        weight = self._config.weight
        return (1 - weight) * text_loss + weight * self._config.temperature**2 * divergence

    def _whole_divergence(self, student_BPV: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The mean over tokens of KL(teacher || student), in float32."""
        assert self._teacher is not None
        with torch.no_grad():
            teacher_BPV = self._teacher(**inputs).logits[:, :-1].float() / self._config.temperature
        student_TV, teacher_TV = student_BPV.flatten(0, 1), teacher_BPV.log_softmax(dim=-1).flatten(0, 1)
        return nn.functional.kl_div(student_TV, teacher_TV, reduction="batchmean", log_target=True)

    def _logits(self, ids_BS: Tensor) -> Tensor:
        """The teacher's logits [B, S, V], which a cache lacks."""
        assert self._teacher is not None, "a cache that is complete asks for nothing"
        with torch.no_grad():
            logits_BSV: Tensor = self._teacher(input_ids=ids_BS).logits
        return logits_BSV


def kept_divergence(student_BPV: Tensor, teacher: Distributions) -> Tensor:
    """The mean over tokens of KL(teacher || student) between distributions over K tokens and all others as one.

    Never above the divergence of the whole distributions, and that itself where K is the whole vocabulary.

    Args:
        student_BPV: log-probabilities, softened as the teacher's are.
        teacher: what a cache kept.
    """
    student_BPK = student_BPV.gather(2, teacher.ids_BPK)
    kept_BP = (teacher.log_probs_BPK.exp() * (teacher.log_probs_BPK - student_BPK)).sum(dim=2)
    if teacher.ids_BPK.shape[2] == student_BPV.shape[2]:
        return kept_BP.mean()
    others_BP = student_BPV.scatter(2, teacher.ids_BPK, -torch.inf).logsumexp(dim=2)
    share_BP = teacher.others_BP.exp()
    # Where the others' share is nothing in float32, its logarithm is not finite, and 0 times it not a number.
    rest_BP = torch.where(share_BP > 0, share_BP * (teacher.others_BP.clamp(min=-1e4) - others_BP), 0.0)
    return (kept_BP + rest_BP).mean()


def check_vocabulary(
    source: str,
    teacher: PreTrainedModel,
    teacher_tokenizer: PreTrainedTokenizerBase,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Raise an InputError where the entries of a teacher's and a student's logits are not the same tokens."""
    if teacher_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"distill.teacher '{source}' has another tokenizer than the model that is trained, of "
            f"{len(teacher_tokenizer)} and {len(tokenizer)} tokens: its logits are of other tokens; take a teacher "
            "with the same tokenizer"
        )
    if teacher.config.vocab_size != student.config.vocab_size:
        raise InputError(
            f"distill.teacher '{source}' gives {teacher.config.vocab_size} logits, and the model that is trained "
            f"{student.config.vocab_size}"
        )
