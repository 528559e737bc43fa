"""Products of integers: the sums are made of the file's own integers, exactly, and what follows them stays.

X is read as the integers a - z, of which there are at most 511. Two forms give the same sums: integers of bfloat16,
which hold every one of them and are summed in float32, and integers of int8 with X centred at 0, where the difference
between the centre and the zero point is constant for each output.

Legend: N out_features, K in_features, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ...layouts.values import BFloat16Values
from ..document import Document
from ..quantised import KeptInt8Values
from ..weights import Constant, load
from .expansion import Emitter, Form, Matrix

_LARGEST = 127
_EXACT = 1 << 24
"""Integers up to this are exact in float32."""
_WIDEST = 255
"""The largest magnitude of a difference of two integers of 8 bits."""


@dataclass(frozen=True)
class IntegerInput:
    """The left side of a product: the integers `name`, their zero point `zero` ("" for 0) and `scale` ("" for 1)."""

    name: str
    zero: str
    scale: str = ""


Finish = Callable[[Emitter, str, IntegerInput], None]
"""Writes what follows the sums [..., N], which are float32, given their name and the input."""


@dataclass(frozen=True)
class IntegerWeight:
    """The right side: integers [K, N] (`by_rows`: [N, K]) with one zero point, or one for each output."""

    integers: Constant
    zero: Constant | None
    by_rows: bool = False

    def matrix(self, document: Document) -> NDArray[np.float32]:
        """The integers less their zero points, W [N, K]; raises ValueError where they do not fit together."""
        array = load(self.integers, document)
        if array.ndim != 2 or array.dtype not in (np.uint8, np.int8):
            raise ValueError(f"its weight is {array.dtype} of {array.ndim} dimensions, not a matrix of 8-bit integers")
        integers_NK = (array if self.by_rows else array.T).astype(np.float32)
        if self.zero is not None:
            zeros = load(self.zero, document).reshape(-1).astype(np.float32)
            if zeros.size not in (1, len(integers_NK)):
                raise ValueError(f"{zeros.size} zero points do not fit {len(integers_NK)} outputs")
            integers_NK = integers_NK - zeros[:, None]
        return np.ascontiguousarray(integers_NK)


@dataclass(frozen=True)
class IntegerProduct:
    """A product of integers in an operator.

    Attributes:
        dtype: of the input's integers.
        weight: the right side.
        begin: writes what makes the input's integers, and says which they are.
        finish: writes what follows the sums.
        integer_bias_N: added to the sums.
    """

    dtype: np.dtype
    weight: IntegerWeight
    begin: Callable[[Emitter], IntegerInput]
    finish: Finish
    integer_bias_N: NDArray | None = None

    def forms(self, document: Document) -> list[Form]:
        """The ways to write it.

        Raises:
            ValueError: the sums of a row may be too large for float32, or the weight is none of integers.
        """
        integers_NK = self.weight.matrix(document)
        bias_N = np.zeros(len(integers_NK)) if self.integer_bias_N is None else self.integer_bias_N.astype(np.float64)
        if bias_N.shape != (len(integers_NK),):
            raise ValueError(f"a bias of {bias_N.size} numbers does not fit {len(integers_NK)} outputs")
        largest_N = np.abs(integers_NK).sum(axis=1, dtype=np.float64) * _WIDEST + np.abs(bias_N)
        if largest_N.max(initial=0.0) >= _EXACT:
            raise ValueError("its sums may be larger than float32 holds exactly")
        forms = [self._bfloat16_form(integers_NK, bias_N)]
        if np.abs(integers_NK).max(initial=0.0) <= _LARGEST:
            forms.append(self._int8_form(integers_NK, bias_N))
        return forms

    def _bfloat16_form(self, integers_NK: NDArray[np.float32], bias_N: NDArray[np.float64]) -> Form:
        def write(emitter: Emitter) -> None:
            given = self.begin(emitter)
            zero = given.zero or emitter.constant(f"{given.name}.zero", np.array(0, self.dtype))
            one = emitter.constant(f"{given.name}.one", np.array(1, np.float32))
            (x,) = emitter.node("DequantizeLinear", [given.name, one, zero])
            bias = emitter.constant(f"{given.name}.bias", bias_N.astype(np.float32)) if bias_N.any() else ""
            self.finish(emitter, emitter.product(0, x, bias), given)

        return Form("integers in bfloat16", (Matrix(integers_NK, BFloat16Values()),), write)

    def _int8_form(self, integers_NK: NDArray[np.float32], bias_N: NDArray[np.float64]) -> Form:
        centre = 128 if self.dtype == np.uint8 else 0
        sums_N = integers_NK.sum(axis=1, dtype=np.float64)

        def write(emitter: Emitter) -> None:
            given = self.begin(emitter)
            one = emitter.constant(f"{given.name}.one", np.array(1, np.float32))
            middle = emitter.constant(f"{given.name}.centre", np.array(centre, self.dtype))
            (x,) = emitter.node("DequantizeLinear", [given.name, one, middle])
            # sum (a - z) w = sum (a - c) w + c sum w - z sum w
            constant_N = (centre * sums_N + bias_N).astype(np.float32)
            bias = emitter.constant(f"{given.name}.bias", constant_N) if constant_N.any() or given.zero else ""
            if given.zero:
                (zero,) = emitter.node("Cast", [given.zero], to=TensorProto.FLOAT)
                rows = emitter.constant(f"{given.name}.sums", sums_N.astype(np.float32))
                (shift,) = emitter.node("Mul", [zero, rows])
                (bias,) = emitter.node("Sub", [bias, shift])
            self.finish(emitter, emitter.product(0, x, bias), given)

        values = KeptInt8Values(np.ones(len(integers_NK), np.float32))
        return Form("integers in int8", (Matrix(integers_NK, values, 1.0),), write)
