"""How many links each layer gets: the same share, or more where more depends on them. The total is the same, exactly.

Legend: B sequences, S tokens; N out_features, K in_features; L layers.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..topology.initial import link_count
from .config import PruneConfig
from .layers import Layer
from .reconstruction import parts
from .selection import select_by_row

OUTLIER_FACTOR = 5.0
"""A weight is an outlier where |w| times the norm of its input is this many times the mean (OWL, arXiv 2310.05175)."""
_SEQUENCES = 4
"""Of the calibration text, for measurements over the whole model."""
_LOSS_EXPONENT = 3.0
"""The loss is taken to grow with this power of the share of links that a layer loses."""
_BISECTIONS = 60


def allocate(
    model: PreTrainedModel, layers: Sequence[Sequence[Layer]], ids_BS: Tensor, config: PruneConfig
) -> dict[str, int]:
    """The number of units (links, or blocks of them) of each layer.

    Args:
        model: dense, in evaluation mode.
        layers: those to prune, by decoder block.
        ids_BS: the calibration text.
        config: `allocation` says how, `spread` within what bounds.
    """
    every = [layer for block in layers for layer in block]
    grids = {layer.name: config.mask_structure.grid(*layer.shape) for layer in every}
    uniform = {name: link_count(*grid, config.density) for name, grid in grids.items()}
    if config.allocation == "uniform":
        return uniform
    ids_BS = ids_BS[:_SEQUENCES]
    norms = input_norms(model, every, ids_BS)
    if config.allocation == "outliers":
        wanted = _by_outliers(layers, norms, config)
    else:
        wanted = _by_loss(model, layers, norms, ids_BS, config)
    places = {name: rows * columns for name, (rows, columns) in grids.items()}
    return exact_counts(wanted, places, config.mask_structure.max_density, sum(uniform.values()))


@torch.no_grad()
def input_norms(model: PreTrainedModel, layers: Sequence[Layer], ids_BS: Tensor) -> dict[str, Tensor]:
    """Root mean square of each input of each layer of the model as it is, float32 [K] by name."""
    sums = {layer.name: torch.zeros(layer.shape[1], device=layer.weight.device) for layer in layers}

    def add(name: str, inputs: Tensor) -> None:
        sums[name] += inputs.detach().float().reshape(-1, inputs.shape[-1]).square().sum(dim=0)

    handles = [
        layer.module.register_forward_pre_hook(lambda _, given, name=layer.name: add(name, given[0]))
        for layer in layers
    ]
    try:
        for ids_S in ids_BS:
            model.base_model(ids_S[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (sum_K / ids_BS.numel()).sqrt() for name, sum_K in sums.items()}


def outlier_share(weight_NK: Tensor, norms_K: Tensor) -> float:
    """Share of weights whose |w| times the norm of their input is above `OUTLIER_FACTOR` times the layer's mean."""
    scores_NK = weight_NK.float().abs() * norms_K
    return float((scores_NK > OUTLIER_FACTOR * scores_NK.mean()).float().mean())


def exact_counts(wanted: dict[str, float], places: dict[str, int], limit: float, total: int) -> dict[str, int]:
    """Whole numbers near `wanted` densities times `places` that add up to `total`.

    Args:
        wanted: density by layer.
        places: how many units a layer has room for, without a limit.
        limit: the highest density that is legal.
        total: the sum.
    """
    most = {name: round(limit * count) for name, count in places.items()}
    exact = {name: min(max(density * places[name], 1), most[name]) for name, density in wanted.items()}
    counts = {name: int(value) for name, value in exact.items()}
    missing = total - sum(counts.values())
    by_remainder = sorted(counts, key=lambda name: counts[name] - exact[name])
    while missing:
        step = 1 if missing > 0 else -1
        open_layers = [name for name in by_remainder if 1 <= counts[name] + step <= most[name]]
        for name in open_layers[: abs(missing)]:
            counts[name] += step
            missing -= step
    return counts


def _by_outliers(layers: Sequence[Sequence[Layer]], norms: dict[str, Tensor], config: PruneConfig) -> dict[str, float]:
    """Densities that grow with the share of outliers in the decoder block, as in OWL (arXiv 2310.05175)."""
    shares = torch.tensor(
        [
            sum(outlier_share(layer.weight, norms[layer.name]) for layer in block) / max(1, len(block))
            for block in layers
        ]
    )
    deviation = shares - shares.min()
    steps = 2 * config.spread * deviation / deviation.max().clamp(min=1e-12)
    groups = [(list(block), float(step)) for block, step in zip(layers, steps, strict=True) if block]
    return _balanced(groups, lambda step, shift: step + shift, config)


def _by_loss(
    model: PreTrainedModel,
    layers: Sequence[Sequence[Layer]],
    norms: dict[str, Tensor],
    ids_BS: Tensor,
    config: PruneConfig,
) -> dict[str, float]:
    """Densities that make the loss least, by what the loss costs when attention or MLP of one block alone is pruned.

    With a loss that grows as s (1 - density)^p of a part with n places, it is least where 1 - density is proportional
    to (n / s)^(1 / (p - 1)).
    """
    dense = _loss(model, ids_BS)
    groups = []
    for part in (part for block in layers for part in parts(block)):
        cost = max(_loss_without(model, part, norms, ids_BS, config) - dense, 1e-6)
        places = sum(layer.weight.numel() for layer in part)
        groups.append((part, (places / cost) ** (1 / (_LOSS_EXPONENT - 1))))
    return _balanced(groups, lambda share, scale: 1 - share * 2.0**-scale, config)


def _balanced(
    groups: Sequence[tuple[Sequence[Layer], float]], density: Callable[[float, float], float], config: PruneConfig
) -> dict[str, float]:
    """Densities within the spread by a rule with one unknown, which rises with it and is found by bisection."""
    low, high = max(0.0, config.density - config.spread), min(1.0, config.density + config.spread)
    high = min(high, config.mask_structure.max_density)
    places = [sum(layer.weight.numel() for layer in part) for part, _ in groups]

    def found(unknown: float) -> list[float]:
        return [min(max(density(value, unknown), low), high) for _, value in groups]

    below, above = -64.0, 64.0
    for _ in range(_BISECTIONS):
        middle = (below + above) / 2
        mean = sum(count * value for count, value in zip(places, found(middle), strict=True)) / sum(places)
        below, above = (middle, above) if mean < config.density else (below, middle)
    return {layer.name: value for (part, _), value in zip(groups, found(above), strict=True) for layer in part}


@torch.no_grad()
def _loss(model: nn.Module, ids_BS: Tensor) -> float:
    """Mean cross-entropy of the next token."""
    losses = [float(model(input_ids=ids_S[None], labels=ids_S[None], use_cache=False).loss) for ids_S in ids_BS]
    return sum(losses) / len(losses)


@torch.no_grad()
def _loss_without(
    model: nn.Module, part: Sequence[Layer], norms: dict[str, Tensor], ids_BS: Tensor, config: PruneConfig
) -> float:
    """The loss with some layers pruned by Wanda to the density; they are dense again afterwards."""
    structure = config.mask_structure
    before = [layer.module.weight.data for layer in part]
    for layer in part:
        units = link_count(*structure.grid(*layer.shape), config.density)
        mask_NK = select_by_row(layer.weight.float().abs() * norms[layer.name], units, structure)
        layer.module.weight.data = layer.module.weight.data.masked_fill(~layer.as_held(mask_NK), 0)
    try:
        return _loss(model, ids_BS)
    finally:
        for layer, weight in zip(part, before, strict=True):
            layer.module.weight.data = weight
