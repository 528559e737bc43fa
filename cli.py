"""The command table: each command is a module with `main(arguments) -> exit code`."""

import sys
from collections.abc import Sequence
from importlib import import_module

from .artifacts.errors import HebblineError
from .console import fail

COMMANDS = {
    "train": ("train", "train a sparse model from a recipe"),
    "prune": ("prune", "make a pretrained model sparse on a calibration text"),
    "export": ("export", "turn a trained model into a sparse ONNX artifact"),
    "pack": ("pack", "pack the zeros of any ONNX file"),
    "serve": ("serve", "serve an artifact over gRPC with Triton Inference Server"),
    "query": ("query", "stream a completion from a served model"),
    "eval": ("evaluate", "perplexity of a model, an artifact or a grpc:// URL"),
    "inspect": ("inspect", "layers, densities, layouts and digests of a model or artifact"),
    "bench": ("bench", "the speed of sparse layers on this machine, dense ones beside them"),
    "gpu-check": ("gpu_check", "engines and kernels on this machine's NVIDIA GPU: run, compared, timed"),
    "demo": ("demo", "the whole road on real text, in minutes, on a CPU"),
}


def usage() -> str:
    """The help text: one line a command."""
    rows = "\n".join(f"  {name:<11}{help_line}" for name, (_, help_line) in COMMANDS.items())
    return f"usage: hebbline COMMAND [options]\n\n{rows}\n\n`hebbline COMMAND --help` lists a command's options."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0 (done), 1 (a check failed), 2 (bad input) or 130 (interrupted)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        return fail(f"there is no command '{name}'; the commands are {', '.join(COMMANDS)}", exit_code=2)
    try:
        return import_module(f".commands.{COMMANDS[name][0]}", __package__).main(rest)
    except HebblineError as error:
        return fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "hebbline":
            raise
        return fail(f"'{name}' needs the package '{error.name}': pip install 'hebbline[all]'", exit_code=2)
    except KeyboardInterrupt:
        return fail("interrupted", exit_code=130)
