"""Pruning a decoder block by block, each on what the pruned blocks before it make of the calibration text.

Legend: B sequences, S tokens, D width of the residual stream; N out_features, K in_features.

One block is held in float32 at a time. With a store, a finished block is written to disk and the model goes on with the
file's weights, so that a model whose weights are mapped from disk is never in memory as a whole; a run that was cut
goes on with the first block that is not there.
"""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...artifacts import InputError
from .allocation import allocate, outlier_share
from .blocks import Blocks, Call, first_inputs, open_blocks, run_all
from .config import PruneConfig
from .gram import Gram, collect_gram, damped, relative_error, shared_inputs
from .layers import Layer, block_layers, check_globs
from .methods import METHODS
from .reconstruction import parts, reconstruct, token_errors
from .result import BlockResult, LayerResult, Pruned
from .rounding import round_links
from .store import BlockStore

Progress = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many blocks are done."""


def prune_blocks(
    model: PreTrainedModel,
    ids_BS: Tensor,
    config: PruneConfig,
    store: BlockStore | None = None,
    progress: Progress | None = None,
) -> Pruned:
    """Prune a decoder in place.

    Args:
        model: any transformers decoder; its weights may be mapped from disk.
        ids_BS: the calibration text, int64 [B, S].
        config: how.
        store: where finished blocks are kept, and taken from where they are there already.
        progress: told each block.

    Returns:
        The masks and what became of each layer.

    Raises:
        InputError: globs that match nothing, a shape or density that the structure does not admit, or activations that
            are not finite; the layer is named.
        UnsupportedModelError: the model is no decoder whose blocks can be run one at a time.
    """
    if ids_BS.ndim != 2 or not ids_BS.numel():
        raise InputError(
            f"prune: calibration must be token ids [sequences, tokens], not of shape {tuple(ids_BS.shape)}"
        )
    progress = progress or (lambda *_: None)
    was_training = model.training
    model.eval()
    try:
        blocks = open_blocks(model, ids_BS[0])
        layers = [block_layers(*found, config) for found in zip(blocks.modules, blocks.names, strict=True)]
        check_globs(blocks, config)
        progress("measuring", 0, len(layers))
        units = allocate(model, layers, ids_BS, config)
        return _Run(blocks, layers, units, config, store, progress).all(first_inputs(model, blocks, ids_BS))
    finally:
        model.train(was_training)


class _Run:
    """Goes through the blocks with two streams of hidden states: of the dense model, and of the pruned one."""

    def __init__(
        self,
        blocks: Blocks,
        layers: list[list[Layer]],
        units: dict[str, int],
        config: PruneConfig,
        store: BlockStore | None,
        progress: Progress,
    ) -> None:
        self.blocks, self.layers, self.units = blocks, layers, units
        self.config, self.store, self.progress = config, store, progress

    def all(self, hidden: list[Tensor]) -> Pruned:
        """Prune every block, from the inputs [1, S, D] of the first."""
        dense, pruned = hidden, hidden
        masks: dict[str, Tensor] = {}
        results = []
        for index, (name, module) in enumerate(zip(self.blocks.names, self.blocks.modules, strict=True)):
            self.progress(name, index, len(self.layers))
            call = self.blocks.calls[index]
            work = deepcopy(module).float().requires_grad_(False)
            dense = run_all(work, call, dense)
            if self.store is not None and self.store.has(index):
                found, result = self.store.load(index, self.layers[index])
                pruned = run_all(deepcopy(module).float(), call, pruned)
            else:
                found, result, pruned = self._prune(index, work, pruned, dense)
            masks |= found
            results.append(result)
        self.progress("done", len(self.layers), len(self.layers))
        return Pruned(masks, tuple(results))

    def _prune(
        self, index: int, work: nn.Module, inputs: list[Tensor], targets: list[Tensor]
    ) -> tuple[dict[str, Tensor], BlockResult, list[Tensor]]:
        """Prune the float32 copy of a block, put its weights into the model and the store, and run it."""
        started = time.perf_counter()
        call, layers = self.blocks.calls[index], self.layers[index]
        masks, results = _prune_block(work, call, layers, inputs, targets, self.units, self.config)
        for layer in layers:
            weight_NK = layer.of(work).weight
            layer.set(weight_NK.masked_fill(~masks[layer.name], 0))
        outputs = run_all(work, call, inputs)
        error = token_errors(outputs, targets)
        result = BlockResult(self.blocks.names[index], error, time.perf_counter() - started, tuple(results))
        if self.store is not None:
            self.store.save(index, layers, masks, result)
        return masks, result, outputs


def _prune_block(
    work: nn.Module,
    call: Call,
    layers: Sequence[Layer],
    inputs: list[Tensor],
    targets: list[Tensor],
    units: dict[str, int],
    config: PruneConfig,
) -> tuple[dict[str, Tensor], list[LayerResult]]:
    """Prune the layers of a block as they run; after attention and after the MLP, reconstruct and round."""
    masks: dict[str, Tensor] = {}
    results: list[LayerResult] = []
    if not layers:
        return masks, results
    groups = shared_inputs(work, call, inputs[0], layers)
    for part in parts([layer for group in groups for layer in group]):
        grams: dict[str, Gram] = {}
        for group in _within(groups, part):
            gram_KK = collect_gram(work, call, inputs, group[0])
            gram = damped(gram_KK, config.damping, group[0].name)
            for layer in group:
                masks[layer.name], result = _prune_layer(layer.of(work), gram, gram_KK, units[layer.name], config)
                results.append(result)
                grams[layer.name] = gram
        inner = [layer.of(work) for layer in part]
        if config.passes:
            reconstruct(work, call, inputs, targets, inner, masks, config)
        for layer in inner:
            layer.set(round_links(layer.weight, grams[layer.name].matrix_KK, masks[layer.name], config.values))
    return masks, results


def _prune_layer(
    layer: Layer, gram: Gram, gram_KK: Tensor, units: int, config: PruneConfig
) -> tuple[Tensor, LayerResult]:
    """Prune a layer in place; `gram_KK` is the Gram matrix without damping."""
    dense_NK = layer.weight.clone()
    if not torch.isfinite(dense_NK).all():
        raise InputError(f"layer '{layer.name}' holds weights that are not finite numbers")
    weight_NK, mask_NK = METHODS[config.method](dense_NK, gram, units, config.mask_structure)
    if not torch.isfinite(weight_NK).all():
        raise InputError(f"layer '{layer.name}': pruning led to weights that are not finite; give a larger damping")
    layer.set(weight_NK)
    return mask_NK, LayerResult(
        layer.name,
        *layer.shape,
        links=int(mask_NK.sum()),
        error=relative_error(dense_NK, weight_NK, gram_KK),
        outliers=outlier_share(dense_NK, gram_KK.diagonal().sqrt()),
        dead_inputs=gram.dead,
        damping=gram.damping,
    )


def _within(groups: Sequence[Sequence[Layer]], part: Sequence[Layer]) -> list[list[Layer]]:
    """The groups of layers that share inputs, of a part alone."""
    names = {layer.name for layer in part}
    cut = [[layer for layer in group if layer.name in names] for group in groups]
    return [group for group in cut if group]
