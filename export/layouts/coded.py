"""CodedLinear: a bitmask whose values have their exponents in a code of few bits, without loss.

Legend: N out_features, K in_features, P = ceil(K / 8), Z links, E of them stored as they are, C = Z - E coded, b bits
of a code, R bytes of sign and fraction: 3 of float32, 1 of bfloat16.

Code 0 is a link whose value is stored as it is; code c > 0 one whose exponent is that of powers[c - 1], so that only
sign and fraction are stored. Zeros, subnormal numbers, infinities and NaN are never coded: every value keeps every bit.
Canonical tensors: `values` [E], float32 or bfloat16, row-major; `mask` uint8 [N, P], as of a bitmask; `codes` uint8
[b, ceil(Z / 8)], bit z % 8 of byte z // 8 of plane i is bit i of the code of link z, padding bits are 0; `powers`, of
the type of `values`, up to 2^b - 1 ascending powers of two; `fractions` uint8 [C, R], see `FloatBits.split`.
"""

import numpy as np
import onnx
from numpy.typing import NDArray

from ...artifacts.masks import pack_mask, unpack_mask
from .bitmask import linear_by_bytes, links_before_bytes, mask_places
from .coded_function import coded_values
from .exponents import FloatBits, exponents_of_powers, smallest_code
from .functions import in_features_constant, make_function
from .layout import check_countable, check_mask_covers, layout_name
from .rounds import rounds
from .values import VALUE_TYPES, Tensors, ValueType

_MOST_BITS = 8


class CodedLayout:
    """A bitmask with coded exponents: smaller than a bitmask where a layer's weights share few of them."""

    needs_blocks = 0

    def __init__(self, values: ValueType = VALUE_TYPES["float32"]) -> None:
        if values.name not in ("float32", "bfloat16"):
            raise ValueError(f"values of {values.name} have no exponent of 8 bits")
        self.values = values
        self.name = layout_name("coded", values)
        self.op_type = "CodedLinear"
        self.tensor_names: tuple[str, ...] = ("values", "mask", "codes", "powers", "fractions")
        self._floats = FloatBits(self._stored(np.zeros(0, np.float32)).dtype)

    def encode(self, weight_NK: NDArray, mask_NK: NDArray[np.bool_]) -> dict[str, NDArray]:
        """Pack; raises ValueError where a weight off the mask is not zero or int32 cannot count the links."""
        check_mask_covers(weight_NK, mask_NK)
        check_countable(int(np.count_nonzero(mask_NK)))
        stored_Z = self._stored(weight_NK[mask_NK])
        exponents_Z = self._floats.exponents(stored_Z)
        code = smallest_code(exponents_Z, self._floats)
        code_of = np.zeros(256, np.uint8)
        code_of[code.exponents] = np.arange(1, len(code.exponents) + 1)
        codes_Z = code_of[exponents_Z]
        return {
            "values": stored_Z[codes_Z == 0],
            "mask": pack_mask(mask_NK),
            "codes": _planes(codes_Z, code.bits),
            "powers": self._floats.powers(code.exponents),
            "fractions": self._floats.split(stored_Z[codes_Z > 0]),
        }

    def decode(self, tensors: Tensors, in_features: int) -> tuple[NDArray, NDArray[np.bool_]]:
        """Unpack; raises ValueError where mask, codes and values do not fit together."""
        mask_NK = unpack_mask(tensors["mask"], in_features)
        codes_Z = _codes(tensors["codes"], int(np.count_nonzero(mask_NK)))
        coded_Z = codes_Z > 0
        self._check_shapes(tensors, int(np.count_nonzero(coded_Z)), len(codes_Z))
        exponents = exponents_of_powers(tensors["powers"], self._floats)
        if codes_Z.max(initial=0) > len(exponents):
            raise ValueError(f"codes run up to {codes_Z.max()} where there are {len(exponents)} powers")
        stored_Z = np.empty(len(codes_Z), self._floats.dtype)
        stored_Z[~coded_Z] = tensors["values"]
        stored_Z[coded_Z] = self._floats.join(tensors["fractions"], exponents[codes_Z[coded_Z] - 1])
        weight_NK = np.zeros(mask_NK.shape, np.float32)
        weight_NK[mask_NK] = self.values.decode({"values": stored_Z}, mask_places(mask_NK))
        return weight_NK, mask_NK

    def packed_bytes(
        self, out_features: int, in_features: int, links: int, weight_Z: NDArray[np.float32] | None = None
    ) -> int:
        """P bytes a row, the codes, and what they leave: of links with the weights `weight_Z`.

        Without these it is what no code takes: codes of one bit, and the values as they are.
        """
        mask_bytes = out_features * -(-in_features // 8)
        if weight_Z is None:
            return mask_bytes + -(-links // 8) + self.values.packed_bytes(links, (out_features, in_features), links)
        exponents_Z = self._floats.exponents(self._stored(weight_Z))
        return mask_bytes + smallest_code(exponents_Z, self._floats).packed_bytes(self._floats)

    def function(self) -> onnx.FunctionProto:
        """The values of the links, then as for a bitmask."""
        nodes = [
            *in_features_constant(),
            *rounds(6),
            *links_before_bytes(),
            *coded_values(),
            *linear_by_bytes(self.values, ("round5", "round6", ""), waits="round4"),
        ]
        return make_function(self.op_type, self.tensor_names, nodes)

    def _stored(self, weight_Z: NDArray[np.float32]) -> NDArray:
        """The weights in the type of the values."""
        one_row = np.ones((1, len(weight_Z)), bool)
        return np.ascontiguousarray(self.values.encode(weight_Z, mask_places(one_row))["values"])

    def _check_shapes(self, tensors: Tensors, coded: int, links: int) -> None:
        dtype, most = self._floats.dtype, 2 ** len(tensors["codes"]) - 1
        powers = tensors["powers"]
        if powers.dtype != dtype or powers.ndim != 1 or len(powers) > most:
            raise ValueError(f"powers are {powers.dtype} {powers.shape}, not up to {most} of {dtype}")
        for name, shape, kind in (
            ("values", (links - coded,), dtype),
            ("fractions", (coded, self._floats.fraction_bytes), np.uint8),
        ):
            if tensors[name].shape != shape or tensors[name].dtype != kind:
                raise ValueError(
                    f"{name} are {tensors[name].dtype} {tensors[name].shape}, not {np.dtype(kind)} {shape}"
                )


def _planes(codes_Z: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The codes as `codes`, [b, ceil(Z / 8)]."""
    shifts_b1 = np.arange(bits, dtype=np.uint8)[:, None]
    return np.packbits(codes_Z >> shifts_b1 & 1, axis=1, bitorder="little")


def _codes(planes: NDArray[np.uint8], links: int) -> NDArray[np.uint8]:
    """The code of each link; raises ValueError where the planes have not its shape, or padding bits are set."""
    row_bytes = -(-links // 8)
    if planes.ndim != 2 or not 1 <= len(planes) <= _MOST_BITS or planes.shape[1] != row_bytes:
        raise ValueError(f"codes of shape {planes.shape}, not 1 to {_MOST_BITS} planes of {row_bytes} bytes")
    codes = np.zeros(8 * row_bytes, np.uint8)
    for i, plane in enumerate(planes):
        codes |= np.unpackbits(plane, bitorder="little") << np.uint8(i)
    if codes[links:].any():
        raise ValueError("codes have padding bits set")
    return codes[:links]
