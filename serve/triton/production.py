"""The command that serves a filled repository in NVIDIA's container: closed but for inference, with all it needs."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ... import __version__
from ...artifacts import InputError
from ...runtime.engines import ENGINES_FILE, EngineFacts
from .process import HOST, Ports, models_at_start, server_flags

IMAGE = "nvcr.io/nvidia/tritonserver"
CPU_TAG = "24.10-py3"
"""The first with the Triton version that is tested here; later ones have a newer Triton and Python."""
CUDA_12_TAG = "25.06-py3"
CUDA_13_TAG = "26.02-py3"
MOUNTED = "/models"
NUMPY = "numpy<2"
"""With a newer one the outputs of Triton 2.51 are empty; the wheels that are installed all take this one."""
_EVERYWHERE = "0.0.0.0"  # all that `docker run -p` forwards to; what it publishes is said there
_KEY = "key=$(cat /proc/sys/kernel/random/uuid)"


@dataclass(frozen=True)
class ProductionCommand:
    """A command for a shell, and in words the machine that it is for."""

    machine: str
    command: str


@dataclass(frozen=True)
class Runtime:
    """What runs an engine in a container: what pip installs, and the image with the CUDA that this needs."""

    requirement: str
    tag: str


def production_commands(
    repository: Path, engines: Sequence[EngineFacts], grpc_port: int = Ports.grpc, *, controlled: bool = False
) -> list[ProductionCommand]:
    """A command for each runtime that the engines need, as one container has one; without engines, one for the CPU.

    Args:
        repository: a repository that was filled with a copy of the artifact; hebbline's wheel must be put into it.
        engines: of the artifact.
        grpc_port: of the machine's loopback interface, where the gRPC service is published.
        controlled: whether the repository has a list of further models.

    Raises:
        InputError: no image is known for an engine's runtime.
    """
    if not engines:
        return [ProductionCommand("with Docker", _docker_run(repository, grpc_port, CPU_TAG, controlled=controlled))]
    generations: dict[Runtime, list[str]] = {}
    for engine in engines:
        generations.setdefault(engine_runtime(engine), []).extend(engine.compute_capabilities)
    return [
        ProductionCommand(
            f"with Docker, NVIDIA's container toolkit, and a GPU of compute capability {', '.join(capabilities)}",
            _docker_run(repository, grpc_port, runtime.tag, runtime.requirement, controlled=controlled),
        )
        for runtime, capabilities in generations.items()
    ]


def engine_runtime(engine: EngineFacts) -> Runtime:
    """The runtime of an engine, in the very version that built it; InputError where no image is known for it."""
    major = engine.version.partition(".")[0]
    if engine.runtime == "tensorrt-rtx":
        return Runtime(f"tensorrt-rtx-cu13=={engine.version}", CUDA_13_TAG)
    if engine.runtime == "tensorrt" and major == "10":
        return Runtime(f"tensorrt-cu12=={engine.version}", CUDA_12_TAG)
    if engine.runtime == "tensorrt" and major == "11":
        return Runtime(f"tensorrt-cu13=={engine.version}", CUDA_13_TAG)
    raise InputError(
        f"{ENGINES_FILE}: {engine.file} is of {engine.runtime} {engine.version}, for which no container is known: "
        f"build it with tensorrt-rtx, or with tensorrt 10 or 11"
    )


def _docker_run(repository: Path, grpc_port: int, tag: str, requirement: str | None = None, *, controlled: bool) -> str:
    arguments = ["docker", "run", "--rm", *(["--gpus", "all"] if requirement else []), "--shm-size=1g"]
    arguments += ["-p", f"{HOST}:{grpc_port}:{Ports.grpc}", "-v", f"{repository.absolute()}:{MOUNTED}:ro"]
    return shlex.join([*arguments, f"{IMAGE}:{tag}", "sh", "-c", _script(requirement, controlled)])


def _script(requirement: str | None, controlled: bool) -> str:
    """What the container runs. The key is made there, and where it cannot be, nothing starts."""
    requirements = [f'"{NUMPY}"', *([shlex.quote(requirement)] if requirement else [])]
    models = models_at_start(controlled)
    flags = server_flags(MOUNTED, Ports(), "$key", grpc_address=_EVERYWHERE, models=models)
    lines = [
        f"{_KEY} &&",
        f"pip install {MOUNTED}/hebbline-{__version__}-*.whl {' '.join(requirements)} &&",
        # Without exec the shell would get Docker's signals, and the server would be killed with requests open.
        " \\\n    ".join(["exec tritonserver", *flags]),
    ]
    return "\n  ".join(lines)
