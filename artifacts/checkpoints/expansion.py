"""Weights that are stored in another form, as the plain matrices that they mean, and the masks that come with them.

Two kinds of checkpoint are met:

- **compressed-tensors** (the format of LLM Compressor and SparseML): `sparse-bitmask` and `sparse-24-bitmask` keep the
  non-zero weights of a layer in row order (`compressed`) beside one bit a weight (`bitmask`, little bit order) and the
  matrix's `shape`; `pack-quantized` keeps integers of 4 or 8 bits in int32 words (`weight_packed`), the others
  integers or float8 in `weight`, all with `weight_scale` and sometimes `weight_zero_point` and `weight_g_idx`.
  The two go together: what is `compressed` may be integers with scales.
- models saved under `torch.nn.utils.prune`: `weight_orig` times `weight_mask`.

Legend: N out_features, K in_features, P = ceil(K / 8) bytes of bits a row, L links, W int32 words a row,
A x B blocks that share a scale.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, UnsupportedModelError

PARTS = (
    "compressed",
    "bitmask",
    "shape",
    "row_offsets",
    "weight_packed",
    "weight_shape",
    "weight_scale",
    "weight_zero_point",
    "weight_g_idx",
    "weight_orig",
    "weight_mask",
)
"""How the names of tensors end that stand for a weight together; `weight` itself may be one of them."""
DROPPED = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale")
"""Scales of activations: weights do not need them, and activations stay in floating point here."""
_FORMS = ("compressed", "weight_packed", "weight_orig", "weight_scale")


class Expanded(NamedTuple):
    """A weight in floating point, [N, K] for a matrix, and its mask (bool, same shape) where the checkpoint has one."""

    name: str
    weight: Tensor
    mask: Tensor | None


def part_of(name: str) -> tuple[str, str] | None:
    """The layer and the part that a tensor's name means, if it is a part of a weight in another form.

    Earlier versions of compressed-tensors wrote `LAYER.weight.compressed` where later ones write `LAYER.compressed`.
    """
    layer, _, part = name.rpartition(".")
    return (layer.removesuffix(".weight"), part) if layer and part in PARTS else None


def expand(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[Expanded]:
    """Every tensor of a checkpoint, weights in another form as the matrices that they mean.

    A layer is expanded when all of its parts are known, so that no more than the open layers are held beside the
    result. Plain tensors pass as they are.

    Raises:
        InputError: a part is missing, of the wrong shape or type, or does not fit the others; the tensor is named.
        UnsupportedModelError: integers that are packed in a way that is not known here.
    """
    plain: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        if (named := part_of(name)) is not None:
            layers.setdefault(named[0], {})[named[1]] = tensor
        elif name.rpartition(".")[2] not in DROPPED:
            plain[name] = tensor
    for layer, parts in layers.items():
        if (weight := plain.pop(f"{layer}.weight", None)) is not None:
            parts["weight"] = weight
        yield expand_layer(layer, parts)
    for name, tensor in plain.items():
        yield Expanded(name, tensor, None)


def expand_layer(layer: str, parts: dict[str, Tensor]) -> Expanded:
    """The weight that the parts of a layer mean, by the names that `part_of` gives them.

    Raises:
        InputError, UnsupportedModelError: as `expand`.
    """
    if not any(form in parts for form in _FORMS):
        raise InputError(f"tensor '{layer}.{next(iter(parts))}' belongs to a weight of which nothing else is there")
    mask = None
    if "weight_orig" in parts:
        weight, mask = _pruned(layer, parts)
    elif "compressed" in parts:
        weight, mask = _from_bitmask(layer, parts)
    elif "weight_packed" in parts:
        weight = _unpacked(layer, parts)
    else:
        weight = _part(layer, parts, "weight")
    if "weight_scale" in parts:
        weight = _scaled(layer, weight, mask, parts)
    elif not weight.is_floating_point():
        raise InputError(f"layer '{layer}' has weights of type {_type(weight)}, and no '{layer}.weight_scale'")
    return Expanded(f"{layer}.weight", weight, mask)


def _part(layer: str, parts: dict[str, Tensor], part: str) -> Tensor:
    if part not in parts:
        raise InputError(f"layer '{layer}' has '{layer}.{next(iter(parts))}', but no tensor '{layer}.{part}'")
    return parts[part]


def _shape(layer: str, parts: dict[str, Tensor], part: str) -> tuple[int, int]:
    sizes = _part(layer, parts, part).flatten().tolist()
    if len(sizes) != 2 or not all(size > 0 and float(size).is_integer() for size in sizes):
        raise InputError(f"tensor '{layer}.{part}' is {sizes}; it must be the two sizes of a matrix")
    return int(sizes[0]), int(sizes[1])


def _pruned(layer: str, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    original, mask = parts["weight_orig"], _part(layer, parts, "weight_mask")
    if mask.shape != original.shape:
        raise InputError(
            f"tensor '{layer}.weight_mask' is {list(mask.shape)}, '{layer}.weight_orig' {list(original.shape)}"
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(f"tensor '{layer}.weight_mask' has values that are neither 0 nor 1")
    return torch.where(mask.bool(), original, torch.zeros((), dtype=original.dtype)), mask.bool()


def _from_bitmask(layer: str, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    rows, columns = _shape(layer, parts, "shape")
    bits_NP, values_L = _part(layer, parts, "bitmask"), parts["compressed"].flatten()
    width = -(-columns // 8)
    if bits_NP.dtype != torch.uint8 or tuple(bits_NP.shape) != (rows, width):
        raise InputError(
            f"tensor '{layer}.bitmask' is {_type(bits_NP)} {list(bits_NP.shape)}; a matrix of {rows} x {columns} "
            f"takes uint8 [{rows}, {width}]"
        )
    bits = (bits_NP[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    mask_NK = bits.reshape(rows, 8 * width).bool()
    if bool(mask_NK[:, columns:].any()):
        raise InputError(f"tensor '{layer}.bitmask' has bits past its {columns} columns")
    mask_NK = mask_NK[:, :columns].contiguous()
    if (links := int(mask_NK.sum())) != values_L.numel():
        raise InputError(f"tensor '{layer}.compressed' has {values_L.numel()} weights; its bitmask has {links} links")
    if values_L.element_size() == 1 and values_L.is_floating_point():
        values_L = values_L.float()  # torch scatters no float8
    weight_NK = torch.zeros(rows, columns, dtype=values_L.dtype)
    weight_NK[mask_NK] = values_L
    return weight_NK, mask_NK


def _unpacked(layer: str, parts: dict[str, Tensor]) -> Tensor:
    rows, columns = _shape(layer, parts, "weight_shape")
    packed_NW = parts["weight_packed"]
    if packed_NW.dtype != torch.int32 or packed_NW.ndim != 2 or packed_NW.shape[0] != rows:
        raise UnsupportedModelError(
            f"tensor '{layer}.weight_packed' is {_type(packed_NW)} {list(packed_NW.shape)}; int32 words of {rows} rows "
            "are read here: save the model in the format pack-quantized, or with plain weights"
        )
    return _unpack_words(packed_NW, _word_bits(layer, packed_NW.shape[1], columns))[:, :columns]


def _word_bits(layer: str, words: int, columns: int) -> int:
    """Bits of a value, from the number of int32 words that hold a row."""
    for bits in (4, 8, 2):
        if words == -(-columns // (32 // bits)):
            return bits
    raise UnsupportedModelError(
        f"tensor '{layer}.weight_packed' holds {columns} columns in {words} words, which is neither 8, 4 nor 2 bits a "
        "weight; save the model with plain weights"
    )


def _unpack_words(packed_NW: Tensor, bits: int) -> Tensor:
    """int32 [N, W] to int8 [N, W * 32 / bits]: lowest bits first, each value raised by half its range."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    values = (packed_NW[:, :, None] >> shifts) & ((1 << bits) - 1)
    return (values - (1 << (bits - 1))).to(torch.int8).reshape(packed_NW.shape[0], -1)


def _scaled(layer: str, weight_NK: Tensor, mask_NK: Tensor | None, parts: dict[str, Tensor]) -> Tensor:
    """(weight - zero point) * scale, in the type of the scales (float32 where they have less)."""
    if weight_NK.ndim != 2:
        raise InputError(
            f"layer '{layer}' has scales, and a weight of shape {list(weight_NK.shape)}; it takes a matrix"
        )
    for part in ("weight_scale", "weight_zero_point"):
        if part in parts and parts[part].ndim > 2:
            raise InputError(f"tensor '{layer}.{part}' is {list(parts[part].shape)}; it takes one or two dimensions")
    value_NK = weight_NK.float()
    scale_AB = _blocks(parts["weight_scale"])
    groups_K = parts.get("weight_g_idx")
    if (zero := parts.get("weight_zero_point")) is not None:
        zero_AB = _zero_points(layer, zero, weight_NK.shape[0], scale_AB)
        value_NK = value_NK - _spread(layer, "weight_zero_point", zero_AB, weight_NK, groups_K)
    scaled_NK = value_NK * _spread(layer, "weight_scale", scale_AB.float(), weight_NK, groups_K)
    return scaled_NK if mask_NK is None else torch.where(mask_NK, scaled_NK, torch.zeros(()))


def _zero_points(layer: str, zero: Tensor, rows: int, scale_AB: Tensor) -> Tensor:
    """Zero points [A, B] as float32; pack-quantized packs them along the rows."""
    zero_AB = _blocks(zero)
    if zero.dtype == torch.int32 and zero_AB.shape != scale_AB.shape:
        bits = _word_bits(layer, zero_AB.shape[0], rows)
        zero_AB = _unpack_words(zero_AB.T.contiguous(), bits).T[:rows]
    return zero_AB.float()


def _blocks(values: Tensor) -> Tensor:
    return values.reshape(-1, 1) if values.ndim < 2 else values


def _spread(layer: str, part: str, values_AB: Tensor, weight_NK: Tensor, groups_K: Tensor | None) -> Tensor:
    """Values of blocks as a matrix that broadcasts with the weight."""
    rows, columns = weight_NK.shape
    down, across = values_AB.shape
    if groups_K is not None and bool((groups_K >= 0).all()):
        groups = groups_K.long()
        if groups.shape != (columns,) or int(groups.max()) >= across:
            raise InputError(
                f"tensor '{layer}.weight_g_idx' does not name one of {across} groups for {columns} columns"
            )
        across_NK = values_AB[:, groups]
    elif across in (1, columns):
        across_NK = values_AB
    elif columns % across == 0:
        across_NK = values_AB.repeat_interleave(columns // across, dim=1)
    else:
        raise InputError(f"tensor '{layer}.{part}' has {across} groups, which do not divide {columns} columns")
    if down in (1, rows):
        return across_NK
    if rows % down:
        raise InputError(f"tensor '{layer}.{part}' has {down} rows, which do not divide the {rows} of the weight")
    return across_NK.repeat_interleave(rows // down, dim=0)


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
