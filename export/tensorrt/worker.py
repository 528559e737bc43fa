"""The process that builds one engine: this file is run as a script, with the request's path as its last argument.

NVIDIA's parser and builder can abort the process that they run in, and a build can take hours; so they run here, and
`build` starts, limits and reads this process. It imports nothing of ours but plugins that are asked for, to be
up in no time. The request and the result are JSON files; the builder's log is written line by line, so that what was
said before an abort is kept.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

REFUSED = "refused"
FAILED = "failed"
BUILT = "built"


def main(request_file: Path) -> None:
    """Build what the request describes (see `build.EngineRequest`), and write its result beside it."""
    request = json.loads(request_file.read_text())
    trt = importlib.import_module(request["module"])
    with Path(request["log"]).open("w", buffering=1) as log:
        result = _build(trt, request, log)
    Path(request["result"]).write_text(json.dumps(result | {"version": trt.__version__}))


def _build(trt: Any, request: dict[str, Any], log: TextIO) -> dict[str, Any]:
    logger = _make_logger(trt, log)
    if request["plugins"]:
        _register_plugins(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["onnx"]):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        return {"outcome": REFUSED, "errors": [_parser_error(error) for error in errors]}
    config = builder.create_builder_config()
    _set_targets(trt, config, request["compute_capabilities"])
    _set_options(trt, config, request)
    for shapes in request["profiles"]:
        config.add_optimization_profile(_profile(builder, shapes))
    started = time.monotonic()
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return {"outcome": FAILED}
    Path(request["engine"]).write_bytes(memoryview(engine))
    _save_timing_cache(config, request["timing_cache"])
    return {"outcome": BUILT, "network_layers": network.num_layers, "seconds": time.monotonic() - started}


def _make_logger(trt: Any, log: TextIO) -> Any:
    class FileLogger(trt.ILogger):
        """Every message, one line each, with its severity."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.write(f"[{severity.name[0]}] {' '.join(message.splitlines())}\n")

    return FileLogger()


def _register_plugins(trt: Any) -> None:
    plugins = importlib.import_module("hebbline.kernels.gpu.plugins")
    plugins.register_plugins(importlib.import_module(f"{trt.__name__}.plugin"), trt)


def _network_flags(trt: Any) -> int:
    """Strongly typed: the types in the file are those of the engine. From TensorRT 11 on there is no other kind.

    Plugins are to be compiled into the engine, not called back in Python.
    """
    wanted = ("STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS")
    flags = [getattr(trt.NetworkDefinitionCreationFlag, name, None) for name in wanted]
    return sum(1 << int(flag) for flag in flags if flag is not None)


def _parser_error(error: Any) -> dict[str, str]:
    return {
        "node": error.node_name(),
        "operator": error.node_operator(),
        "description": error.desc(),
        "code": error.code().name,
    }


def _set_targets(trt: Any, config: Any, capabilities: list[str]) -> None:
    """The GPU generations to build for; with none the builder builds for the GPU that it finds."""
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + capability.replace(".", "")), index)


def _set_options(trt: Any, config: Any, request: dict[str, Any]) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request["sparse_weights"]:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if request["timing_cache"] is not None:
        path = Path(request["timing_cache"])
        known = path.read_bytes() if path.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
            raise ValueError(f"{path} is a timing cache of another GPU or TensorRT version")


def _profile(builder: Any, shapes: dict[str, list[list[int]]]) -> Any:
    profile = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in shapes.items():
        profile.set_shape(name, tuple(smallest), tuple(usual), tuple(largest))
    return profile


def _save_timing_cache(config: Any, path: str | None) -> None:
    """Keep what was timed: the next build of the same layers on this GPU starts from it."""
    if path is not None and (cache := config.get_timing_cache()) is not None:
        Path(path).write_bytes(memoryview(cache.serialize()))


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
