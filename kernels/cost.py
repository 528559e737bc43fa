"""The cost model of the native library: how long a layer takes on an instruction set, packed and dense.

The kernels choose their packings by it, and exports and benchmarks predict by it. It holds for any instruction set
that it has a table of, not only for this machine's. Times are those of one core of the machine that the table was
fitted on: ratios are much the same on others, microseconds do not.

Legend: N out_features, K in_features, M tokens.
"""

import ctypes
from dataclasses import dataclass
from functools import cache

from ..artifacts.scales import group_count
from . import library_path

TERMS = (
    "call",
    "one",
    "two",
    "four",
    "eight",
    "passes",
    "wide",
    "halves",
    "far",
    "pieces",
    "bytes",
    "cached bytes",
    "activations",
    "narrow activations",
    "outputs",
)
"""What a call is made of; `Term` in kernels/linear/amounts.h says what each is."""
BASELINE = "onnxruntime"
"""The family that stands for ONNX Runtime's dense float32 MatMul."""
FAMILIES = ("csr", "sell", "tile", "panel", "pick", "broad", "coded", "quad", "dense")
"""The families of packings, as HEBBLINE_FAMILY names them."""
_UNIT_COLUMNS = {"float32": 1, "bfloat16": 2, "int8": 4, "int4": 4}


@dataclass(frozen=True)
class Work:
    """A layer [N, K] with its number of links, the type of its values, and whether links are whole blocks of 16."""

    out_features: int
    in_features: int
    links: int
    values: str = "float32"
    blocks: bool = False

    @property
    def density(self) -> float:
        """Links over possible links."""
        return self.links / max(1, self.out_features * self.in_features)

    @property
    def vectors(self) -> float:
        """Vectors of 16 rows that hold a link, where links are whole blocks; else 0."""
        if not self.blocks:
            return 0
        return self.density * self.out_features / 16 * self.in_features / _UNIT_COLUMNS.get(self.values, 1)

    @property
    def groups(self) -> int:
        """Groups of columns that share a scale."""
        return group_count((self.out_features, self.in_features), self.links) if self.values == "int4" else 1


@dataclass(frozen=True)
class Prediction:
    """What the model says of a call.

    Attributes:
        microseconds: that one core takes.
        family: of the packing that is taken for so many tokens.
        packed_bytes: of the weight that a call reads.
        amounts: of each of TERMS.
        is_measured: whether the table was fitted to measurements on hardware with the instruction set.
        table: of costs: the instruction set, with the processors' design behind it where there is a table for each
            ("avx512-intel").
    """

    microseconds: float
    family: str
    packed_bytes: float
    amounts: tuple[float, ...]
    is_measured: bool
    table: str


class _Question(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_char_p) for name in ("isa", "family", "values")),
        *((name, ctypes.c_double) for name in ("rows", "columns", "links", "vectors", "pieces", "tokens")),
        ("is_cached", ctypes.c_int32),
    )


class _Answer(ctypes.Structure):
    _fields_ = (
        ("microseconds", ctypes.c_double),
        ("packed_bytes", ctypes.c_double),
        ("amounts", ctypes.c_double * len(TERMS)),
        ("is_measured", ctypes.c_int32),
        ("family", ctypes.c_char * 16),
        ("table", ctypes.c_char * 16),
        ("error", ctypes.c_char * 256),
    )


def predict(work: Work, tokens: int, isa: str, family: str | None = None, *, cached: bool = False) -> Prediction:
    """How long a layer takes for M = `tokens`.

    Args:
        work: the layer.
        tokens: M.
        isa: an instruction set ("scalar", "avx2", "avx2-vnni", "avx512", "amx"), whether this machine has it or not, of
            this machine's design; "avx2-amd", "avx512-zen5", "avx512-intel": of AMD up to Zen 4, of Zen 5, of Intel.
        family: of the packing; None: the one that the kernels would take for so many tokens; BASELINE: ONNX Runtime's
            dense float32 MatMul of the same shape.
        cached: the weight is in a cache; else it is read from memory.

    Raises:
        InputError: there is no such instruction set, family or type of values, or the family has no kernels for the
            instruction set; there is no library.
    """
    from ..artifacts.errors import InputError

    question = _Question(
        isa.encode(),
        None if family is None else family.encode(),
        work.values.encode(),
        work.out_features,
        work.in_features,
        work.links,
        work.vectors,
        work.groups,
        tokens,
        cached,
    )
    answer = _Answer()
    if _library(str(library_path())).hebbline_cost(ctypes.byref(question), ctypes.byref(answer)) < 0:
        raise InputError(answer.error.decode())
    return Prediction(
        answer.microseconds,
        answer.family.decode(),
        answer.packed_bytes,
        tuple(answer.amounts),
        bool(answer.is_measured),
        answer.table.decode(),
    )


def check_isa(isa: str) -> None:
    """Raise InputError where the model knows no such instruction set, or there is no library that holds it."""
    predict(Work(1, 1, 1), 1, isa)


def is_measured(isa: str) -> bool:
    """Whether the table of an instruction set was fitted on hardware that has it; InputError as `check_isa`."""
    return predict(Work(1, 1, 1), 1, isa).is_measured


def table_name(isa: str) -> str:
    """The table of costs that holds for an instruction set: see `Prediction.table`; InputError as `check_isa`."""
    return predict(Work(1, 1, 1), 1, isa).table


def predicted_speedup(work: Work, tokens: int, isa: str, *, cached: bool = False) -> float:
    """How many times faster than ONNX Runtime's dense float32 product a layer is; arguments and errors as `predict`."""
    dense = predict(work, tokens, isa, BASELINE, cached=cached).microseconds
    return dense / max(predict(work, tokens, isa, cached=cached).microseconds, 1e-3)


@cache
def _library(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    library.hebbline_cost.argtypes = [ctypes.POINTER(_Question), ctypes.POINTER(_Answer)]
    library.hebbline_cost.restype = ctypes.c_int
    return library
