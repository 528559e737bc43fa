"""A Llama in plain torch, to be trained on machines that have torch alone.

Legend: B batch, S tokens, E hidden size, H heads, D head size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

PROJECTIONS = "layers.*"
"""The glob of the linear layers that can be sparse."""


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama without grouped heads."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int = 32000

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden size {self.hidden} does not give {self.heads} heads of an even size")


SHAPES = (
    LlamaShape("LLaMA-60M", 512, 1376, 8, 8),
    LlamaShape("LLaMA-130M", 768, 2048, 12, 12),
    LlamaShape("LLaMA-1B", 2048, 5461, 24, 32),
)
"""Those of arXiv 2501.19107."""


class Llama(nn.Module):
    """Token ids [B, S] to the mean loss of predicting each next one."""

    def __init__(self, shape: LlamaShape, tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden)
        self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        size = shape.hidden // shape.heads
        frequencies = 1e4 ** -(torch.arange(0, size, 2) / size)
        angles_SD = torch.outer(torch.arange(tokens), frequencies).repeat(1, 2)
        self.register_buffer("cos_SD", angles_SD.cos(), persistent=False)
        self.register_buffer("sin_SD", angles_SD.sin(), persistent=False)

    def forward(self, ids_BS: Tensor) -> Tensor:
        """The loss."""
        stream_BSE = self.embedding(ids_BS)
        for layer in self.layers:
            stream_BSE = layer(stream_BSE, self.cos_SD, self.sin_SD)
        logits = self.lm_head(self.norm(stream_BSE[:, :-1])).float()
        return functional.cross_entropy(logits.flatten(0, 1), ids_BS[:, 1:].flatten())


class _Layer(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self._heads = shape.heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(shape.hidden), nn.RMSNorm(shape.hidden)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(shape.hidden, shape.hidden, bias=False) for _ in range(4)
        )
        self.gate_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, stream_BSE: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
        x = self.attention_norm(stream_BSE)
        query, key, value = (
            projection(x).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = (part * cos_SD + _turned(part) * sin_SD for part in (query, key))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        stream_BSE = stream_BSE + self.o_proj(mixed.transpose(1, 2).flatten(-2))
        x = self.mlp_norm(stream_BSE)
        return stream_BSE + self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


def _turned(x_D: Tensor) -> Tensor:
    """The second half, negated, before the first."""
    first, second = x_D.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
