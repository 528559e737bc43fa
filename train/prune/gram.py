"""What a layer is given by the calibration text: the Gram matrix of its inputs.

Legend: N out_features, K in_features, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...artifacts import CheckError, InputError
from .blocks import Call
from .layers import Layer

_DAMPING_GROWTH = 10.0
_LARGEST_DAMPING = 1e3


class _Stop(Exception):
    pass


@dataclass(frozen=True)
class Gram:
    """X^T X / T of a layer's inputs, float32 [K, K], damped so that it is positive definite.

    `damping` is the share of the mean diagonal that was added, `dead` the number of inputs that were always 0: they
    have no effect on the text, and what is added makes their links the first to go.
    """

    matrix_KK: Tensor
    damping: float
    dead: int

    @property
    def norms_K(self) -> Tensor:
        """Root mean square of each input."""
        return self.matrix_KK.diagonal().sqrt()


def collect_gram(block: nn.Module, call: Call, hidden: Sequence[Tensor], layer: Layer) -> Tensor:
    """X^T X / T, float32 [K, K], of a layer's inputs when its block runs over every sequence.

    Args:
        block: the block, whose earlier layers are already pruned.
        call: how it is called.
        hidden: its inputs, one [1, S, D] a sequence.
        layer: one of its layers.

    Raises:
        InputError: an input is not a finite number; the layer is named.
    """
    width = layer.shape[1]
    gram_KK = torch.zeros(width, width, device=hidden[0].device)
    tokens = 0

    def add(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal tokens
        inputs_TK = arguments[0].detach().reshape(-1, width)
        gram_KK.addmm_(inputs_TK.T, inputs_TK)
        tokens += len(inputs_TK)
        raise _Stop

    handle = layer.of(block).module.register_forward_pre_hook(add)
    try:
        for hidden_1SD in hidden:
            _run_until(block, call, hidden_1SD)
    finally:
        handle.remove()
    if not torch.isfinite(gram_KK).all():
        raise InputError(
            f"layer '{layer.name}': the calibration text leads to inputs that are not finite numbers; the model "
            "overflows on it, or holds weights that are not finite"
        )
    return gram_KK / max(1, tokens)


def damped(gram_KK: Tensor, damping: float, layer: str) -> Gram:
    """A Gram matrix with `damping` times its mean diagonal added, and ten times as much until it can be factored.

    Raises:
        CheckError: it cannot be.
    """
    diagonal_K = gram_KK.diagonal()
    dead = int((diagonal_K == 0).sum())
    mean = float(diagonal_K.mean()) or 1.0
    while damping < _LARGEST_DAMPING:
        matrix_KK = gram_KK.clone()
        matrix_KK.diagonal().add_(damping * mean)
        if int(torch.linalg.cholesky_ex(matrix_KK).info) == 0:
            return Gram(matrix_KK, damping, dead)
        damping *= _DAMPING_GROWTH
    raise CheckError(f"layer '{layer}': the Gram matrix of its inputs cannot be factored, however it is damped")


def relative_error(weight_NK: Tensor, pruned_NK: Tensor, gram_KK: Tensor) -> float:
    """|X (W' - W)^T|^2 over |X W^T|^2: the share of a layer's output that pruning has taken."""
    change_NK = pruned_NK - weight_NK
    whole = float(((weight_NK @ gram_KK) * weight_NK).sum())
    return float(((change_NK @ gram_KK) * change_NK).sum()) / whole if whole > 0 else 0.0


def shared_inputs(block: nn.Module, call: Call, hidden_1SD: Tensor, layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers in the order in which they run, those together that are given the same tensor, as q, k and v are.

    A layer that the sequence does not reach, as an expert that no token is sent to, comes last, alone.
    """
    groups: dict[int, list[Layer]] = {}
    inputs: list[Tensor] = []  # kept, so that no two have the same identity

    def note(layer: Layer, given: Tensor) -> None:
        inputs.append(given)
        groups.setdefault(id(given), []).append(layer)

    handles = [
        layer.of(block).module.register_forward_pre_hook(lambda _, given, layer=layer: note(layer, given[0]))
        for layer in layers
    ]
    try:
        with torch.no_grad():
            call.run(block, hidden_1SD)
    finally:
        for handle in handles:
            handle.remove()
    found = list(groups.values())
    reached = {layer.name for group in found for layer in group}
    return found + [[layer] for layer in layers if layer.name not in reached]


def _run_until(block: nn.Module, call: Call, hidden_1SD: Tensor) -> None:
    """Run a block until a hook stops it, or to its end."""
    try:
        with torch.no_grad():
            call.run(block, hidden_1SD)
    except _Stop:
        return
