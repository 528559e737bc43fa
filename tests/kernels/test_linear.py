"""Every path of the linear ops against float64, and the promises that they make."""

import gc
import resource
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from packed import LAYOUTS, error, expected, make_layer, make_model, open_session

from hebbline.export.layouts import BlockLayout

TOKENS = (0, 1, 2, 5, 8, 16, 33, 64, 100)
SHAPES = ((1, 1), (33, 7), (100, 300), (70, 129), (16, 64), (200, 1030))
ROUNDING = 2e-6
"""Largest difference to a float64 model of the rounded computation, relative to the largest |Y|."""
QUALITY = {"float32": 1e-6, "bfloat16": 6e-3, "int8": 1.5e-2, "int4": 0.2}
"""The same to float64 without any rounding of weights and X."""

PATHS = {
    "scalar": ("csr", "dense"),
    "avx2": ("csr", "pick", "quad", "dense", ""),
    "avx2-vnni": ("pick", "quad", ""),
    "avx512": ("csr", "sell", "tile", "panel", "pick", "broad", "coded", "dense", ""),
    "amx-emulated": ("tile",),
    "amx": ("tile",),
}


def paths():
    return [pytest.param(isa, family, id=f"{isa}-{family or 'chosen'}") for isa, f in PATHS.items() for family in f]


def open_or_skip(model, **options):
    try:
        return open_session(model, **options)
    except Exception as failure:
        if "this processor lacks it" in str(failure):
            pytest.skip(str(failure).splitlines()[0])
        if "cannot hold this layer" in str(failure):
            return None
        raise


@pytest.mark.parametrize("isa, family", paths())
def test_every_path_computes_what_float64_does(isa, family, monkeypatch):
    monkeypatch.setenv("HEBBLINE_ISA", isa)
    monkeypatch.setenv("HEBBLINE_FAMILY", family)
    rng = np.random.default_rng(0)
    opened = 0
    for number, layout in enumerate(LAYOUTS.values()):
        for shape in SHAPES if isa != "amx-emulated" else SHAPES[:5]:
            density = (0.3, 0.05, 0.9)[number % 3] if shape[0] > 1 else 1
            weight, mask = make_layer(layout, shape, density, seed=number)
            bias = rng.standard_normal(shape[0]).astype(np.float32) if shape[1] % 2 else None
            tensors = layout.encode(weight, mask)
            session = open_or_skip(make_model(layout, tensors, shape[1], bias, function=False))
            if session is None:
                continue
            opened += 1
            decoded = layout.decode(tensors, shape[1])[0]
            for tokens in TOKENS:
                x = rng.standard_normal((1, tokens, shape[1])).astype(np.float32)
                (y,) = session.run(None, {"X": x})
                wanted = expected(x, decoded, bias, layout.values.name)
                assert y.shape == wanted.shape
                assert error(y, wanted) < ROUNDING, (layout.name, shape, tokens)
    assert opened


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_kernel_function_and_reference_agree(layout):
    """The portable file computes the same in ONNX Runtime with and without kernels, and in ONNX's own evaluator."""
    rng = np.random.default_rng(1)
    weight, mask = make_layer(layout, (48, 200), 0.3)
    bias = rng.standard_normal(48).astype(np.float32)
    tensors = layout.encode(weight, mask)
    model = make_model(layout, tensors, 200, bias)
    x = rng.standard_normal((2, 3, 200)).astype(np.float32)
    runs = (open_session(model).run, open_session(model, kernels=False).run, ReferenceEvaluator(model).run)
    kernel, function, reference = (run(None, {"X": x})[0] for run in runs)
    assert error(kernel, function) < ROUNDING and error(kernel, reference) < ROUNDING
    exact = expected(x, weight, bias)
    assert error(kernel, exact) < QUALITY[layout.values.name]


@pytest.mark.parametrize("name", ["bitmask-int8", "csr-int4", "block-int8"])
def test_a_fixed_activation_scale_serves_all_tokens(name):
    layout = LAYOUTS[name]
    rng = np.random.default_rng(2)
    weight, mask = make_layer(layout, (32, 100), 0.3)
    tensors = layout.encode(weight, mask) | {"activation_scale": np.array([0.02], np.float32)}
    model = make_model(layout, tensors, 100)
    x = rng.standard_normal((1, 20, 100)).astype(np.float32)  # some |x| > 127 x 0.02 are clipped
    wanted = expected(x, layout.decode(tensors, 100)[0], None, layout.values.name, activation_scale=0.02)
    for run in (open_session(model).run, open_session(model, kernels=False).run, ReferenceEvaluator(model).run):
        assert error(run(None, {"X": x})[0], wanted) < ROUNDING


@pytest.mark.parametrize("name", ["bitmask", "bitmask-bfloat16", "bitmask-int8", "bitmask-int4", "block-bfloat16"])
@pytest.mark.parametrize("density", [0.02, 0.3])
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_results_depend_neither_on_threads_nor_on_earlier_calls(name, density, isa, monkeypatch):
    monkeypatch.setenv("HEBBLINE_ISA", isa)
    layout = LAYOUTS[name]
    rng = np.random.default_rng(3)
    weight, mask = make_layer(layout, (300, 520), density)
    model = make_model(layout, layout.encode(weight, mask), 520, function=False)
    one, two = open_or_skip(model, threads=1), open_or_skip(model, threads=2)
    for tokens in (1, 7, 64, 200, 130, 1):
        x = rng.standard_normal((1, tokens, 520)).astype(np.float32)
        first = one.run(None, {"X": x})[0]
        for session in (one, two, two):
            assert session.run(None, {"X": x})[0].tobytes() == first.tobytes()


@pytest.mark.parametrize("name", ["bitmask", "csr-bfloat16", "csr-int8", "bitmask-int4"])
def test_layers_of_nothing(name):
    layout = LAYOUTS[name]
    for shape in ((5, 9), (1, 70_000)):
        weight = np.zeros(shape, np.float32)
        tensors = layout.encode(weight, weight != 0)
        bias = np.arange(shape[0], dtype=np.float32)
        session = open_session(make_model(layout, tensors, shape[1], bias, function=False))
        for tokens in (0, 1, 40):
            x = np.ones((1, tokens, shape[1]), np.float32)
            np.testing.assert_array_equal(session.run(None, {"X": x})[0], np.broadcast_to(bias, (1, tokens, shape[0])))


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_wide_layers(name):
    """More columns than uint16 can number."""
    layout = LAYOUTS[name]
    weight, mask = make_layer(layout, (20, 70_001), 0.01)
    tensors = layout.encode(weight, mask)
    session = open_session(make_model(layout, tensors, 70_001, function=False))
    for tokens in (1, 20):
        x = np.random.default_rng(4).standard_normal((1, tokens, 70_001)).astype(np.float32)
        wanted = expected(x, layout.decode(tensors, 70_001)[0], None, layout.values.name)
        assert error(session.run(None, {"X": x})[0], wanted) < ROUNDING


@pytest.mark.parametrize("size", [1, 2, 6, 32, 64])
def test_blocks_of_any_size(size):
    layout = BlockLayout(block_size=size)
    weight, mask = make_layer(layout, (101, 75), 0.3)
    tensors = layout.encode(weight, mask)
    session = open_session(make_model(layout, tensors, 75, function=False))
    x = np.random.default_rng(5).standard_normal((1, 19, 75)).astype(np.float32)
    assert error(session.run(None, {"X": x})[0], expected(x, weight)) < ROUNDING


@pytest.mark.parametrize("values", ["float32", "bfloat16"])
def test_coded_values_keep_every_bit(values, monkeypatch):
    """Values of any bits, one a row: of all exponents, so that tables follow one another; each comes out as it was."""
    monkeypatch.setenv("HEBBLINE_ISA", "avx512")
    monkeypatch.setenv("HEBBLINE_FAMILY", "coded")
    rng = np.random.default_rng(9)
    bits = rng.integers(0, 1 << 32, 3000, np.uint32)
    special = [
        0,
        1 << 31,
        1,
        0x80000001,
        0x7F800000,
        0xFF800000,
        0x7FC00000,
        0x00800000,
        0x7F7FFFFF,
    ]  # 0, denormals ...
    bits[: len(special)] = special
    if values == "bfloat16":
        bits &= np.uint32(0xFFFF0000)
    weight_n, columns_n = bits.view(np.float32), rng.integers(0, 96, len(bits))
    rows = np.arange(len(bits))
    mask = np.zeros((len(bits), 96), bool)
    mask[rows, columns_n] = True
    weight = np.zeros(mask.shape, np.float32)
    weight[rows, columns_n] = weight_n
    layout = LAYOUTS["bitmask" if values == "float32" else "bitmask-bfloat16"]
    with np.errstate(invalid="ignore"):  # NaN to bfloat16
        tensors = layout.encode(weight, mask)
    session = open_or_skip(make_model(layout, tensors, 96, None, function=False))
    (y,) = session.run(None, {"X": np.eye(96, dtype=np.float32)[None]})
    found = y[0, columns_n, rows]
    # Products of bfloat16 by AVX512_BF16 take denormals for 0.
    exact = np.where(np.abs(weight_n) < np.finfo(np.float32).tiny, 0, weight_n) if values == "bfloat16" else weight_n
    kept = (found == exact) | (found == weight_n) | (np.isnan(found) & np.isnan(weight_n))
    assert kept.all(), weight_n[~kept][:5]


@pytest.mark.parametrize("name", ["bitmask", "bitmask-bfloat16", "bitmask-int8", "bitmask-int4"])
@pytest.mark.parametrize(
    "isa, family",
    [
        *(("avx512", family) for family in ("pick", "broad", "coded", "sell", "tile")),
        *((isa, family) for isa in ("avx2", "avx2-vnni") for family in ("pick", "quad")),
    ],
)
def test_rows_of_uneven_length(name, isa, family, monkeypatch):
    """Families that sort rows by length put them back, with their own bias and scale."""
    monkeypatch.setenv("HEBBLINE_ISA", isa)
    monkeypatch.setenv("HEBBLINE_FAMILY", family)
    layout = LAYOUTS[name]
    rng = np.random.default_rng(7)
    mask = rng.random((70, 400)) < np.where(np.arange(70) % 5 == 0, 0.9, 0.02)[:, None]
    weight = np.where(mask, rng.standard_normal(mask.shape), 0).astype(np.float32)
    bias = rng.standard_normal(70).astype(np.float32)
    tensors = layout.encode(weight, mask)
    session = open_or_skip(make_model(layout, tensors, 400, bias, function=False))
    if session is None:
        pytest.skip(f"{family} holds no such values with {isa}")
    for tokens in (1, 3, 15):
        x = rng.standard_normal((1, tokens, 400)).astype(np.float32)
        wanted = expected(x, layout.decode(tensors, 400)[0], bias, layout.values.name)
        assert error(session.run(None, {"X": x})[0], wanted) < ROUNDING


def test_memory_of_closed_sessions_goes_back():
    """Layers share huge pages: they are given back with the last layer that has a part of them."""
    layout = LAYOUTS["bitmask-int8"]
    weight, mask = make_layer(layout, (2048, 2048), 0.3)
    model = make_model(layout, layout.encode(weight, mask), 2048, function=False)
    for _ in range(3):
        open_session(model)
    before = resident_bytes()
    for _ in range(15):
        open_session(model)
    gc.collect()
    assert resident_bytes() - before < 15 * 2**20  # of 15 times 2.9 MB of packed weights, and more for the graph


def test_zero_and_huge_and_tiny_tokens():
    layout = LAYOUTS["bitmask-int8"]
    weight, mask = make_layer(layout, (40, 64), 0.5)
    tensors = layout.encode(weight, mask)
    x = np.random.default_rng(6).standard_normal((1, 4, 64)).astype(np.float32)
    x *= np.array([0, 1e-35, 1e30, 1], np.float32)[None, :, None]
    wanted = expected(x, layout.decode(tensors, 64)[0], None, "int8")
    (y,) = open_session(make_model(layout, tensors, 64, function=False)).run(None, {"X": x})
    for token in range(4):
        assert error(y[0, token], wanted[0, token]) < ROUNDING or not wanted[0, token].any()


def test_an_unknown_instruction_set_or_family_is_refused(monkeypatch):
    layout = LAYOUTS["bitmask"]
    weight, mask = make_layer(layout, (4, 8), 0.5)
    model = make_model(layout, layout.encode(weight, mask), 8, function=False)
    for variable in ("HEBBLINE_ISA", "HEBBLINE_FAMILY"):
        with monkeypatch.context() as patch, pytest.raises(Exception, match=f"{variable}=sse1 is not one of"):
            patch.setenv(variable, "sse1")
            open_session(model)


def test_packed_files_do_not_stay_in_memory(tmp_path):
    """After packing, what the session maps of the external data file is given back."""
    layout = LAYOUTS["bitmask"]
    weight, mask = make_layer(layout, (2048, 2048), 0.5)
    onnx.save_model(
        make_model(layout, layout.encode(weight, mask), 2048, function=False),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="model.data",
    )
    session = open_session(str(tmp_path / "model.onnx"))
    mapped = resident_kilobytes(str(tmp_path / "model.data"))
    size = (tmp_path / "model.data").stat().st_size // 1024
    if mapped is None:
        pytest.skip("this ONNX Runtime does not map external data")
    assert size > 8000 and mapped < size // 4
    x = np.ones((1, 1, 2048), np.float32)
    assert error(session.run(None, {"X": x})[0], expected(x, weight)) < ROUNDING


def resident_bytes():
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def resident_kilobytes(path):
    """Resident memory of this process's mappings of a file; None where there are none."""
    total, inside, found = 0, False, False
    with Path("/proc/self/smaps").open() as lines:
        for line in lines:
            fields = line.split()
            if "-" in fields[0]:
                inside = line.rstrip().endswith(path)
                found |= inside
            elif inside and fields[0] == "Rss:":
                total += int(fields[1])
    return total if found else None
