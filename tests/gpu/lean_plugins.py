"""Run as a script: registers the plugins with TensorRT's lean runtime, whose registry is the real one, and prints what
is in it and what each plugin's kernel asks for.

The lean wheel carries the plugin package of TensorRT, which imports `tensorrt`; the full package is not installed here,
so the lean one takes its name, with the names filled in that only annotations use.
"""

# ruff: noqa: E402 - the packages below must find the name `tensorrt` taken.

import enum
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import tensorrt_lean

FORMATS = ["LINEAR", "CHW2", "HWC8", "CHW4", "CHW16", "CHW32", "DHWC8", "CDHW32", "HWC", "DLA_LINEAR", "DLA_HWC4"]
if not hasattr(tensorrt_lean, "TensorFormat"):
    tensorrt_lean.TensorFormat = enum.IntEnum("TensorFormat", {name: place for place, name in enumerate(FORMATS)})
for name in ("ITensor", "INetworkDefinition", "IPluginV3Layer"):
    if not hasattr(tensorrt_lean, name):
        setattr(tensorrt_lean, name, type(name, (), {}))
sys.modules["tensorrt"] = tensorrt_lean

import tensorrt_lean_bindings.plugin as trtp
from tensorrt_lean_bindings.plugin._lib import QDP_REGISTRY
from tensorrt_lean_bindings.plugin._tensor import ShapeExprs, SymIntExpr

from hebbline.kernels.gpu.packing import TENSOR_TYPES
from hebbline.kernels.gpu.plugins import register_plugins

TOKENS, IN_FEATURES, OUT_FEATURES, BLOCK = (2, 35), 70, 130, 32


class Numbers:
    """TensorRT's builder of shape expressions, on numbers."""

    def constant(self, value):
        return value

    def operation(self, kind, left, right):
        operations = {
            "SUM": left + right,
            "PROD": left * right,
            "SUB": left - right,
            "FLOOR_DIV": left // max(1, right),
            "CEIL_DIV": -(-left // max(1, right)),
        }
        return operations[kind.name]


def described(shape, kind):
    description = trtp.TensorDesc()
    description.dtype = kind
    description.shape_expr = ShapeExprs.from_tuple(shape)
    return description


def assemble(ptx):
    """Whether NVIDIA's assembler takes the PTX without its scratch parameters."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [triton.knobs.nvidia.ptxas.path, "--gpu-name", "sm_89", str(path), "-o", f"{path}.cubin"]
        return subprocess.run(command, capture_output=True).returncode == 0


def inspect_plugin(identity):
    definition = QDP_REGISTRY[identity]
    kinds = TENSOR_TYPES[identity.split("::")[1].removesuffix("_linear")]
    half, words = tensorrt_lean.float16, tensorrt_lean.int32
    types = {"value": half, "fp32": tensorrt_lean.float32}
    SymIntExpr._exprBuilder = Numbers()
    x = described((*TOKENS, IN_FEATURES), half)
    tensors = [described((100,), types.get(kind, words)) for kind in kinds]
    sizes = {"in_features": IN_FEATURES, "out_features": OUT_FEATURES, "block_size": BLOCK}
    output = definition.register_func(x, *tensors, **sizes)
    combination = definition.autotune_func(x, *tensors, *sizes.values(), (output,))[0]
    kernels = []
    for tactic in combination._tactics:
        name, ptx, launch, scalars = definition.aot_impl_func(x, *tensors, *sizes.values(), (output,), tactic)
        kernels.append(
            {
                "name": name,
                "entry": f".entry {name}(" in ptx,
                "parameters": ptx.split(".entry")[1].split(")")[0].count(".param"),
                "assembles": assemble(ptx),
                "grid": [launch.grid_x._expr, launch.grid_y._expr, launch.grid_z._expr],
                "threads": launch.block_x._expr,
                "shared": launch.shared_mem._expr,
                "scalars": [scalar._expr for scalar in scalars],
            }
        )
    return {
        "output": [size._expr for size in output.shape_expr],
        "types": len(list(combination._get_combinations())),
        "kernels": kernels,
    }


def main():
    identities = register_plugins(trtp, tensorrt_lean)
    creators = [
        (creator.name, creator.plugin_namespace, creator.plugin_version, [field.name for field in creator.field_names])
        for creator in tensorrt_lean.get_plugin_registry().all_creators
        if creator.plugin_namespace == "hebbline"
    ]
    plugins = {identity: inspect_plugin(identity) for identity in identities}
    print(json.dumps({"version": tensorrt_lean.__version__, "creators": creators, "plugins": plugins}))


if __name__ == "__main__":
    main()
