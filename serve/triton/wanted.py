"""The further models of a repository, beside `llm`: the list of those that are to be loaded, in a file of its own.

`hebbline serve` and `hebbline models` write it, the server's model-control and the gateway read it. Who can write into
the repository is the operator, so nothing of this can be reached by clients.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...artifacts import InputError
from .settings import BATCHED_NAME, CONTROL_NAME, LOADER_NAME, MODEL_NAME

WANTED_FILE = "models.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class WantedModels:
    """The list.

    Attributes:
        names: of the models that are to be loaded.
        version: one more with each time that the list is written, by which a server says which one it has followed.
    """

    names: tuple[str, ...]
    version: int


def parse_further(texts: Iterable[str]) -> dict[str, Path]:
    """Artifacts by names, from NAME=ARTIFACT or ARTIFACT, whose directory's name it has then.

    Raises:
        InputError: a name cannot be one, or two are the same.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        artifact = Path(path if equals and "/" not in name else text)
        name = check_name(name if equals and "/" not in name else artifact.resolve().name)
        if name in found:
            raise InputError(f"two models are named '{name}': give one another name (NAME=ARTIFACT)")
        found[name] = artifact
    return found


def check_name(name: str) -> str:
    """The name of a further model; InputError where it cannot be one."""
    if not _NAME.fullmatch(name):
        raise InputError(f"the model's name '{name[:80]}' must be up to 64 letters, digits, dots, dashes, underscores")
    if name in (MODEL_NAME, BATCHED_NAME, CONTROL_NAME, LOADER_NAME):
        raise InputError(f"the model's name '{name}' is taken: choose another one (NAME=ARTIFACT)")
    return name


def read_wanted(repository: Path) -> tuple[str, ...] | None:
    """The names of the further models that are to be loaded; None where the repository has no such list.

    Raises:
        InputError: the list is malformed.
    """
    listed = read_list(repository)
    return None if listed is None else listed.names


def read_list(repository: Path) -> WantedModels | None:
    """The list of the further models; None where the repository has none.

    Raises:
        InputError: it is malformed.
    """
    path = repository / WANTED_FILE
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the list of models cannot be read: {error}") from error
    names = content.get("models") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: the list of models is an object with 'models', a list of names")
    version = content.get("version", 0)
    if type(version) is not int:
        raise InputError(f"{path}: the 'version' of the list of models is not a whole number")
    return WantedModels(tuple(check_name(name) for name in names), version)


def cannot(what: str, name: str) -> str:
    """What the server's log says where a model cannot be loaded, or unloaded."""
    return f"cannot {what} the model '{name}'"


def write_wanted(repository: Path, names: Iterable[str]) -> int:
    """Replace the list as a whole; returns its version, which is one more than that of the list before."""
    path = repository / WANTED_FILE
    version = 1 + _version_before(repository)
    temporary = path.with_name(f".{WANTED_FILE}.{os.getpid()}")
    temporary.write_text(json.dumps({"models": [check_name(name) for name in names], "version": version}) + "\n")
    temporary.chmod(0o644)
    temporary.replace(path)
    return version


def _version_before(repository: Path) -> int:
    """Of the list that there is; 0 where there is none, or a malformed one, which is to be replaced."""
    try:
        listed = read_list(repository)
    except InputError:
        return 0
    return 0 if listed is None else listed.version
