"""AdamW that counts the steps of each link from when it grew."""

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..artifacts import InputError
from .dynamics.sharding import local
from .native.adam import AdamTables, adam_step
from .native.link_products import is_native

_UNSEEN = 2.0**-25
"""What float32 no longer sees beside 1."""


class LinkAdamW(Optimizer):
    """AdamW (Loshchilov and Hutter, 2019) whose bias correction counts the steps of each weight by itself.

    Moments start at 0, and Adam divides them by 1 - beta^t for that. A link that grows at step 10,000 has moments of 0
    too, but with one count for all its first steps are too large: the very first by a factor of (1 - beta1) / sqrt(1 -
    beta2), 3.2 for 0.9 and 0.999. Here `state["age"]`, int32 like the parameter, counts from when a link grew: the
    sparsifier sets what optimizers keep of a new link to 0 (arXiv 2606.00888). Without new links, the steps are those
    of AdamW.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        young_steps: int = 0,
    ) -> None:
        """`young_steps`: in its t-th step a link moves by min(t / young_steps, 1) of Adam's step; 0 for all of it.

        Raises:
            InputError: a value out of range.
        """
        if not (lr >= 0 and eps >= 0 and weight_decay >= 0 and young_steps >= 0):
            raise InputError("LinkAdamW: lr, eps, weight_decay and young_steps must be at least 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise InputError(f"LinkAdamW: betas {betas} are outside [0, 1)")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "young_steps": young_steps}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient; returns what `closure` gives, called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            tables = _tables(*group["betas"], group["young_steps"])
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, parameter.grad, group, tables)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `Optimizer.load_state_dict`, which would make numbers of the parameter's type of the ages."""
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for parameter, index in zip(group["params"], saved["params"], strict=True):
                if index in state_dict["state"]:
                    age = state_dict["state"][index]["age"]
                    self.state[parameter]["age"] = age.to(parameter.device, torch.int32, copy=True)

    def _step_one(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any], tables: AdamTables) -> None:
        state = self.state[parameter]
        if not state:
            state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            state["age"] = torch.zeros_like(parameter, dtype=torch.int32)
        rate = float(group["lr"])
        parts = {name: local(value) for name, value in state.items()}
        options = {
            "rate": rate,
            "betas": group["betas"],
            "epsilon": group["eps"],
            "decay": 1 - rate * group["weight_decay"],
        }
        weight, gradient = local(parameter), local(gradient)
        moments = [parts["exp_avg"], parts["exp_avg_sq"]]
        if is_native(weight, gradient, *moments) and _all_contiguous([weight, gradient, *parts.values()]):
            adam_step(weight, gradient, parts, tables, **options)
        else:
            _torch_step(weight, gradient, parts, tables, **options)


def _torch_step(
    weight: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    tables: AdamTables,
    *,
    rate: float,
    betas: tuple[float, float],
    epsilon: float,
    decay: float,
) -> None:
    """What `adam_step` does, for other types and devices."""
    age = state["age"].add_(1).clamp_(max=tables.oldest).long()
    state["exp_avg"].lerp_(gradient, 1 - betas[0])
    state["exp_avg_sq"].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    root = state["exp_avg_sq"].sqrt() * tables.corrections.to(age.device)[age] + epsilon
    step_sizes = rate * tables.step_sizes.to(age.device)[age]
    weight.mul_(decay).sub_((step_sizes * state["exp_avg"] / root).to(weight.dtype))


@cache
def _tables(beta1: float, beta2: float, young_steps: int) -> AdamTables:
    """Up to the step after which float32 sees no correction."""
    slowest = max(beta1, beta2)
    settled = 1 if slowest == 0 else math.ceil(math.log(_UNSEEN) / math.log(slowest))
    ages = torch.arange(1, max(settled, young_steps, 1) + 1, dtype=torch.float64)
    young = (ages / young_steps).clamp(max=1) if young_steps else torch.ones_like(ages)
    step_sizes, corrections = young / (1 - beta1**ages), 1 / (1 - beta2**ages).sqrt()
    return AdamTables(*(torch.cat([torch.zeros(1), table.float()]) for table in (step_sizes, corrections)))


def _all_contiguous(tensors: Iterable[Tensor]) -> bool:
    return all(tensor.is_contiguous() for tensor in tensors)
