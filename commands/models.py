"""`hebbline models list|load|unload REPOSITORY`: the further models of a server, while it serves."""

from pathlib import Path
from typing import Any

from ..artifacts import CheckError, InputError
from ..console import Parser, console
from .connection_options import add_connection_options, connect

WAIT_SECONDS = 300.0


def main(arguments: list[str]) -> int:
    """Say which models are to be loaded; the server of the repository follows within a second."""
    values = _parser().parse_args(arguments)
    from ..serve.triton.wanted import read_wanted

    names = read_wanted(values.repository)
    if names is None:
        raise InputError(f"{values.repository} has no list of models: fill it by `hebbline serve … --model-control`")
    if values.action == "list":
        for name in names:
            print(name)
        return 0
    if values.name is None:
        raise InputError(f"--name is needed to {values.action} a model")
    if values.action == "load":
        _load(values, names)
    else:
        _unload(values, names)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="hebbline models", description="Load and unload models of a server while others serve.")
    parser.add_argument("action", choices=["list", "load", "unload"], help="what to do")
    parser.add_argument("repository", type=Path, help="as given to `hebbline serve --repository`")
    parser.add_argument("--name", type=str, default=None, help="of the model: to load or unload")
    parser.add_argument("--artifact", type=Path, default=None, help="put this into the repository as the model first")
    parser.add_argument("--copy", action="store_true", help="copy the artifact into the repository, not link it")
    add_connection_options(parser, default_url=None)
    return parser


def _load(values: Any, names: tuple[str, ...]) -> None:
    from ..serve.triton.repository import add_model, repository_settings
    from ..serve.triton.wanted import check_name, write_wanted

    name = check_name(values.name)
    if values.artifact is not None:
        if name in names:
            raise InputError(f"the model '{name}' is loaded: unload it first, or give the artifact another name")
        add_model(values.artifact, values.repository, name, repository_settings(values.repository), copy=values.copy)
    elif not (values.repository / name).is_dir():
        raise InputError(f"{values.repository} has no model '{name}': give --artifact as well")
    version = write_wanted(values.repository, dict.fromkeys((*names, name)))
    if values.url is not None:
        _wait_loaded(values, name, version)
        console.print(f"the model '{name}' is loaded")


def _wait_loaded(values: Any, name: str, version: int) -> None:
    """Wait for the server. A model that cannot be loaded is taken off the list again."""
    from ..serve.triton.wanted import read_wanted, write_wanted

    try:
        with connect(values, model=name) as client:
            client.wait_loaded(version, WAIT_SECONDS)
    except CheckError:
        listed = read_wanted(values.repository) or ()
        write_wanted(values.repository, (other for other in listed if other != name))
        raise


def _unload(values: Any, names: tuple[str, ...]) -> None:
    from ..serve.triton.wanted import write_wanted

    if values.name not in names:
        raise InputError(f"the model '{values.name}' is not among those to be loaded: {', '.join(names) or 'none'}")
    version = write_wanted(values.repository, (name for name in names if name != values.name))
    if values.url is not None:
        with connect(values, model=values.name) as client:
            client.wait_loaded(version, WAIT_SECONDS)
        console.print(f"the model '{values.name}' takes no more requests; those that it has are finished")
