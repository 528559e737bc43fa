"""What orders of dimensions make of a mask that is not 2:4: `python -m hebbline.benchmarks.permutation [--model]`.

One core. For single searches, the share of links that fit before and after, and the seconds; with `--model`, for all
projections of a Llama of two layers, what each kind of order pays.

Legend: N out_features, K in_features.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from ..console import Parser
from ..export.layouts.nm24 import fitting_links
from ..export.passes.freedom import Dimension, free_dimensions
from ..export.passes.grouping import TWO_OF_FOUR, swap_search
from ..export.passes.permutation import permute
from ..train.topology import initial_mask

Masks = dict[str, NDArray[np.bool_]]

SEARCHES = (
    (768, 2048, 0.3),
    (768, 2048, 0.1),
    (12800, 768, 0.05),
    (4096, 768, 0.05),
    (2304, 768, 0.1),
    (768, 768, 0.1),
    (768, 768, 0.3),
)
"""Rows that share an order, columns that are ordered, density."""
MODEL_DENSITY = 0.3
KINDS: dict[str, Callable[[Dimension], bool]] = {
    "value heads only": lambda dimension: "value head" in dimension.name,
    "residual stream only": lambda dimension: dimension.name == "residual stream",
    "MLP neurons only": lambda dimension: "neurons" in dimension.name,
    "--permute 2:4": lambda dimension: True,
}
_SHARED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_SEED = 0


def main(arguments: list[str] | None = None) -> int:
    """Run and print."""
    parser = Parser(prog="permutation", description="What orders of dimensions make of a mask that is not 2:4.")
    parser.add_argument("--model", action="store_true", help="a Llama of two layers, which takes minutes")
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    for line in _model_lines() if options.model else _search_lines():
        print(line, flush=True)
    return 0


def _search_lines() -> Iterator[str]:
    for rows, columns, density in SEARCHES:
        mask_NK = np.random.default_rng(_SEED).random((rows, columns)) < density
        started = time.perf_counter()
        after = fit([mask_NK[:, _order([mask_NK])]])
        seconds = time.perf_counter() - started
        fits = f"{fit([mask_NK]):.2%} before, {after:.2%} after"
        yield f"{rows} x {columns} at random, {density:.0%}: {fits}, {seconds:.1f} s"


def _model_lines() -> Iterator[str]:
    torch.manual_seed(_SEED)
    config = LlamaConfig(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=12, vocab_size=512
    )
    model = LlamaForCausalLM(config)
    for name, kind, parameters in (("at random", "er", {}), ("banded (brf, r = 0.25)", "brf", {"r": 0.25})):
        masks = _masks(model, kind, parameters)
        yield f"{name}, as they come: {fit(list(masks.values())):.2%}"
        ordered = masks
        for what, wanted in KINDS.items():
            dimensions = [dimension for dimension in free_dimensions(model) if wanted(dimension)]
            ordered = permute(model, masks, "2:4", seed=_SEED, dimensions=dimensions).masks
            yield f"{name}, {what}: {fit(list(ordered.values())):.2%}"
        yield f"{name}, and a gather after each norm: {fit(_gathered(ordered, _SHARED)):.2%}"
        yield f"{name}, and a gather before each projection: {fit(_gathered(ordered, ())):.2%}"


def _masks(model: LlamaForCausalLM, kind: str, parameters: Mapping[str, float]) -> Masks:
    layers = {name: module for name, module in model.model.named_modules() if isinstance(module, torch.nn.Linear)}
    masks = {}
    for number, (name, layer) in enumerate(layers.items()):
        shape = layer.out_features, layer.in_features
        mask_NK = initial_mask(kind, *shape, MODEL_DENSITY, seed=number, **parameters)  # type: ignore[arg-type]
        layer.weight.data.masked_fill_(~mask_NK, 0)
        masks[f"model.{name}"] = mask_NK.numpy()
    return masks


def fit(masks: Sequence[NDArray[np.bool_]]) -> float:
    """The share of the links [N, K] of all masks that a best two of every four columns hold."""
    return sum(map(fitting_links, masks)) / sum(int(mask_NK.sum()) for mask_NK in masks)


def _gathered(masks: Masks, shared: Sequence[Sequence[str]]) -> list[NDArray[np.bool_]]:
    """The masks with inputs in the best order found, one for projections that share it; other projections as they are.

    Without any that share, each projection has an order of its own.
    """
    groups: dict[str, list[NDArray[np.bool_]]] = {}
    for name, mask_NK in masks.items():
        block, _, part = name.rpartition(".")
        together = next((parts for parts in shared if part in parts), (part,))
        groups.setdefault(f"{block}.{together[0]}", []).append(mask_NK)
    ordered: list[NDArray[np.bool_]] = []
    for group in groups.values():
        order_K = np.arange(group[0].shape[1]) if shared and len(group) == 1 else _better(group)
        ordered += [mask_NK[:, order_K] for mask_NK in group]
    return ordered


def _better(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.int64]:
    """The order that the search finds, or the one there is where that fits better."""
    found_K, natural_K = _order(masks), np.arange(masks[0].shape[1])
    return max((natural_K, found_K), key=lambda order_K: fit([mask_NK[:, order_K] for mask_NK in masks]))


def _order(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.int64]:
    return swap_search(np.ascontiguousarray(np.concatenate(masks).T), TWO_OF_FOUR, seed=_SEED)


if __name__ == "__main__":
    raise SystemExit(main())
