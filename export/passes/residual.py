"""2:4 with a residual: W = W24 + R exactly, W24 packed as 2:4 and R as compressed sparse rows.

For targets that multiply dense weights, 2:4 and compressed rows. (Where the op library runs, a bitmask of the same
values is never larger than 2:4, and `layouts.choose_layout` does not consider it.)

Legend: N out_features, K in_features, Q groups of four columns.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..layouts.csr import CsrLayout
from ..layouts.layout import Layout
from ..layouts.nm24 import GROUP, SLOTS, Nm24Layout, fitting_links
from ..layouts.values import VALUE_TYPES

_DENSE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 0.5}


@dataclass(frozen=True)
class Part:
    """A summand of a layer: the links [N, K] that it holds, and the layout that it is packed in."""

    layout: Layout
    mask_NK: NDArray[np.bool_]


@dataclass(frozen=True)
class Nm24Choice:
    """How a layer is stored: the parts that sum to it (none: left dense), their bytes, the dense bytes, and why."""

    parts: tuple[Part, ...]
    packed_bytes: int
    dense_bytes: int
    reason: str


def split_two_of_four(weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The links of W24 and of R, which together are the mask and have none in common.

    Of more than two links in a group of four columns, the two of largest magnitude are in W24, the first of equals. The
    weight of a part is the weight on its links and 0 elsewhere, so that the parts sum to it bit for bit.
    """
    rows, columns = mask_NK.shape
    padding = [(0, 0), (0, -columns % GROUP)]
    linked_NQ4 = np.pad(mask_NK, padding).reshape(rows, -1, GROUP)
    # Absent links rank after active zeros.
    size_NQ4 = np.where(linked_NQ4, np.abs(np.pad(weight_NK, padding).reshape(linked_NQ4.shape)), -1)
    ranked_NQ4 = np.argsort(-size_NQ4, axis=2, kind="stable")
    first_NQ4 = np.zeros_like(linked_NQ4)
    np.put_along_axis(first_NQ4, ranked_NQ4[..., :SLOTS], True, axis=2)
    fitting_NK = (first_NQ4 & linked_NQ4).reshape(rows, -1)[:, :columns]
    return fitting_NK, mask_NK & ~fitting_NK


def choose_nm24(weight_NK: NDArray, mask_NK: NDArray[np.bool_], values: str = "float32") -> Nm24Choice:
    """The fewest bytes among dense, compressed rows, and 2:4 with what it leaves in compressed rows.

    A linear layer at few tokens is bound by the bytes that it reads. At equal bytes the more regular form is chosen.

    Raises:
        KeyError: the value type is unknown.
    """
    out_features, in_features = mask_NK.shape
    links = int(np.count_nonzero(mask_NK))
    nm24, csr = Nm24Layout(VALUE_TYPES[values]), CsrLayout(VALUE_TYPES[values])
    rest = links - fitting_links(mask_NK)
    dense_bytes = int(mask_NK.size * _DENSE_BYTES[values])
    rest_bytes = csr.packed_bytes(out_features, in_features, rest) if rest else 0
    form = f"{nm24.name} + csr" if rest else nm24.name
    sizes = {
        "dense": dense_bytes,
        form: nm24.packed_bytes(out_features, in_features, links - rest) + rest_bytes,
        csr.name: csr.packed_bytes(out_features, in_features, links),
    }
    best = min(sizes, key=lambda name: sizes[name])
    figures = ", ".join(f"{name} {size / dense_bytes:.3f}" for name, size in sizes.items())
    reason = (
        f"{best} has the fewest bytes (over dense: {figures}); {(links - rest) / max(1, links):.1%} of links are 2:4"
    )
    parts: tuple[Part, ...] = ()
    if best == csr.name:
        parts = (Part(csr, mask_NK),)
    elif best == form:
        fitting_NK, rest_NK = split_two_of_four(weight_NK, mask_NK)
        parts = (Part(nm24, fitting_NK), Part(csr, rest_NK))[: 2 if rest else 1]
    return Nm24Choice(parts, sizes[best], dense_bytes, reason)


def encode_parts(weight_NK: NDArray, parts: tuple[Part, ...]) -> list[dict[str, NDArray]]:
    """The tensors of each part, in order: Y is the sum of the parts' products with X."""
    return [
        part.layout.encode(np.where(part.mask_NK, weight_NK, weight_NK.dtype.type(0)), part.mask_NK) for part in parts
    ]
