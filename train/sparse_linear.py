"""A linear layer that holds and trains its links alone: at some percent of density, a fraction of the cost of masks.

Legend: N out_features, K in_features, Z links, T tokens.

A masked layer multiplies dense matrices that are mostly zero, and its optimizer keeps moments for every possible link.
Here the parameter is the vector of link weights [Z]: forward and input gradient are products with a matrix in CSR, the
weight gradient is formed at the links only, and any optimizer's state is of the size of the links. In float32 on the
CPU the native library forms all three; elsewhere torch's products of sparse matrices do.
"""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

from .native.link_products import LinkIndex, backward, forward, is_native


class SparseLinear(nn.Module):
    """A linear layer over the links of a mask. `values` [Z] holds their weights in row-major order.

    Beside them it keeps where they are, in CSR by rows and by columns. `wants_dense` is asked in each backward pass
    whether the gradient of the whole weight, absent links included, is to be handed to `take_dense` too, as [N, K].
    """

    mask: Tensor
    _rows: Tensor
    _columns: Tensor
    _row_starts: Tensor
    _by_column: Tensor
    _rows_by_column: Tensor
    _column_starts: Tensor

    def __init__(self, weight_NK: Tensor, mask_NK: Tensor, bias_N: Tensor | None = None) -> None:
        """Take the weights of the links of a mask, bool [N, K]; what is off the mask is dropped."""
        super().__init__()
        self.out_features, self.in_features = mask_NK.shape
        for name in ("mask", "_rows", "_columns", "_row_starts", "_by_column", "_rows_by_column", "_column_starts"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int32), persistent=False)
        self._index(mask_NK.clone())
        self.values = nn.Parameter(weight_NK.detach()[mask_NK].clone())
        self.bias = None if bias_N is None else nn.Parameter(bias_N.detach().clone())
        self.wants_dense: Callable[[], bool] = lambda: False
        self.take_dense: Callable[[Tensor], None] = lambda gradient_NK: None

    @classmethod
    def from_linear(cls, linear: nn.Linear, mask_NK: Tensor) -> "SparseLinear":
        """The links of a dense layer; the bias is the layer's own parameter."""
        layer = cls(linear.weight, mask_NK)
        layer.bias = linear.bias
        return layer

    def to_linear(self) -> nn.Linear:
        """A dense layer with explicit zeros; the bias is this layer's own parameter."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.dense())
        linear.register_parameter("bias", self.bias)
        return linear

    def dense(self) -> Tensor:
        """The weights [N, K], zero off the mask."""
        weight_NK = self.values.new_zeros(self.out_features, self.in_features)
        weight_NK[self._rows.long(), self._columns.long()] = self.values.detach()
        return weight_NK

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] to [..., N], in the type of the weights."""
        # Products of sparse matrices have no form in bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            x_TK = x.reshape(-1, self.in_features).to(self.values.dtype)
            y_TN = _Product.apply(x_TK, self.values, self.bias, self)
        return y_TN.view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def rewire(self, mask_NK: Tensor, kept_NK: Tensor, optimizers: Iterable[Optimizer] = ()) -> None:
        """Change the graph. Links in `kept_NK` keep weight and moments; the others of the new mask start at 0.

        Args:
            mask_NK: bool [N, K], the new links.
            kept_NK: bool [N, K], those that live on, a part of the old mask and of the new one.
            optimizers: that train this layer.
        """
        rows, columns, old_mask = self._rows.long(), self._columns.long(), self.mask
        place_NK = torch.full(old_mask.shape, -1, dtype=torch.int64, device=old_mask.device)
        place_NK[rows, columns] = torch.arange(len(rows), device=rows.device)
        source_Z = place_NK.masked_fill_(~kept_NK, -1)[mask_NK]
        states = [optimizer.state.get(self.values, {}) for optimizer in optimizers]
        moments = [(state, key) for state in states for key, value in state.items() if _is_like(value, self.values)]
        for state, key in moments:
            state[key] = _carry(state[key], source_Z)
        self.values.data = _carry(self.values.data, source_Z)
        self.values.grad = None
        self._index(mask_NK.clone())

    def by_rows(self, values_Z: Tensor) -> Tensor:
        """The matrix [N, K] in CSR."""
        return _csr(self._row_starts, self._columns, values_Z, (self.out_features, self.in_features))

    def by_columns(self, values_Z: Tensor) -> Tensor:
        """Its transpose [K, N] in CSR."""
        shape = (self.in_features, self.out_features)
        return _csr(self._column_starts, self._rows_by_column, values_Z.index_select(0, self._by_column), shape)

    @property
    def index(self) -> LinkIndex:
        """Where the links are, for the native library."""
        shape = (self.out_features, self.in_features)
        return LinkIndex(
            shape, self._row_starts, self._columns, self._column_starts, self._rows_by_column, self._by_column
        )

    def _index(self, mask_NK: Tensor) -> None:
        self.mask = mask_NK
        rows, columns = torch.nonzero(mask_NK, as_tuple=True)
        by_column = torch.argsort(columns, stable=True)
        self._row_starts = _starts(mask_NK.sum(dim=1))
        self._column_starts = _starts(mask_NK.sum(dim=0))
        self._rows_by_column = rows[by_column].int()
        self._rows, self._columns, self._by_column = rows.int(), columns.int(), by_column.int()


def rows_first(x_TK: Tensor) -> Tensor:
    """The same values, row by row in memory, for a dense layer after one of links, which puts out features first.

    The gradient goes back features first, where x came so: element-wise functions are slow on two layouts at once.
    """
    return x_TK if x_TK.is_contiguous() else _RowsFirst.apply(x_TK)


class _RowsFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TK: Tensor) -> Tensor:
        return x_TK.contiguous()

    @staticmethod
    def backward(ctx: Any, grad_TK: Tensor) -> Tensor:
        return grad_TK.T.contiguous().T


class _Product(torch.autograd.Function):
    """x W^T + b over the links."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, values_Z: Tensor, bias_N: Tensor | None, layer: SparseLinear) -> Tensor:
        ctx.save_for_backward(x_TK, values_Z)
        ctx.index = layer.index
        ctx.layer = layer
        if is_native(x_TK, values_Z, bias_N):
            return forward(ctx.index, values_Z, bias_N, x_TK)
        weight, x_KT = layer.by_rows(values_Z), x_TK.T.contiguous()
        if bias_N is None:
            return (weight @ x_KT).T
        return torch.addmm(bias_N[:, None].expand(-1, x_KT.shape[1]), weight, x_KT).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x_TK, values_Z = ctx.saved_tensors
        layer: SparseLinear = ctx.layer
        wants = ctx.needs_input_grad[:3]
        if wants[1] and layer.wants_dense():
            layer.take_dense(grad_TN.T @ x_TK)
        if is_native(grad_TN, values_Z):
            return *backward(ctx.index, values_Z, x_TK, grad_TN, wants=wants), None
        grad_NT = grad_TN.T.contiguous()
        grad_TK = (layer.by_columns(values_Z) @ grad_NT).T if wants[0] else None
        grad_Z = None
        if wants[1]:
            pattern = layer.by_rows(values_Z)
            grad_Z = torch.sparse.sampled_addmm(pattern, grad_NT, x_TK, beta=0.0).values()
        return grad_TK, grad_Z, grad_NT.sum(dim=1) if wants[2] else None, None


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


def _starts(degrees: Tensor) -> Tensor:
    return torch.cat([degrees.new_zeros(1), degrees.cumsum(0)]).int()


def _carry(values_Z: Tensor, source_Z: Tensor) -> Tensor:
    """Values at their links' old places; 0 for links without one."""
    return values_Z[source_Z.clamp(min=0)].masked_fill_(source_Z < 0, 0)


def _is_like(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape
