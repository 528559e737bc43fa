"""Damaged files of every kind that is packed: each is packed or refused in one line, and nothing is half-written.

`HEBBLINE_FUZZED_GRAPHS=1000 pytest tests/export/test_pack_fuzz.py` tries so many.
"""

import os
import random
import shutil

import numpy as np
import pytest
from onnx import AttributeProto, ModelProto, TensorProto
from pack_models import dense, make_model, node, sparse, value

from hebbline.artifacts import CheckError, InputError, read_manifest
from hebbline.export import pack

COUNT = int(os.environ.get("HEBBLINE_FUZZED_GRAPHS", "24"))
K, N, T = 32, 24, 3
INT8 = np.where(sparse(K, N) != 0, 5, 0).astype(np.int8)


def model(nodes, constants, given, rank=2):
    outputs = [value("Y", *[None] * rank)]
    return make_model(nodes, [given], outputs, constants, 18, domains=["com.microsoft"])


def fused(op_type, *constants, **attributes):
    return [node(op_type, ["X", *constants], ["Y"], domain="com.microsoft", **attributes)]


def seeds():
    """A sound model of each kind."""
    x = value("X", T, K)
    yield model(
        [node("MatMul", ["X", "W"], ["p"]), node("Add", ["p", "b"], ["Y"])], {"W": sparse(K, N), "b": dense(N)}, x
    )
    yield model([node("Gemm", ["X", "W", "b"], ["Y"], transB=1)], {"W": sparse(N, K), "b": dense(N)}, x)
    quantised = [
        node("DynamicQuantizeLinear", ["X"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "W", "z", "wz"], ["p"]),
        node("Cast", ["p"], ["f"], to=1),
        node("Mul", ["f", "s"], ["Y"]),
    ]
    yield model(quantised, {"W": INT8, "wz": np.int8(0)}, x)
    points = {"xs": np.float32(0.1), "xz": np.uint8(9), "W": INT8, "ws": np.float32(0.1), "wz": np.int8(0)}
    points |= {"ys": np.float32(0.1), "yz": np.uint8(9)}
    rounded = [node("QuantizeLinear", ["X", "xs", "xz"], ["q"])]
    steps = [node("QLinearMatMul", ["q", *points], ["y"]), node("DequantizeLinear", ["y", "ys", "yz"], ["Y"])]
    yield model([*rounded, *steps], points, x)
    chain = [
        *rounded,
        node("DequantizeLinear", ["q", "xs", "xz"], ["x"]),
        node("DequantizeLinear", ["W", "ws", "wz"], ["w"]),
        node("MatMul", ["x", "w"], ["Y"]),
    ]
    yield model(chain, points, x)
    yield model(fused("DynamicQuantizeMatMul", "W", "s", "z"), {"W": INT8, "s": np.float32(0.1), "z": np.int8(0)}, x)
    bits = {"W": np.full((N, 1, 16), 0x88, np.uint8), "s": np.ones((N, 1), np.float32)}
    bits["W"][::5, 0, 3] = 0x99
    yield model(fused("MatMulNBits", "W", "s", K=K, N=N, bits=4, block_size=32), bits, x)
    yield model(fused("FusedMatMul", "W", alpha=2.0, transB=1), {"W": sparse(N, K)}, x)
    yield model(fused("FusedGemm", "W", "b", activation="Relu"), {"W": sparse(K, N), "b": dense(N)}, x)
    heads = fused("Attention", "W", "b", num_heads=2)
    yield model(heads, {"W": sparse(K, 3 * N), "b": dense(3 * N)}, value("X", 1, T, K), 3)
    yield model([node("MatMul", ["X", "W"], ["Y"])], {"W": sparse(2, K, N)}, value("X", 2, T, K), 3)
    shape = [node("Conv", ["X", "W"], ["Y"], pads=[1, 1, 1, 1], strides=[2, 1])]
    yield model(shape, {"W": sparse(N, 16, 3, 3)}, value("X", 1, 16, 6, 6), 4)
    yield model([node("Conv", ["X", "W"], ["Y"])], {"W": sparse(N, K, 1)}, value("X", 1, K, 9), 3)
    layer = [node("LSTM", ["X", "W", "R"], ["Y"], hidden_size=N)]
    yield model(layer, {"W": sparse(1, 4 * N, K), "R": sparse(1, 4 * N, N)}, value("X", T, 1, K), 4)
    layer = [node("GRU", ["X", "W", "R", "b"], ["Y"], hidden_size=N, direction="reverse")]
    constants = {"W": sparse(1, 3 * N, K), "R": sparse(1, 3 * N, N), "b": dense(1, 6 * N)}
    yield model(layer, constants, value("X", T, 1, K), 4)


SEEDS = [item.SerializeToString() for item in seeds()]
NUMBERS = [-(1 << 62), -2, -1, 0, 1, 2, 3, 7, 64, 1 << 20, 1 << 40]


def damage(rng, proto):
    """Change one thing."""
    graph = proto.graph
    rng.choice([_attribute, _attribute, _dims, _type, _data, _input, _drop, _rename, _shape])(rng, graph)


def _attribute(rng, graph):
    chosen = rng.choice(graph.node)
    if not chosen.attribute or rng.random() < 0.3:
        name = rng.choice(["group", "pads", "transA", "alpha", "block_size", "axis", "perm", "num_heads", "direction"])
        chosen.attribute.append(AttributeProto(name=name, type=AttributeProto.INT, i=rng.choice(NUMBERS)))
        return
    item = rng.choice(chosen.attribute)
    kind = rng.randrange(5)
    if kind == 0:
        item.i = rng.choice(NUMBERS)
    elif kind == 1:
        item.type, item.s = AttributeProto.STRING, b"\xff\x00reverse"
    elif kind == 2:
        item.type = AttributeProto.INTS
        item.ints.extend(rng.choices(NUMBERS, k=rng.randrange(4)))
    elif kind == 3:
        item.type, item.f = AttributeProto.FLOAT, rng.choice([0.0, float("nan"), -1e30])
    else:
        item.name = rng.choice(["group", "dilations", "K", "N", "hidden_size", "axis"])


def _dims(rng, graph):
    tensor = rng.choice(graph.initializer)
    if tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)


def _type(rng, graph):
    rng.choice(graph.initializer).data_type = rng.choice([0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 14, 16, 21, 22, 99])


def _data(rng, graph):
    tensor = rng.choice(graph.initializer)
    data = bytearray(tensor.raw_data)
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    tensor.raw_data = bytes(data[: rng.choice([len(data), len(data), len(data) - 1])])


def _input(rng, graph):
    chosen = rng.choice(graph.node)
    names = [*chosen.input, "", "X", "nothing", *(tensor.name for tensor in graph.initializer)]
    chosen.input[rng.randrange(len(chosen.input))] = rng.choice(names)


def _drop(rng, graph):
    field = rng.choice([graph.node, graph.initializer, graph.input, graph.output])
    if field:
        del field[rng.randrange(len(field))]


def _rename(rng, graph):
    chosen = rng.choice(graph.node)
    chosen.op_type = rng.choice(["MatMul", "MatMulInteger", "Conv", "LSTM", "GRU", "Gemm", "Relu", "Nothing"])


def _shape(rng, graph):
    given = rng.choice(graph.input).type.tensor_type
    if rng.random() < 0.3:
        given.elem_type = rng.choice([TensorProto.DOUBLE, TensorProto.INT8, TensorProto.FLOAT16, TensorProto.STRING])
    elif given.shape.dim:
        given.shape.dim[rng.randrange(len(given.shape.dim))].dim_value = rng.choice([-1, 0, 1, 2, 5, 1 << 30])


def damaged(seed):
    rng = random.Random(seed)
    content = SEEDS[seed % len(SEEDS)]
    proto = ModelProto.FromString(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        try:
            damage(rng, proto)
        except (IndexError, ValueError):  # nothing of that kind is left to damage, or protobuf takes no such number
            continue
    content = proto.SerializeToString()
    if rng.random() < 0.1:
        content = bytearray(content)
        for _ in range(rng.randrange(1, 5)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


@pytest.mark.parametrize("start", range(0, COUNT, 8))
def test_damaged_files(start, tmp_path):
    for seed in range(start, min(start + 8, COUNT)):
        path, out = tmp_path / f"{seed}.onnx", tmp_path / "out"
        path.write_bytes(damaged(seed))
        try:
            pack(path, out, measure=False)
        except (InputError, CheckError) as fault:
            message = str(fault)
            assert "\n" not in message and len(message) < 1000, (seed, message)
            assert not out.exists(), seed
        except Exception as fault:
            raise AssertionError(f"seed {seed}: {type(fault).__name__}: {fault}") from fault
        else:
            assert read_manifest(out).kind == "onnx"
            shutil.rmtree(out)
        assert [item.name for item in tmp_path.iterdir() if item != path] == [], seed
        path.unlink()
