"""The kernels compiled ahead of time, with no GPU: PTX and cubins, registers, spills and shared memory.

`python -m hebbline.kernels.gpu.compile` compiles every kernel for every architecture and prints a table; `--json`
prints the figures, `--out DIR` writes the cubins.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .launch import PHASES, launch_plan
from .packing import TENSOR_TYPES

ARCHITECTURES = (80, 90, 120)
VALUE_TYPES = {"float16": "fp16", "bfloat16": "bf16"}
_ALIGNMENT = 16
_FIRST_BLACKWELL = 100
_USAGE = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel for one architecture: form and phase, its name in the code, launch width, what it takes of a
    multiprocessor, and the code."""

    name: str
    entry: str
    architecture: int
    value_type: str
    warps: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    target: str
    ptx: str = field(repr=False)
    cubin: bytes = field(repr=False)

    def figures(self) -> dict[str, Any]:
        """Everything but the code."""
        return {name: value for name, value in asdict(self).items() if name not in ("ptx", "cubin")} | {
            "cubin_bytes": len(self.cubin)
        }


def compile_kernel(
    form: str,
    phase: str,
    value_type: str,
    architecture: int,
    *,
    wide_columns: bool = False,
    block_size: int = 32,
    in_features: int = _ALIGNMENT,
) -> CompiledKernel:
    """Compile the kernel that `launch` would take.

    Args:
        form: of `packing`. phase: of `launch.PHASES`. value_type: "float16" or "bfloat16". architecture: 80 for
        compute capability 8.0. wide_columns: CSR columns are int32. block_size: of the block form. in_features: where
        it is a multiple of 16 the code reads rows of X in vectors, and takes no other.

    Raises:
        RuntimeError: this process runs Triton's interpreter, which compiles nothing.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: unset it to compile")
    from . import linear_kernels

    plan = launch_plan(form, phase, block_size)
    kernel = getattr(linear_kernels, plan.kernel)
    types = _signature(kernel.arg_names, form, VALUE_TYPES[value_type], list(plan.constants), wide_columns)
    aligned = {
        (index,): [["tt.divisibility", _ALIGNMENT]]
        for index, name in enumerate(kernel.arg_names)
        if types[name].startswith("*") or (name == "K" and in_features % _ALIGNMENT == 0)
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=dict(plan.constants), attrs=aligned)
    target = GPUTarget("cuda", architecture, 32)
    built = triton.compile(source, target=target, options={"num_warps": plan.warps})
    registers, spilled = _resources(built.asm["ptx"], architecture)
    return CompiledKernel(
        name=f"{form}_{phase}",
        entry=built.metadata.name,
        architecture=architecture,
        value_type=value_type,
        warps=plan.warps,
        registers=registers,
        spilled_bytes=spilled,
        shared_bytes=built.metadata.shared,
        target=_target(built.asm["ptx"]),
        ptx=built.asm["ptx"],
        cubin=built.asm["cubin"],
    )


def compile_all(value_types: tuple[str, ...] = tuple(VALUE_TYPES)) -> Iterator[CompiledKernel]:
    """Every form and phase for every architecture."""
    for architecture in ARCHITECTURES:
        for value_type in value_types:
            for form in TENSOR_TYPES:
                for phase in PHASES[form]:
                    yield compile_kernel(form, phase, value_type, architecture)


def _signature(
    names: list[str], form: str, value_type: str, constants: list[str], wide_columns: bool
) -> dict[str, str]:
    """Argument types: X and the form's tensors, the sizes, Y, then compile-time constants."""
    tensors = ["value", *TENSOR_TYPES[form]]
    kinds = [value_type if kind == "value" else kind for kind in tensors]
    pointers = ["*" + ("i32" if kind == "u16" and wide_columns else kind) for kind in kinds]
    types = dict(zip(names, [*pointers, "i32", "i32", "i32", f"*{value_type}"], strict=False))
    return types | dict.fromkeys(constants, "constexpr")


def _resources(ptx: str, architecture: int) -> tuple[int, int]:
    """Registers a thread, and bytes spilled by it, as NVIDIA's assembler reports them."""
    import triton

    tools = triton.knobs.nvidia
    assembler = (tools.ptxas_blackwell if architecture >= _FIRST_BLACKWELL else tools.ptxas).path
    with tempfile.TemporaryDirectory(prefix="hebbline-ptx-") as directory:
        file = Path(directory) / "kernel.ptx"
        file.write_text(ptx)
        command = [assembler, "-v", "--gpu-name", _target(ptx), str(file), "-o", str(file.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spills = _USAGE.search(said), _SPILLS.search(said)
    if registers is None or spills is None:
        raise RuntimeError(f"the assembler's report cannot be read: {said}")
    return int(registers[1]), int(spills[1]) + int(spills[2])


def _target(ptx: str) -> str:
    """The architecture that the PTX names, such as sm_90a."""
    line = next(line for line in ptx.splitlines() if line.startswith(".target"))
    return line.split()[1].rstrip(",")


def main(arguments: list[str]) -> None:
    """Compile all kernels and say what they take."""
    parser = argparse.ArgumentParser(prog="python -m hebbline.kernels.gpu.compile", description=main.__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--out", type=Path, help="write the cubins into this directory")
    parser.add_argument("--values", choices=list(VALUE_TYPES), help="of one value type only")
    options = parser.parse_args(arguments)
    kernels = list(compile_all((options.values,) if options.values else tuple(VALUE_TYPES)))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        for kernel in kernels:
            (options.out / f"{kernel.name}-{kernel.value_type}-{kernel.target}.cubin").write_bytes(kernel.cubin)
    print(json.dumps([kernel.figures() for kernel in kernels], indent=2) if options.json else resource_table(kernels))


def resource_table(kernels: list[CompiledKernel]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| kernel | values | target | warps | registers | spilled bytes | shared bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {k.name} | {k.value_type} | {k.target} | {k.warps} | {k.registers} | {k.spilled_bytes} | {k.shared_bytes} |"
        for k in kernels
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
