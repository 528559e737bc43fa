"""A model repository for one artifact: the shipped template, filled and checked before a server sees it.

Triton waits for ever for a model without `model.py`, and ends with a malformed configuration; so both are checked here.
"""

import shutil
import tempfile
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ...artifacts import InputError, LanguageModelFacts
from ..engine.engines import read_engines
from ..engine.onnxruntime import language_model_facts
from ..tokenizer import load_tokenizer
from .settings import BATCHED_NAME, MODEL_NAME, Settings

TEMPLATE = Path(__file__).resolve().parents[2] / "model_repository"
CONFIG_FILE = "config.pbtxt"
VERSION = "1"
ARTIFACT = "artifact"


def fill_repository(artifact: Path, repository: Path, settings: Settings, *, copy: bool = False) -> LanguageModelFacts:
    """Put the template, the artifact and the settings into `repository` as its model `llm`, and `ensemble` before it.

    Other models in the repository stay as they are; those two are replaced where hebbline put them there.

    Args:
        artifact: a published directory of kind "onnx"; every file is verified.
        repository: made where it does not exist.
        settings: the parameters of `config.pbtxt`.
        copy: copy the artifact instead of linking it, for a directory that is used on another machine. Where the
        artifact has engines, the model is then of KIND_GPU.

    Raises:
        InputError: the artifact is damaged or of another kind, or a model of the repository has one of the two names.
    """
    facts = language_model_facts(artifact)
    load_tokenizer(artifact)
    targets = [repository.absolute() / name for name in (MODEL_NAME, BATCHED_NAME)]
    for target in targets:
        _check_replaceable(target)
    repository.mkdir(parents=True, exist_ok=True)
    # Staged beside the repository: within it, a server would take the directory for a model.
    staging = Path(tempfile.mkdtemp(prefix=f".{repository.name}.", dir=repository.absolute().parent))
    try:
        model = staging / MODEL_NAME
        _fill_model(model, artifact.resolve(), settings, copy)
        check_model(model)
        _fill_batched(staging / BATCHED_NAME)
        for target in targets:
            _replace(staging / target.name, target)
    finally:
        shutil.rmtree(staging)
    return facts


def check_model(model: Path) -> model_config_pb2.ModelConfig:
    """Check a model's directory for everything that loading needs; returns its configuration.

    Raises:
        InputError: a file is missing, or the configuration is malformed, of another name, or has a wrong parameter.
    """
    for path in (model / CONFIG_FILE, model / VERSION / "model.py"):
        if not path.is_file():
            raise InputError(f"{path} is missing")
    config = _read_config(model / CONFIG_FILE)
    if config.name != model.name or config.backend != "python":
        raise InputError(f"{model / CONFIG_FILE} is of a model '{config.name}' for the backend '{config.backend}'")
    entries = {name: {"string_value": entry.string_value} for name, entry in config.parameters.items()}
    Settings.from_config({"parameters": entries})
    language_model_facts(model / VERSION / ARTIFACT)
    return config


def _fill_model(model: Path, artifact: Path, settings: Settings, copy: bool) -> None:
    shutil.copytree(TEMPLATE / MODEL_NAME, model, ignore=shutil.ignore_patterns("__pycache__", ARTIFACT))
    destination = model / VERSION / ARTIFACT
    if copy:
        shutil.copytree(artifact, destination)
        _make_readable(model)
    else:
        destination.symlink_to(artifact, target_is_directory=True)
    config = _read_config(model / CONFIG_FILE)
    for name, value in settings.as_parameters().items():
        config.parameters[name].string_value = value
    # An artifact with engines goes to a machine with a GPU; here Triton would not load a model that asks for one.
    kinds = model_config_pb2.ModelInstanceGroup
    for group in config.instance_group:
        group.kind = kinds.KIND_GPU if copy and read_engines(artifact) else kinds.KIND_CPU
    (model / CONFIG_FILE).write_text(text_format.MessageToString(config))


def _fill_batched(model: Path) -> None:
    shutil.copytree(TEMPLATE / BATCHED_NAME, model)
    (model / VERSION).mkdir(exist_ok=True)  # Triton asks for a version, though there is nothing in it
    _make_readable(model)


def _make_readable(directory: Path) -> None:
    """Let every user read: a container runs the server under a user of its own."""
    for path in (directory, *directory.rglob("*")):
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o644))


def _read_config(path: Path) -> model_config_pb2.ModelConfig:
    try:
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise InputError(f"{path}: malformed model configuration: {error}") from error


def _check_replaceable(target: Path) -> None:
    texts = [
        path.read_text(errors="replace")
        for path in (target / VERSION / "model.py", target / CONFIG_FILE)
        if path.is_file()
    ]
    if target.exists() and not any("hebbline" in text for text in texts):
        raise InputError(f"{target} exists and is not a model of hebbline's; choose another repository")


def _replace(model: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    model.rename(target)
