"""A model of one VarlenAttention node, caches to bind to it, and what it should compute, in float64.

Legend: T tokens of the step, S sequences, H query heads, G key heads, D head size, L tokens that a slot can hold.
"""

from dataclasses import dataclass, field

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from hebbline.export.layouts import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET
from hebbline.kernels import register

PLACES = 16
FORMATS = ("float32", "bfloat16", "int8")


def block_bytes(kv, head_dim):
    """As the op documents it: keys and values of 16 tokens, and two scales a token for int8."""
    numbers = 2 * PLACES * head_dim
    return {"float32": 4 * numbers, "bfloat16": 2 * numbers, "int8": numbers + 8 * PLACES}[kv]


def make_model(heads, kv_heads, packed=False, turns=True, **attributes):
    """`packed`: queries, keys and values come side by side, as `queries`. `turns`: with rotary embedding."""
    floats, integers, uint8 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.UINT8
    inputs = {
        "queries": (floats, ["T", "q"]),
        "keys": (floats, ["T", "k"]),
        "values": (floats, ["T", "k"]),
        "cu_seqlens": (integers, ["S1"]),
        "slots": (integers, ["S"]),
        "past": (integers, ["S"]),
        "cos": (floats, ["C", "half"]),
        "sin": (floats, ["C", "half"]),
        "cache": (uint8, ["N", "G", "blocks", "bytes"]),
    }
    left_out = (("keys", "values") if packed else ()) + (() if turns else ("cos", "sin"))
    node = helper.make_node(
        "VarlenAttention",
        ["" if name in left_out else name for name in inputs],
        ["attended", "cache_out"],
        name="attention",
        domain=DOMAIN,
        num_heads=heads,
        kv_num_heads=kv_heads,
        **attributes,
    )
    for name in left_out:
        del inputs[name]
    outputs = {"attended": (floats, ["T", "a"]), "cache_out": (uint8, ["N", "G", "blocks", "bytes"])}
    values = [
        [helper.make_tensor_value_info(name, *type_) for name, type_ in group.items()] for group in (inputs, outputs)
    ]
    graph = helper.make_graph([node], "attention", *values)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def open_session(model, threads=1, kernels=True):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if kernels:
        register(options)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def rotary_tables(context, head_dim):
    angles = np.arange(context)[:, None] / 10000.0 ** (np.arange(head_dim // 2) * 2 / head_dim)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@dataclass
class Sequence:
    """Tokens of one sequence: the slot that they go to, how many it holds, and the new ones."""

    slot: int
    past: int
    queries: np.ndarray
    keys: np.ndarray
    values: np.ndarray


@dataclass
class Attention:
    """A session over a cache that is bound to input and output, full of NaN where nothing was written."""

    heads: int
    kv_heads: int
    head_dim: int
    kv: str = "float32"
    slots: int = 3
    context: int = 96
    threads: int = 1
    rotary: int | None = None  # places that turn; None: all
    attributes: dict = field(default_factory=dict)
    session: onnxruntime.InferenceSession = field(init=False)

    def __post_init__(self):
        self.rotary = self.head_dim if self.rotary is None else self.rotary
        model = make_model(self.heads, self.kv_heads, turns=self.rotary > 0, **self.attributes)
        self.session = open_session(model, self.threads)
        self.cos, self.sin = rotary_tables(self.context, self.rotary or 2)
        blocks = -(-self.context // PLACES)
        shape = (self.slots, self.kv_heads, blocks, block_bytes(self.kv, self.head_dim))
        self.cache = np.full(shape, 0xFF, np.uint8)

    def random(self, rng, tokens):
        """Queries, keys and values of a number of tokens."""
        widths = (self.heads, self.kv_heads, self.kv_heads)
        return [rng.standard_normal((tokens, width * self.head_dim), np.float32) for width in widths]

    def feeds(self, sequences):
        return {
            **{name: np.concatenate([getattr(s, name) for s in sequences]) for name in ("queries", "keys", "values")},
            "cu_seqlens": np.cumsum([0, *(len(s.queries) for s in sequences)]).astype(np.int32),
            "slots": np.array([s.slot for s in sequences], np.int32),
            "past": np.array([s.past for s in sequences], np.int32),
            **({"cos": self.cos, "sin": self.sin} if self.rotary else {}),
        }

    def step(self, sequences):
        """What the op makes of the step, a part for each sequence; the cache is written in place."""
        return self.run(self.feeds(sequences), [len(s.queries) for s in sequences])

    def held(self, slot, tokens):
        """The keys and values [T, G, D] of a slot's first tokens, in float64."""
        blocks = -(-tokens // PLACES)
        raw = self.cache[slot, :, :blocks]
        numbers = raw[..., : -8 * PLACES] if self.kv == "int8" else raw
        both = widen(np.ascontiguousarray(numbers), self.kv).reshape(self.kv_heads, blocks, 2, -1)
        keys = both[:, :, 0].reshape(self.kv_heads, blocks, self.head_dim, PLACES).transpose(1, 3, 0, 2)
        values = both[:, :, 1].reshape(self.kv_heads, blocks, PLACES, self.head_dim).transpose(1, 2, 0, 3)
        result = [x.reshape(blocks * PLACES, self.kv_heads, self.head_dim)[:tokens] for x in (keys, values)]
        if self.kv == "int8":
            scales = np.ascontiguousarray(raw[..., -8 * PLACES :]).view(np.float32).astype(np.float64)
            for part in range(2):
                scale = scales[..., part * PLACES : (part + 1) * PLACES].transpose(1, 2, 0)
                result[part] = result[part] * scale.reshape(-1, self.kv_heads)[:tokens, :, None]
        return result

    def run(self, feeds, lengths):
        attended = np.empty_like(feeds["queries"])
        io = self.session.io_binding()
        for name, array in (feeds | {"cache": self.cache}).items():
            io.bind_input(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)
        for name, array in {"attended": attended, "cache_out": self.cache}.items():
            io.bind_output(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)
        self.session.run_with_iobinding(io)
        return np.split(attended, np.cumsum(lengths)[:-1])


def widen(raw, kv):
    """Stored numbers in float64, without their scales."""
    if kv == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.view(np.float32 if kv == "float32" else np.int8).astype(np.float64)


def rotate(x_THD, positions_T, cos, sin):
    half = cos.shape[-1]
    c, s = (table.astype(np.float64)[positions_T][:, None] for table in (cos, sin))
    first, second, rest = np.split(x_THD, [half, 2 * half], axis=-1)
    return np.concatenate([first * c - second * s, second * c + first * s, rest], axis=-1)


def rotated(attention, data):
    """Queries, keys and values [T, heads, D] in float64, the first two after rotary embedding, of tokens 0 … T - 1."""
    tables = np.arange(len(data[0])), attention.cos, attention.sin
    queries, keys, values = (x.astype(np.float64).reshape(len(x), -1, attention.head_dim) for x in data)
    if not attention.rotary:
        return queries, keys, values
    return rotate(queries, *tables), rotate(keys, *tables), values


def expected(attention, data, slot, first=0):
    """Attention of the tokens of `data` from `first` on to the keys and values that the slot holds of them all."""
    tokens = len(data[0])
    positions = np.arange(tokens)
    queries, *_ = rotated(attention, data)
    keys, values = (x.repeat(attention.heads // attention.kv_heads, axis=1) for x in attention.held(slot, tokens))
    scores = np.einsum("qhd,khd->hqk", queries, keys) * attention.attributes.get("scale", attention.head_dim**-0.5)
    if softcap := attention.attributes.get("softcap"):
        scores = softcap * np.tanh(scores / softcap)
    distance = positions[:, None] - positions
    scores[:, (distance < 0) | (distance >= (attention.attributes.get("window") or tokens))] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, values).reshape(tokens, -1)[first:]


def make_sequence(slot, past, data, count):
    """The sequence that appends tokens [past, past + count) of `data` to a slot."""
    return Sequence(slot, past, *(x[past : past + count] for x in data))
