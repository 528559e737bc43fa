"""The kernels as TensorRT plugins, compiled ahead of time: `hebbline::bitmask_linear` and so on, as in `ops`.

An engine built with them holds the kernels' PTX, and needs neither Python nor this package to run. Each plugin offers
the kernels of its form as tactics; TensorRT times them all for every optimization profile and keeps the
faster. (Registration, descriptions and launch parameters are tested against the plugin registry of TensorRT's lean
runtime. No engine with plugins was built or run where this was written, which takes a GPU.)

TensorRT has no unsigned or 16 bit wide integers, so integer tensors are passed as int32 words that hold the same bytes.
"""

import inspect
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compile import compile_kernel
from .launch import PHASES, LaunchPlan, launch_plan
from .packing import TENSOR_TYPES, GpuWeight

NAMESPACE = "hebbline"
PTX_ARCHITECTURE = 80
"""The driver translates PTX of compute capability 8.0 for every later GPU."""
_TYPES = {"value": "FP16|BF16", "fp32": "FP32"}
"""TensorRT's names of element types; every other kind is passed as words."""
_ATTRIBUTES = ("in_features", "out_features", "block_size")


def plugin_name(form: str) -> str:
    """The plugin's name for a form of `packing`, without the namespace."""
    return f"{form}_linear"


def plugin_tensors(weight: GpuWeight) -> dict[str, NDArray]:
    """The tensors of a packed weight as a plugin takes them: numbers as they are, integers as int32 words."""
    kinds = TENSOR_TYPES[weight.form]
    return {
        name: array if kind in _TYPES else as_words(array)
        for kind, (name, array) in zip(kinds, weight.tensors.items(), strict=True)
    }


def as_words(array: NDArray) -> NDArray[np.int32]:
    """The bytes of an array in row-major order, padded with zeros to whole int32 words; at least one word."""
    content = np.ascontiguousarray(array).tobytes()
    return np.frombuffer(content + b"\0" * (-len(content) % 4 or (0 if content else 4)), np.int32)


def register_plugins(plugin_module: Any, data_types: Any) -> list[str]:
    """Register all plugins; to be called once in a process, before an ONNX file with them is parsed.

    Args:
        plugin_module: `tensorrt.plugin`. data_types: `tensorrt`, for its data types.

    Returns:
        Their ids, such as "hebbline::csr_linear".
    """
    return [_register(plugin_module, data_types, form) for form in TENSOR_TYPES]


def _register(trtp: Any, trt: Any, form: str) -> str:
    """One plugin: its output's shape, the tactics, and their kernels."""
    identity = f"{NAMESPACE}::{plugin_name(form)}"
    tensors = [f"tensor_{index}" for index in range(len(TENSOR_TYPES[form]))]
    inputs = dict.fromkeys(["x", *tensors], trtp.TensorDesc)
    attributes = dict.fromkeys(_ATTRIBUTES, int)

    def describe(*descriptions: Any, **sizes: int) -> Any:
        output = descriptions[0].like()
        output.shape_expr[output.ndim - 1] = sizes["out_features"]
        return output

    def tactics(*arguments: Any) -> Any:
        kinds = [_TYPES.get(kind, "INT32") for kind in ("value", *TENSOR_TYPES[form], "value")]
        return [trtp.AutoTuneCombination(", ".join(kinds), "LINEAR", list(range(1, len(PHASES[form]) + 1)))]

    def kernel(x: Any, *arguments: Any) -> Any:
        in_features, out_features, block_size = arguments[len(tensors) : len(tensors) + len(_ATTRIBUTES)]
        value_type = "bfloat16" if x.dtype == trt.bfloat16 else "float16"
        phase = PHASES[form][arguments[-1] - 1]
        return _launch(trtp, form, phase, value_type, x, (in_features, out_features, block_size))

    outputs = {"outputs": tuple[trtp.TensorDesc], "tactic": int}
    _sign(describe, inputs | attributes, trtp.TensorDesc)
    _sign(tactics, inputs | attributes | {"outputs": outputs["outputs"]}, list[trtp.AutoTuneCombination])
    code = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]
    _sign(kernel, inputs | attributes | outputs, code)
    trtp.register(identity)(describe)
    trtp.autotune(identity)(tactics)
    trtp.aot_impl(identity)(kernel)
    return identity


def _sign(function: Any, parameters: dict[str, Any], result: Any) -> None:
    """Give a function the signature from which TensorRT reads a plugin's inputs and attributes."""
    places = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
        for name, kind in parameters.items()
    ]
    function.__signature__ = inspect.Signature(places, return_annotation=result)


def _launch(
    trtp: Any, form: str, phase: str, value_type: str, x: Any, sizes: tuple[int, int, int]
) -> tuple[str, str, Any, Any]:
    """Kernel name, PTX, launch parameters and the scalars T, N, K, whose first may be known at run time only."""
    in_features, out_features, block_size = sizes
    plan = launch_plan(form, phase, block_size or 32)
    built = compile_kernel(
        form, phase, value_type, PTX_ARCHITECTURE, block_size=block_size or 32, in_features=in_features
    )
    tokens = x.shape_expr.numel() // in_features
    launch = trtp.KernelLaunchParams()
    launch.grid_x, launch.grid_y = _grid(trtp, plan, tokens, out_features)
    launch.block_x = built.warps * 32
    launch.shared_mem = built.shared_bytes
    scalars = trtp.SymIntExprs(3)
    for place, size in enumerate((tokens, out_features, in_features)):
        scalars[place] = trtp.SymInt32(size)
    arguments = 1 + len(TENSOR_TYPES[form]) + 3 + 1
    return built.entry, without_scratch(built.ptx, arguments), launch, scalars


def _grid(trtp: Any, plan: LaunchPlan, tokens: Any, out_features: int) -> tuple[int, Any]:
    rows, _ = plan.grid(1, out_features)
    return rows, tokens if plan.tokens == 1 else trtp.cdiv(tokens, plan.tokens)


def without_scratch(ptx: str, arguments: int) -> str:
    """The PTX with `arguments` parameters: Triton appends pointers to scratch memory, which TensorRT would not pass.

    Raises:
        ValueError: the kernel uses its scratch memory, or has fewer parameters.
    """
    entry = re.search(r"\.entry\s+\w+\(\s*(.*?)\s*\)", ptx, re.DOTALL)
    parameters = [line.strip() for line in entry[1].split(",\n")] if entry else []
    if entry is None or len(parameters) < arguments:
        raise ValueError(f"the kernel has {len(parameters)} parameters, not {arguments}")
    for parameter in parameters[arguments:]:
        name = parameter.split()[-1]
        if len(re.findall(rf"\b{re.escape(name)}\b", ptx)) > 1:
            raise ValueError(f"the kernel uses its scratch memory, {name}")
    return ptx[: entry.start(1)] + ",\n\t".join(parameters[:arguments]) + ptx[entry.end(1) :]
