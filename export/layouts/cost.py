"""What a packed layer costs: a model of the time that the kernels take, beside that of a dense float32 product.

The model is that of `kernels/linear/cost.cpp`, whose kernels choose by it; the file's layout does not bind them, since
they repack at load. Its constants were measured on 2048 x 2048 layers on one core with AVX-512 and without AMX, at
3.7 GHz and 20 GB/s, and on one with AMX. They are good for ratios: the same machine runs the dense product.

Legend: N out_features, K in_features, M tokens.
"""

from dataclasses import dataclass

_NS_PER_BYTE = 0.05
_NS_PER_TRANSPOSED = 0.3
_NS_PER_ROUNDED = 0.8
_VECTOR_FIXED = 0.7
_HALF_BYTE_FIXED = 1.1
_VECTOR_PER_TOKEN = 0.29
_NS_PER_STREAMED = 0.035
_STEP_FIXED = 0.3
_STEP_PER_TOKEN = 0.55
_NS_PER_PACKED = 0.1
_DENSE_NS_PER_BYTE = 0.048
_CACHED_NS_PER_BYTE = 0.015
_DENSE_CACHED_NS_PER_BYTE = 0.009
_DENSE_NS_PER_PRODUCT = 0.0165
_VALUE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}
_UNIT_COLUMNS = {"float32": 1, "bfloat16": 2, "int8": 4, "int4": 4}
_EMPTY_PLACES = {"float32": 0.09, "bfloat16": 0.063, "int8": 0.046, "int4": 0.046}
"""Places of picked columns that rows leave empty while they wait for one another, as a share of all cells: counted on
random masks of 1% to 50%."""
LATENCY_TOKENS = 1
THROUGHPUT_TOKENS = 64


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
        """Vectors of 16 rows x 4 bytes that cover the layer."""
        return self.out_features / 16 * self.in_features / _UNIT_COLUMNS[self.values]


def dense_microseconds(out_features: int, in_features: int, tokens: int, *, cached: bool = False) -> float:
    """Time of ONNX Runtime's float32 MatMul on one core, the weight read from memory, or `cached`."""
    weights = out_features * in_features
    reading = 4 * (_DENSE_CACHED_NS_PER_BYTE if cached else _DENSE_NS_PER_BYTE)
    return weights * (reading + _DENSE_NS_PER_PRODUCT * tokens) / 1e3


def predicted_microseconds(work: Work, tokens: int, *, amx: bool = False, cached: bool = False) -> float:
    """Time of the fastest kernel on one core, the packed weight read from memory, or `cached`."""
    times = [_expanded(work, tokens, amx), _picked(work, tokens, cached), _linked(work, tokens)]
    if amx and work.values != "int4":
        times.append(0.18 * work.links * tokens)
    if work.blocks:
        times.append(work.density * work.vectors * (0.2 + _VECTOR_PER_TOKEN * tokens + 64 * _NS_PER_BYTE * 0.3))
    return min(times) / 1e3


def predicted_speedup(work: Work, tokens: int, *, amx: bool = False, cached: bool = False) -> float:
    """How many times faster than the dense float32 product a layer is, both from memory or both `cached`."""
    dense = dense_microseconds(work.out_features, work.in_features, tokens, cached=cached)
    return dense / max(predicted_microseconds(work, tokens, amx=amx, cached=cached), 1e-3)


def _expanded(work: Work, tokens: int, amx: bool) -> float:
    """A bitmask expanded to vectors; with AMX, tiles of 16 tokens."""
    packed = work.out_features * work.in_features / 8 + work.links * _VALUE_BYTES[work.values]
    reading = 0.3 * packed * _NS_PER_BYTE
    if amx and work.values != "float32" and tokens >= 4:
        return work.vectors * (1.5 + 0.05 * 16 * -(-tokens // 16)) + reading
    fixed = _HALF_BYTE_FIXED if work.values == "int4" else _VECTOR_FIXED
    return work.vectors * (fixed + _VECTOR_PER_TOKEN * tokens) + reading


def _picked(work: Work, tokens: int, cached: bool) -> float:
    """Columns permuted to where the links are: by memory or by steps, whichever takes longer."""
    width = _UNIT_COLUMNS[work.values]
    places = work.links + _EMPTY_PLACES[work.values] * work.out_features * work.in_features
    steps = places / (16 * width)
    streaming = steps * (66 + 16 * width) * (_CACHED_NS_PER_BYTE if cached else _NS_PER_STREAMED)
    return max(streaming, steps * (_STEP_FIXED + _STEP_PER_TOKEN * tokens)) + _NS_PER_PACKED * tokens * work.in_features


def _in_pairs(work: Work, tokens: int) -> bool:
    return work.values in ("bfloat16", "int8") and tokens > 16


def _linked(work: Work, tokens: int) -> float:
    """Links by rows, times tokens side by side."""
    padded = 0 if tokens <= 1 else max(8, tokens)
    per_token = 0.016 if _in_pairs(work, tokens) else 0.019 if padded <= 16 else 0.025
    return work.links * (0.33 + per_token * padded) + _transposing(work, tokens) + _rounding(work, tokens)


def _transposing(work: Work, tokens: int) -> float:
    return 0 if tokens < 2 else _NS_PER_TRANSPOSED * tokens * (work.out_features + work.in_features)


def _rounding(work: Work, tokens: int) -> float:
    """X to whole numbers, where products are taken in float32 all the same."""
    return _NS_PER_ROUNDED * tokens * work.in_features if work.values in ("int8", "int4") else 0
