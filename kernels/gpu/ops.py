"""The kernels as torch operators: `torch.ops.hebbline.bitmask_linear`, `csr_linear`, `block_linear`, `nm24_linear`,
`gap_linear`, `gap8_linear`.

Legend: T tokens, N out_features, K in_features.

Each takes x [..., K] in float16 or bfloat16, the tensors of its form in the order of `packing`, and out_features; the
names are those of the TensorRT plugins. Importing this module registers them. They run on CUDA tensors, and on CPU
tensors in Triton's interpreter (environment variable TRITON_INTERPRET=1, set before the import).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .launch import launch
from .packing import TENSOR_TYPES, GpuWeight

NAMESPACE = "hebbline"
_TYPES = (torch.float16, torch.bfloat16)


@torch.library.custom_op(f"{NAMESPACE}::bitmask_linear", mutates_args=())
def bitmask_linear(x: Tensor, values: Tensor, mask: Tensor, tile_offsets: Tensor, out_features: int) -> Tensor:
    """Y = X W^T for a bitmask weight."""
    return _linear("bitmask", x, (values, mask, tile_offsets), out_features)


@torch.library.custom_op(f"{NAMESPACE}::csr_linear", mutates_args=())
def csr_linear(x: Tensor, values: Tensor, columns: Tensor, row_offsets: Tensor, out_features: int) -> Tensor:
    """Y = X W^T for a CSR weight."""
    return _linear("csr", x, (values, columns, row_offsets), out_features)


@torch.library.custom_op(f"{NAMESPACE}::block_linear", mutates_args=())
def block_linear(x: Tensor, values: Tensor, columns: Tensor, row_offsets: Tensor, out_features: int) -> Tensor:
    """Y = X W^T for a weight of whole blocks."""
    return _linear("block", x, (values, columns, row_offsets), out_features)


@torch.library.custom_op(f"{NAMESPACE}::nm24_linear", mutates_args=())
def nm24_linear(
    x: Tensor,
    values: Tensor,
    metadata: Tensor,
    residual_values: Tensor,
    residual_columns: Tensor,
    residual_offsets: Tensor,
    out_features: int,
) -> Tensor:
    """Y = X W^T for a 2:4 weight with a residual."""
    tensors = (values, metadata, residual_values, residual_columns, residual_offsets)
    return _linear("nm24", x, tensors, out_features)


@torch.library.custom_op(f"{NAMESPACE}::gap_linear", mutates_args=())
def gap_linear(
    x: Tensor,
    values: Tensor,
    gaps: Tensor,
    row_offsets: Tensor,
    mask: Tensor,
    tile_offsets: Tensor,
    out_features: int,
) -> Tensor:
    """Y = X W^T for a weight of gap-coded rows."""
    return _linear("gap", x, (values, gaps, row_offsets, mask, tile_offsets), out_features)


@torch.library.custom_op(f"{NAMESPACE}::gap8_linear", mutates_args=())
def gap8_linear(
    x: Tensor,
    values: Tensor,
    gaps: Tensor,
    row_offsets: Tensor,
    mask: Tensor,
    tile_offsets: Tensor,
    row_scales: Tensor,
    out_features: int,
) -> Tensor:
    """Y = X W^T for a weight of gap-coded rows with int8 values and row scales."""
    return _linear("gap8", x, (values, gaps, row_offsets, mask, tile_offsets, row_scales), out_features)


OPS = {
    "bitmask": bitmask_linear,
    "csr": csr_linear,
    "block": block_linear,
    "nm24": nm24_linear,
    "gap": gap_linear,
    "gap8": gap8_linear,
}


def linear(x: Tensor, weight: GpuWeight, tensors: tuple[Tensor, ...]) -> Tensor:
    """Y [..., N] of X [..., K] for a packed weight whose tensors `to_torch` has put on X's device.

    Raises:
        ValueError: X is not of the weight's type or width, or tensors are elsewhere.
    """
    return OPS[weight.form](x, *tensors, weight.out_features)


def to_torch(
    weight: GpuWeight, device: str | torch.device = "cuda", values: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """The tensors of a packed weight, in the order of the operator's arguments.

    Args:
        weight: the weight. device: where they go. values: what float32 values are rounded to, as kernels take none.
    """
    kinds = TENSOR_TYPES[weight.form]
    tensors = [to_tensor(array) for array in weight.tensors.values()]
    return tuple(
        tensor.to(device=device, dtype=values if kind == "value" else None)
        for kind, tensor in zip(kinds, tensors, strict=True)
    )


def _linear(form: str, x: Tensor, tensors: tuple[Tensor, ...], out_features: int) -> Tensor:
    if form == "gap8" and (x.dtype not in _TYPES or tensors[0].dtype != torch.int8):
        raise ValueError(
            f"gap8_linear: x is {x.dtype} and the weight {tensors[0].dtype}: float16 or bfloat16, and int8"
        )
    if form != "gap8" and (x.dtype not in _TYPES or x.dtype != tensors[0].dtype):
        raise ValueError(f"{form}_linear: x is {x.dtype} and the weight {tensors[0].dtype}: both float16 or bfloat16")
    if any(tensor.device != x.device or not tensor.is_contiguous() for tensor in tensors):
        raise ValueError(f"{form}_linear: the weight's tensors must be contiguous and on {x.device}")
    y_TN = launch(form, x.reshape(-1, x.shape[-1]).contiguous(), tensors, out_features)
    return y_TN.reshape(*x.shape[:-1], out_features)


def to_tensor(array: NDArray) -> Tensor:
    """A torch tensor of a NumPy array, bfloat16 included, which torch cannot take from NumPy itself."""
    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _result_of(form: str) -> None:
    """Tell torch.compile the shape of an operator's result."""

    def shape_only(x: Tensor, *arguments: Tensor | int) -> Tensor:
        return x.new_empty((*x.shape[:-1], arguments[-1]))  # type: ignore[arg-type]

    OPS[form].register_fake(shape_only)


for _form in OPS:
    _result_of(_form)
