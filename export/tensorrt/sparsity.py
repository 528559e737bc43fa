"""What TensorRT can do with a layer's zeros: 2:4 by structure, and what the builder's log says it did.

Legend: N out_features, K in_features of a linear layer.

Sparse Tensor Cores multiply weights that have at least two zeros in every four consecutive inputs of an output ("2:4").
TensorRT finds such layers, times sparse tactics beside dense ones, keeps the faster, and says so in its log:

    TensorRT 8   (Sparsity) Layers eligible for sparse math: a, b
                 (Sparsity) TRT inference plan picked sparse implementation for layers: b
    from 10 on   (Sparsity) Found 2 layer(s) eligible to use sparse tactics: a, b
                 (Sparsity) Chose 1 layer(s) using sparse tactics: b

The lists repeat for every pass of tactic selection; the last ones are of the engine. Names of fused layers are joined
by " + ". The parser below was written from published logs of those versions, and has seen none from a GPU of ours.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUP = 4
LEGAL = 2
_GAINS_FROM = 256
"""Channels on either side below which sparse tactics are hardly ever the faster ones, by NVIDIA's advice."""

_ELIGIBLE = re.compile(
    r"\(Sparsity\) (?:Layers eligible for sparse math|Found (\d+) layer\(s\) eligible to use sparse tactics):?(.*)$"
)
_PICKED = re.compile(
    r"\(Sparsity\) (?:TRT inference plan picked sparse implementation for layers"
    r"|Chose (\d+) layer\(s\) using sparse tactics):?(.*)$"
)


@dataclass(frozen=True)
class SparsityLog:
    """What a builder's log says of sparse tactics.

    `eligible` and `picked` are names of layers as the builder calls them, or None where the log has no such line;
    `eligible_count` and `picked_count` are what it counts, which may come without names.
    """

    eligible: tuple[str, ...] | None
    picked: tuple[str, ...] | None
    eligible_count: int | None
    picked_count: int | None


@dataclass(frozen=True)
class LayerSparsity:
    """One layer: groups of four inputs with more than two weights, whether it is 2:4 by structure, and the builder's
    verdicts, None where the log does not tell, with the reason in words."""

    name: str
    groups: int
    illegal_groups: int
    two_four: bool
    eligible: bool | None
    picked: bool | None
    reason: str


def illegal_groups(mask_NK: NDArray[np.bool_]) -> tuple[int, int]:
    """Groups of four consecutive inputs of an output, and those of them that hold more than two links.

    Where K is not a multiple of four the last, short group counts as well.
    """
    padded = np.pad(mask_NK, [(0, 0), (0, -mask_NK.shape[1] % GROUP)])
    per_group = padded.reshape(mask_NK.shape[0], -1, GROUP).sum(axis=2)
    return per_group.size, int((per_group > LEGAL).sum())


def parse_sparsity_log(log: str) -> SparsityLog:
    """The builder's last word on sparse tactics."""
    eligible, eligible_count = _last_list(_ELIGIBLE, log)
    picked, picked_count = _last_list(_PICKED, log)
    return SparsityLog(eligible, picked, eligible_count, picked_count)


def layer_sparsity(name: str, mask_NK: NDArray[np.bool_], node: str, log: SparsityLog | None) -> LayerSparsity:
    """A layer's line for the report.

    Args:
        name: of the layer. mask_NK: its links. node: the ONNX node that multiplies, as the builder names it.
        log: of the builder; None where the runtime is one that reports no sparse tactics.
    """
    groups, illegal = illegal_groups(mask_NK)
    two_four = illegal == 0 and mask_NK.shape[1] % GROUP == 0
    eligible = _verdict(node, log.eligible, log.eligible_count) if log is not None else None
    picked = _verdict(node, log.picked, log.picked_count) if log is not None else None
    reason = _reason(mask_NK.shape, illegal, two_four, log is not None, eligible, picked)
    return LayerSparsity(name, groups, illegal, two_four, eligible, picked, reason)


def _last_list(pattern: re.Pattern[str], log: str) -> tuple[tuple[str, ...] | None, int | None]:
    matches = [match for line in log.splitlines() if (match := pattern.search(line.rstrip()))]
    if not matches:
        return None, None
    count, text = matches[-1].groups()
    names = tuple(name.strip() for name in text.split(",") if name.strip(" ."))
    return names, int(count) if count is not None else len(names)


def _verdict(node: str, names: tuple[str, ...] | None, count: int | None) -> bool | None:
    """Whether a node is among the names; None where the log is silent or counts layers without naming them."""
    if names is None:
        return None
    if any(node in name.split(" + ") for name in names):
        return True
    return None if any(_is_region(name) for name in names) or len(names) < (count or 0) else False


def _is_region(name: str) -> bool:
    """A part of the graph that the builder compiled as one: its name gives the first and last node only."""
    return "ForeignNode[" in name


def _reason(
    shape: tuple[int, ...], illegal: int, two_four: bool, has_log: bool, eligible: bool | None, picked: bool | None
) -> str:
    if not two_four:
        if shape[1] % GROUP:
            return f"not 2:4: {shape[1]} inputs are not a multiple of {GROUP}; runs dense"
        return f"not 2:4: {illegal} groups of {GROUP} inputs hold more than {LEGAL} links; runs dense"
    if not has_log:
        return "2:4 by structure; this runtime does not report sparse tactics"
    if picked:
        return "2:4 by structure; the builder timed a sparse tactic as the fastest and picked it"
    if eligible and picked is False:
        small = f" (fewer than {_GAINS_FROM} channels seldom gain)" if min(shape) < _GAINS_FROM else ""
        return f"2:4 by structure and eligible; the builder timed a dense tactic as faster{small}"
    if eligible is False:
        return "2:4 by structure, but the builder does not count it as eligible, and its log does not say why"
    return "2:4 by structure; the builder's log does not tell what became of it"
