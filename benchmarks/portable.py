"""What it costs to load a packed file without the op library: `python -m hebbline.benchmarks.portable [--json]`.

Stacks of linear layers with random links are written once for each layout and once dense. Each file is loaded by plain
ONNX Runtime in a process of its own, on one thread, a few times in turns with the dense one; the medians count. Memory
is the most that the process had, over what it had before. Time is the processor's, which is the same as that of a clock
where nothing else runs, and tells more where something does.

Legend: N out_features, K in_features.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..artifacts import CheckError, HebblineError, InputError
from ..console import Parser, fail, print_json
from ..export.foreign.packed_weight import Target, pack_weight
from ..export.layouts import DOMAIN, DOMAIN_VERSION, IR_VERSION, LAYOUTS, NM24_LAYOUTS, OPSET, Layout
from .builds import SIZES

ALL_LAYOUTS: dict[str, Layout] = {**LAYOUTS, **NM24_LAYOUTS}
_DENSITIES = {"csr": 0.05}
_DENSITY = 0.3
_BLOCK = 16
_LOAD = """
import sys, time, onnxruntime
def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
before, started = kilobytes("VmRSS"), time.process_time()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print(time.process_time() - started, 1024 * (kilobytes("VmHWM") - before))
"""


@dataclass(frozen=True)
class LoadRow:
    """Loading one file: megabytes (10^6) and seconds of processor time.

    Both also as multiples of the dense file's in the same rounds.
    """

    stack: str
    layout: str
    density: float
    megabytes: float
    memory_ratio: float
    seconds: float
    time_ratio: float


def stack_shapes(name: str) -> list[tuple[int, int]]:
    """The shapes (N, K) of "NxK", one layer, or of all projections of a named model.

    Raises:
        InputError: `name` is neither.
    """
    if name in SIZES:
        return _projections(SIZES[name])
    sizes = name.split("x")
    if len(sizes) != 2 or not all(size.isdigit() and int(size) for size in sizes):
        raise InputError(f"--stacks: '{name}' is neither a shape as 4096x4096 nor one of {', '.join(SIZES)}")
    return [(int(sizes[0]), int(sizes[1]))]


def _projections(size: dict[str, int]) -> list[tuple[int, int]]:
    hidden, inner = size["hidden_size"], size["intermediate_size"]
    heads = size["num_attention_heads"]
    keys = hidden // heads * size.get("num_key_value_heads", heads)
    attention = [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden)]
    return [*attention, (inner, hidden), (inner, hidden), (hidden, inner)] * size["num_hidden_layers"]


def run_portable(stacks: Sequence[str], layouts: Sequence[str], rounds: int) -> Iterator[LoadRow]:
    """Rows as they are measured.

    Raises:
        InputError: a stack or a layout is not known.
        CheckError: ONNX Runtime does not load a file.
    """
    for name in layouts:
        if name not in ALL_LAYOUTS:
            raise InputError(f"--layouts: '{name}' is none of {', '.join(ALL_LAYOUTS)}")
    for stack in stacks:
        shapes = stack_shapes(stack)
        with tempfile.TemporaryDirectory() as folder:
            dense = _save(_stack(shapes, None, _DENSITY), Path(folder, "dense"))
            for name in layouts:
                density = _DENSITIES.get(name.split("-")[0], _DENSITY)
                packed = _save(_stack(shapes, ALL_LAYOUTS[name], density), Path(folder, name))
                yield _row(stack, name, density, [(_load(dense), _load(packed)) for _ in range(rounds)])


Loaded = tuple[float, int]
"""Seconds of processor time, and bytes."""


def _row(stack: str, layout: str, density: float, pairs: Sequence[tuple[Loaded, Loaded]]) -> LoadRow:
    (dense_seconds, seconds), (dense_bytes, size) = (
        [statistics.median(pair[which][part] for pair in pairs) for which in (0, 1)] for part in (0, 1)
    )
    return LoadRow(stack, layout, density, size / 1e6, size / dense_bytes, seconds, seconds / dense_seconds)


def _load(path: Path) -> Loaded:
    result = subprocess.run([sys.executable, "-c", _LOAD, str(path)], capture_output=True, text=True)
    if result.returncode:
        raise CheckError(f"ONNX Runtime does not load {path.parent.name}: {result.stderr.strip().splitlines()[-1:]}")
    seconds, size = result.stdout.split()
    return float(seconds), int(size)


def _save(model: onnx.ModelProto, folder: Path) -> Path:
    folder.mkdir()
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="model.data")
    return folder / "model.onnx"


def _stack(shapes: Sequence[tuple[int, int]], layout: Layout | None, density: float) -> onnx.ModelProto:
    """Layers side by side, each with an output of its own; dense where there is no layout."""
    nodes, tensors, functions, outputs = [], [], {}, []
    for number, shape in enumerate(shapes):
        weight_NK, mask_NK = _weight(shape, layout, density, number)
        x, y, name = f"X{shape[1]}", f"Y{number}", f"w{number}"
        outputs.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, ["T", shape[0]]))
        if layout is None:
            tensors.append(numpy_helper.from_array(weight_NK, name))
            nodes.append(helper.make_node("Gemm", [x, name], [y], transB=1))
            continue
        packed = pack_weight(name, name, layout, weight_NK, mask_NK, Target(OPSET))
        parts = packed.encode()
        tensors += [numpy_helper.from_array(array, f"{name}.{part}") for part, array in parts.items()]
        inputs = [x, *(f"{name}.{part}" for part in parts), ""]
        nodes.append(helper.make_node(packed.op_type, inputs, [y], domain=DOMAIN, in_features=shape[1]))
        functions[packed.op_type] = packed.function
    columns = sorted({shape[1] for shape in shapes})
    inputs_ = [helper.make_tensor_value_info(f"X{count}", TensorProto.FLOAT, ["T", count]) for count in columns]
    graph = helper.make_graph(nodes, "stack", inputs_, outputs, tensors)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, functions=list(functions.values()))


def _weight(
    shape: tuple[int, int], layout: Layout | None, density: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Random weights on a mask that the layout holds: whole blocks, at most two links of four, or links anywhere."""
    rng, (rows, columns) = np.random.default_rng(seed), shape
    structure = layout.name.split("-")[0] if layout else ""
    if structure == "block":
        coarse = rng.random((-(-rows // _BLOCK), -(-columns // _BLOCK))) < density
        mask_NK = np.kron(coarse, np.ones((_BLOCK, _BLOCK), bool))[:rows, :columns].astype(bool)
    elif structure == "nm24":
        order = rng.random((rows, -(-columns // 4), 4)).argsort(axis=2)
        mask_NK = ((order < 2) & (rng.random(order.shape) < 2 * density)).reshape(rows, -1)[:, :columns]
    else:
        mask_NK = rng.random(shape) < density
    return np.where(mask_NK, rng.standard_normal(shape, np.float32), np.float32(0)), mask_NK


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table, or with `--json` one document."""
    parser = Parser(prog="python -m hebbline.benchmarks.portable", description=__doc__.split("\n\n")[0])
    parser.add_argument("--stacks", default="4096x4096,smollm2-135m", help="shapes NxK, or names of models")
    parser.add_argument("--layouts", default=",".join(ALL_LAYOUTS), help="layouts with their values")
    parser.add_argument("--rounds", type=int, default=3, help="times that each file is loaded")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    rows = run_portable(options.stacks.split(","), options.layouts.split(","), max(1, options.rounds))
    try:
        if options.json:
            print_json({"rows": [asdict(row) for row in rows]})
        else:
            _print_table(rows)
    except HebblineError as error:
        return fail(str(error), error.exit_code)
    return 0


def _print_table(rows: Iterator[LoadRow]) -> None:
    print(f"{'stack':14} {'layout':17} {'density':>7} {'MB':>8} {'x dense':>8} {'seconds':>8} {'x dense':>8}")
    for row in rows:
        sizes = f"{row.megabytes:8.0f} {row.memory_ratio:8.2f} {row.seconds:8.2f} {row.time_ratio:8.1f}"
        print(f"{row.stack:14} {row.layout:17} {row.density:7g} {sizes}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
