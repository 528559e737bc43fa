"""The decoder blocks of any transformers decoder, run one at a time.

Legend: S tokens, D width of the residual stream.

Blocks are the members of the module list that holds most of the model's parameters. What a block is called with beside
its hidden states (rotary tables, masks) depends on the number of tokens alone, and is recorded in one run of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...artifacts import UnsupportedModelError

_HIDDEN = "hidden_states"


class _Reached(Exception):
    pass


@dataclass(frozen=True)
class Call:
    """What a block is called with beside its hidden states, floating-point tensors in float32."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def run(self, block: nn.Module, hidden_1SD: Tensor) -> Tensor:
        """The block's output, [1, S, D], of one sequence."""
        found = block(hidden_1SD, *self.arguments, **self.keywords)
        return found if isinstance(found, Tensor) else found[0]


@dataclass(frozen=True)
class Blocks:
    """A model's decoder blocks: their names, themselves, and how each is called."""

    names: list[str]
    modules: nn.ModuleList
    calls: list[Call]


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and list of a decoder's blocks.

    Raises:
        UnsupportedModelError: it is an encoder and decoder, or has no list of blocks with linear layers.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{type(model).__name__} is an encoder and decoder; decoders alone are pruned here")
    lists = [
        (sum(parameter.numel() for parameter in module.parameters()), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(isinstance(part, nn.Linear | Conv1D) for part in module.modules())
    ]
    if not lists:
        raise UnsupportedModelError(f"{type(model).__name__} has no list of decoder blocks with linear layers")
    _, name, modules = max(lists, key=lambda found: found[0])
    return name, modules


@torch.no_grad()
def open_blocks(model: PreTrainedModel, ids_S: Tensor) -> Blocks:
    """Find the blocks, and record how they are called in a run over one sequence.

    Raises:
        UnsupportedModelError: see `find_blocks`; or a block's input is not the output of the one before.
    """
    name, modules = find_blocks(model)
    calls: list[Call] = []
    outputs: list[Tensor] = []

    def record(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        hidden, call = _split(arguments, keywords)
        if outputs and not torch.equal(hidden, outputs[-1]):
            raise UnsupportedModelError(
                f"the input of block {len(calls)} of {type(model).__name__} is not the output of the one before: "
                "its blocks cannot be pruned one at a time"
            )
        calls.append(call)

    def keep(_: nn.Module, __: Any, found: Any) -> None:
        outputs[:] = [found if isinstance(found, Tensor) else found[0]]

    handles = [block.register_forward_pre_hook(record, with_kwargs=True) for block in modules]
    handles += [block.register_forward_hook(keep) for block in modules]
    try:
        _body(model)(ids_S[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return Blocks([f"{name}.{index}" for index in range(len(modules))], modules, calls)


@torch.no_grad()
def first_inputs(model: PreTrainedModel, blocks: Blocks, ids_BS: Tensor) -> list[Tensor]:
    """What the first block is given for each sequence: B tensors [1, S, D], float32."""
    found: list[Tensor] = []

    def catch(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        found.append(_split(arguments, keywords)[0].float())
        raise _Reached

    handle = blocks.modules[0].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for ids_S in ids_BS:
            try:
                _body(model)(ids_S[None], use_cache=False)
            except _Reached:
                continue
    finally:
        handle.remove()
    return found


def run_all(block: nn.Module, call: Call, hidden: Sequence[Tensor]) -> list[Tensor]:
    """The block's outputs of every sequence, without gradients."""
    with torch.no_grad():
        return [call.run(block, hidden_1SD) for hidden_1SD in hidden]


def _body(model: PreTrainedModel) -> nn.Module:
    """The model without its head, whose logits nobody needs here."""
    return model.base_model


def _split(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Tensor, Call]:
    """The hidden states of a call, and the rest."""
    if arguments:
        return arguments[0], Call(_float(arguments[1:]), _float(dict(keywords)))
    rest = {name: value for name, value in keywords.items() if name != _HIDDEN}
    return keywords[_HIDDEN], Call((), _float(rest))


def _float(value: Any) -> Any:
    """The same with floating-point tensors in float32, in tuples and mappings too."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(_float(item) for item in value)
    return {name: _float(item) for name, item in value.items()} if isinstance(value, dict) else value
