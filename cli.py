"""The command table: each command is a module with `main(arguments) -> exit code`."""

import errno
import os
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
    "models": ("models", "load and unload further models of a server while others serve"),
    "gateway": ("gateway", "OpenAI's HTTP API, metrics and a web page in front of a served model"),
    "keys": ("keys", "the API keys of a gateway"),
    "chat": ("chat", "talk with a served model in the terminal"),
    "query": ("query", "stream a completion from a served model"),
    "eval": ("evaluate", "perplexity of a model, an artifact or a grpc:// URL"),
    "inspect": ("inspect", "layers, densities, layouts and digests of a model or artifact"),
    "bench": ("bench", "the speed of sparse layers on this machine, dense ones beside them"),
    "gpu-check": ("gpu_check", "engines and kernels on this machine's NVIDIA GPU: run, compared, timed"),
    "demo": ("demo", "every stage, from training to a served answer, on real text, in minutes"),
}

_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a machine refuses for want of room or of rights."""
BROKEN_PIPE = 141
"""The exit code of a program that SIGPIPE ends, in a shell."""


def usage() -> str:
    """The help text: one line a command."""
    rows = "\n".join(f"  {name:<11}{help_line}" for name, (_, help_line) in COMMANDS.items())
    return f"usage: hebbline COMMAND [options]\n\n{rows}\n\n`hebbline COMMAND --help` lists a command's options."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0 (done), 1 (a check failed), 2 (bad input), 130 (interrupted) or 141 (output unread)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        return fail(f"there is no command '{name}'; the commands are {', '.join(COMMANDS)}", exit_code=2)
    try:
        code = import_module(f".commands.{COMMANDS[name][0]}", __package__).main(rest)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read the output has gone, as `head` does: that is no error of ours, and nothing can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror), exit_code=2)
    except HebblineError as error:
        return fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "hebbline":
            raise
        return fail(f"'{name}' needs the package '{error.name}': pip install 'hebbline[all]'", exit_code=2)
    except KeyboardInterrupt:
        return fail("interrupted", exit_code=130)
