"""Makers of small real things."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "sparse",
    "graphs",
    "grow",
    "links",
    "between",
    "far",
    "nodes",
]


def make_text(documents: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 40)) + f" {number}." for number in range(documents)]


def make_llama(vocab_size: int, seed: int = 0, **overrides) -> LlamaForCausalLM:
    """A Llama of two layers with grouped queries; large weights, so that greedy choices are decided."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 96,
        "intermediate_size": 104,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "initializer_range": 0.15,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | overrides))).eval()
