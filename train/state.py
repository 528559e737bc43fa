"""The state of a training run as named tensors and JSON, and back: weights, optimizer, schedule, random numbers, masks.

Tensors that FSDP2 splits over processes are gathered whole; every process must then call these functions.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ..artifacts import InputError
from .dynamics.sharding import local, local_rows, whole

_PYTHON_WORDS = 625


def is_split(model: nn.Module) -> bool:
    """Whether FSDP2 has split the model's weights over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, tied ones once."""
    state = {name: whole(value.detach()) for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())
    kept = model.state_dict().keys()
    return state | {name: value for name, value in buffers.items() if name in kept}


@torch.no_grad()
def load_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy values into a model, in place; raises InputError where names or shapes differ."""
    targets = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    expected = {name: targets[name].shape for name in model_tensors(model)}
    if {name: value.shape for name, value in tensors.items()} != expected:
        raise InputError("the checkpoint is of another model: its weights or their shapes differ")
    for name, value in tensors.items():
        local(targets[name]).copy_(local_rows(value, targets[name]))


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Moments as tensors `parameter/moment`, and groups and other values as JSON."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for parameter, state in optimizer.state.items():
        name = names[id(parameter)]
        tensors |= {f"{name}/{key}": whole(value) for key, value in state.items() if isinstance(value, Tensor)}
        values[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        | {"params": [names[id(parameter)] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    return tensors, {"groups": groups, "state": values}


def load_optimizer_state(
    model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Put an optimizer in the state that `optimizer_state` gave.

    Raises:
        InputError: its groups hold other parameters.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = dict(model.named_parameters())
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    if groups != [group["params"] for group in values["groups"]]:
        raise InputError("the checkpoint's optimizer has other parameter groups than this run's")
    numbers = {name: index for index, name in enumerate(name for group in groups for name in group)}
    state: dict[int, dict[str, Any]] = {numbers[name]: dict(rest) for name, rest in values["state"].items()}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        state.setdefault(numbers[name], {})[key] = _split_like(value, parameters[name])
    numbered = [group | {"params": [numbers[name] for name in group["params"]]} for group in values["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": numbered})


def random_state() -> dict[str, Tensor]:
    """The states of this process's generators: Python's, NumPy's, torch's, and those of its accelerators."""
    version, words, _ = random.getstate()
    assert version == 3 and len(words) == _PYTHON_WORDS
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.append(keys, [position, has_gauss]).astype(np.int64)),
        "numpy_gauss": torch.tensor([gauss], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state |= {f"cuda{index}": value for index, value in enumerate(torch.cuda.get_rng_state_all())}
    return state


def load_random_state(state: Mapping[str, Tensor]) -> None:
    """Put this process's generators in the state that `random_state` gave."""
    random.setstate((3, tuple(state["python"].tolist()), None))
    *keys, position, has_gauss = state["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, float(state["numpy_gauss"])))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state[f"cuda{index}"] for index in range(torch.cuda.device_count())])


def random_states_of_all() -> dict[str, Tensor]:
    """`random_state` of every process, as `rank/generator`. All processes must call it."""
    states: list[Any] = [random_state()]
    if dist.is_initialized() and dist.get_world_size() > 1:
        states = states * dist.get_world_size()
        dist.all_gather_object(states, random_state())
    return {f"{rank}/{name}": value for rank, state in enumerate(states) for name, value in state.items()}


def own_random_state(states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This process's part of `random_states_of_all`."""
    prefix = f"{dist.get_rank() if dist.is_initialized() else 0}/"
    return {name.removeprefix(prefix): value for name, value in states.items() if name.startswith(prefix)}


def _split_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A moment, split over processes like its parameter; scalars are whole."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    rows = local_rows(value, parameter).to(parameter.device)
    return DTensor.from_local(
        rows, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )
