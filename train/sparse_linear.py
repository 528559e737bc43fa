"""Linear layers that hold and train their links alone: at some percent of density, a fraction of the cost of masks.

Legend: N out_features, K in_features, Z links, T tokens.

A masked layer multiplies dense matrices that are mostly zero, and its optimizer keeps moments for every possible link.
Here the parameter is the vector of link weights [Z]: forward and input gradient are products with a matrix in CSR, the
weight gradient is formed at the links only, and any optimizer's state is of the size of the links.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

from ..artifacts import InputError
from .dynamics import SparsityConfig, remove_chains
from .dynamics.chains import model_chains
from .dynamics.config import required
from .dynamics.plan import LayerPlan, plan_layers
from .dynamics.update import Moment, regrow, remove
from .dynamics.warmup import RateWarmup


class SparseLinear(nn.Module):
    """A linear layer over the links of a mask. `values` [Z] holds their weights in row-major order.

    Beside them it keeps where they are, in CSR by rows and by columns.
    """

    mask: Tensor
    _rows: Tensor
    _columns: Tensor
    _row_starts: Tensor
    _by_column: Tensor
    _column_starts: Tensor

    def __init__(self, weight_NK: Tensor, mask_NK: Tensor, bias_N: Tensor | None = None) -> None:
        """Take the weights of the links of a mask, bool [N, K]; what is off the mask is dropped."""
        super().__init__()
        self.out_features, self.in_features = mask_NK.shape
        for name in ("_rows", "_columns", "_row_starts", "_by_column", "_column_starts"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("mask", mask_NK.clone())
        self._index(mask_NK)
        self.values = nn.Parameter(weight_NK.detach()[mask_NK].clone())
        self.bias = None if bias_N is None else nn.Parameter(bias_N.detach().clone())

    @classmethod
    def from_linear(cls, linear: nn.Linear, mask_NK: Tensor) -> "SparseLinear":
        """The links of a dense layer."""
        return cls(linear.weight, mask_NK, linear.bias)

    def to_linear(self) -> nn.Linear:
        """A dense layer with explicit zeros."""
        device, dtype = self.values.device, self.values.dtype
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device=device, dtype=dtype)
        with torch.no_grad():
            linear.weight.copy_(self.dense())
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear

    def dense(self) -> Tensor:
        """The weights [N, K], zero off the mask."""
        weight_NK = self.values.new_zeros(self.out_features, self.in_features)
        weight_NK[self._rows, self._columns] = self.values.detach()
        return weight_NK

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] to [..., N]."""
        y_TN = _Product.apply(x.reshape(-1, self.in_features), self.values, self)
        if self.bias is not None:
            y_TN = y_TN + self.bias
        return y_TN.view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def rewire(self, mask_NK: Tensor, kept_NK: Tensor, optimizers: Iterable[Optimizer] = ()) -> None:
        """Change the graph. Links in `kept_NK` keep weight and moments; the others of the new mask start at 0.

        Args:
            mask_NK: bool [N, K], the new links.
            kept_NK: bool [N, K], those that live on, a part of the old mask and of the new one.
            optimizers: that train this layer.
        """
        rows, columns, old_mask = self._rows, self._columns, self.mask
        place_NK = torch.full(old_mask.shape, -1, dtype=torch.int64, device=old_mask.device)
        place_NK[rows, columns] = torch.arange(len(rows), device=rows.device)
        source_Z = place_NK.masked_fill_(~kept_NK, -1)[mask_NK]
        states = [optimizer.state.get(self.values, {}) for optimizer in optimizers]
        moments = [(state, key) for state in states for key, value in state.items() if _is_like(value, self.values)]
        for state, key in moments:
            state[key] = _carry(state[key], source_Z)
        self.values.data = _carry(self.values.data, source_Z)
        self.values.grad = None
        self.mask = mask_NK.clone()
        self._index(mask_NK)

    def by_rows(self, values_Z: Tensor) -> Tensor:
        """The matrix [N, K] in CSR."""
        return _csr(self._row_starts, self._columns, values_Z, (self.out_features, self.in_features))

    def by_columns(self, values_Z: Tensor) -> Tensor:
        """Its transpose [K, N] in CSR."""
        rows_Z = self._rows[self._by_column]
        shape = (self.in_features, self.out_features)
        return _csr(self._column_starts, rows_Z, values_Z[self._by_column], shape)

    def _index(self, mask_NK: Tensor) -> None:
        self._rows, self._columns = torch.nonzero(mask_NK, as_tuple=True)
        self._row_starts = _starts(mask_NK.sum(dim=1))
        self._column_starts = _starts(mask_NK.sum(dim=0))
        self._by_column = torch.argsort(self._columns, stable=True)


class _Product(torch.autograd.Function):
    """x W^T over the links."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, values_Z: Tensor, layer: SparseLinear) -> Tensor:
        ctx.save_for_backward(x_TK, values_Z)
        ctx.layer = layer
        return (layer.by_rows(values_Z) @ x_TK.T.contiguous()).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_TK, values_Z = ctx.saved_tensors
        grad_NT = grad_TN.T.contiguous()
        wants_x, wants_values, _ = ctx.needs_input_grad
        grad_TK = (ctx.layer.by_columns(values_Z) @ grad_NT).T if wants_x else None
        grad_Z = None
        if wants_values:
            pattern = ctx.layer.by_rows(values_Z)
            grad_Z = torch.sparse.sampled_addmm(pattern, grad_NT, x_TK.contiguous(), beta=0.0).values()
        return grad_TK, grad_Z, None


class LinkSparsifier:
    """The dynamics of `Sparsifier` for layers that hold their links alone: `model`'s are replaced by `SparseLinear`.

        sparsifier = LinkSparsifier(model, SparsityConfig(method="chts", density=0.01))
        optimizer = torch.optim.AdamW(model.parameters())
        sparsifier.attach(optimizer)

    Raises:
        InputError: globs that match no layer, or a method that looks at the gradients of absent links.
    """

    def __init__(self, model: nn.Module, config: SparsityConfig) -> None:
        self.config = config.resolved()
        self.plans = plan_layers(model, config)
        if needing := [name for name, plan in self.plans.items() if plan.uses_gradient]:
            raise InputError(
                f"method '{config.method}' looks at gradients of links that are not there, which layer '{needing[0]}' "
                "does not form; use Sparsifier"
            )
        self._chains = model_chains(model, list(self.plans)) if self.config.removal.chains else []
        self.steps = 0
        self.stopped: set[str] = set()
        self._optimizers: list[Optimizer] = []
        self._warmup = RateWarmup(self.config.update.warmup, self._steps_since_update)
        self.layers = {name: self._replace(model, plan) for name, plan in self.plans.items()}

    def attach(self, optimizer: Optimizer) -> None:
        """Carry this optimizer's moments along when links move."""
        self._optimizers.append(optimizer)
        self._warmup.attach(optimizer)

    @property
    def masks(self) -> dict[str, Tensor]:
        """bool [N, K] by layer."""
        return {name: layer.mask for name, layer in self.layers.items()}

    def step(self) -> Mapping[str, int] | None:
        """Count one optimizer step; update the graphs where one is due, and say how many links went and came."""
        self.steps += 1
        update = self.config.update
        due = self.config.changes and self.steps % update.every == 0 and self.steps <= update.stop
        return self._update() if due else None

    def densify(self, model: nn.Module) -> nn.Module:
        """Put dense layers with explicit zeros back into the model, to save or export it."""
        for name, layer in self.layers.items():
            _set_submodule(model, name, layer.to_linear())
        return model

    def _is_settled(self, again: int, regrown: int) -> bool:
        """Whether an update brought back little but what it had removed (early stop)."""
        threshold = required(self.config.update.early_stop)
        return threshold > 0 and regrown > 0 and again >= threshold * regrown

    def _steps_since_update(self) -> int | None:
        update = self.config.update
        last = min(self.steps, update.stop) // update.every * update.every
        return self.steps - last if self.config.changes and last else None

    def _replace(self, model: nn.Module, plan: LayerPlan) -> SparseLinear:
        linear = model.get_submodule(plan.name)
        assert isinstance(linear, nn.Linear)
        if plan.topology in ("csti", "magnitude"):
            raise InputError(f"topology '{plan.topology}' of layer '{plan.name}': use Sparsifier")
        mask_NK = plan.initial_mask(self.config.seed)
        layer = SparseLinear.from_linear(linear, mask_NK.to(linear.weight.device))
        _set_submodule(model, plan.name, layer)
        return layer

    @torch.no_grad()
    def _update(self) -> Mapping[str, int]:
        when = Moment(self.steps // self.config.update.every, self.steps / self.config.update.stop)
        seed, before = self.config.seed, self.masks
        kept = {
            name: remove(plan, before[name], self.layers[name].dense(), None, when, seed, stopped=name in self.stopped)
            for name, plan in self.plans.items()
        }
        if remove_chains(kept, self._chains):
            structures = {name: plan.structure for name, plan in self.plans.items()}
            kept = {name: structure.unfold(structure.fold_mask(kept[name])) for name, structure in structures.items()}
        removed = regrown = 0
        for name, plan in self.plans.items():
            after_NK = regrow(plan, kept[name], None, when, seed)
            gone_NK, come_NK = before[name] & ~kept[name], after_NK & ~kept[name]
            removed, regrown = removed + int(gone_NK.sum()), regrown + int(come_NK.sum())
            if self._is_settled(int((gone_NK & come_NK).sum()), int(come_NK.sum())):
                self.stopped.add(name)
            self.layers[name].rewire(after_NK, before[name] & kept[name], self._optimizers)
        return {"removed": removed, "regrown": regrown}


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


def _starts(degrees: Tensor) -> Tensor:
    return torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])


def _carry(values_Z: Tensor, source_Z: Tensor) -> Tensor:
    """Values at their links' old places; 0 for links without one."""
    return values_Z[source_Z.clamp(min=0)].masked_fill_(source_Z < 0, 0)


def _is_like(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
