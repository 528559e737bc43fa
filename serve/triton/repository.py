"""A model repository for one artifact: the shipped template, filled and checked before a server sees it.

Triton waits for ever for a model without `model.py`, and ends with a malformed configuration; so both are checked here.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ...artifacts import InputError, LanguageModelFacts
from ...artifacts.manifest import MANIFEST_FILE
from ...runtime.engines import read_engines
from ...runtime.onnxruntime import language_model_facts
from ...runtime.tokenizer import load_tokenizer
from ..draft_model import check_draft
from .settings import BATCHED_NAME, CONTROL_NAME, DRAFT, LOADER_NAME, MODEL_NAME, Settings
from .wanted import WANTED_FILE, check_name, read_wanted, write_wanted

TEMPLATE = Path(__file__).resolve().parents[2] / "model_repository"
CONFIG_FILE = "config.pbtxt"
VERSION = "1"
ARTIFACT = "artifact"
LEAST_QUEUE = 32
"""Triton keeps so many requests at least until the model has taken them: a burst is not a flood."""


def fill_repository(
    artifact: Path,
    repository: Path,
    settings: Settings,
    *,
    copy: bool = False,
    further: Mapping[str, Path] | None = None,
    draft: Path | None = None,
) -> LanguageModelFacts:
    """Put the template, the artifact and the settings into `repository` as its model `llm`, and `ensemble` before it.

    Other models in the repository stay as they are; those two are replaced where hebbline put them there.

    Args:
        artifact: a published directory of kind "onnx"; every file is verified.
        repository: made where it does not exist.
        settings: the parameters of `config.pbtxt`.
        copy: copy the artifact instead of linking it, for a directory that is used on another machine. Where the
            artifact has engines, the model is then of KIND_GPU.
        further: artifacts of further models by their names, which may be none; the repository gets a list of them then,
            by which they can be loaded and unloaded while a server runs. None: `llm` is the only one.
        draft: an artifact that guesses tokens for `llm`; None: none does.

    Raises:
        InputError: an artifact is damaged or of another kind, the draft has another vocabulary, a name cannot be one,
            or a model of the repository that is none of hebbline's has one of the names.
    """
    facts = _checked_artifact(artifact)
    if draft is not None:
        check_draft(artifact, draft)
    makers: dict[str, Callable[[Path], None]] = {
        MODEL_NAME: lambda model: _fill_model(model, artifact, settings, copy, draft),
        BATCHED_NAME: _fill_batched,
    }
    if further is not None:
        makers |= dict.fromkeys((CONTROL_NAME, LOADER_NAME), _fill_control)
        makers |= {check_name(name): _model_maker(path, settings, copy) for name, path in further.items()}
    _put_models(repository, makers)
    if further is None:
        (repository / WANTED_FILE).unlink(missing_ok=True)
    else:
        write_wanted(repository, further)
    return facts


def further_models(repository: Path) -> dict[str, Path]:
    """The artifacts of the further models that a repository's list names; those that lack their files are left out."""
    found = {name: repository / name / VERSION / ARTIFACT for name in read_wanted(repository) or ()}
    return {name: artifact for name, artifact in found.items() if (artifact / MANIFEST_FILE).is_file()}


def repository_settings(repository: Path) -> Settings:
    """The settings of a filled repository's model `llm`; raises InputError where it has none, or malformed ones."""
    return _settings(_read_config(repository / MODEL_NAME / CONFIG_FILE))


def add_model(artifact: Path, repository: Path, name: str, settings: Settings, *, copy: bool = False) -> None:
    """Put an artifact into a filled repository as a further model; it is loaded once the list has its name.

    Raises:
        InputError: as `fill_repository`.
    """
    _put_models(repository, {check_name(name): _model_maker(artifact, settings, copy)})


def _model_maker(artifact: Path, settings: Settings, copy: bool) -> Callable[[Path], None]:
    """What fills the directory of a model; raises InputError where the artifact is none to serve."""
    _checked_artifact(artifact)
    return lambda model: _fill_model(model, artifact, settings, copy)


def _checked_artifact(artifact: Path) -> LanguageModelFacts:
    facts = language_model_facts(artifact)
    load_tokenizer(artifact)
    return facts


def _put_models(repository: Path, makers: Mapping[str, Callable[[Path], None]]) -> None:
    """Make the directories of models and put them into the repository: all, or where something is wrong none."""
    targets = [repository.absolute() / name for name in makers]
    for target in targets:
        _check_replaceable(target)
    repository.mkdir(parents=True, exist_ok=True)
    # Staged beside the repository: within it, a server would take the directory for a model.
    staging = Path(tempfile.mkdtemp(prefix=f".{repository.name}.", dir=repository.absolute().parent))
    try:
        for name, make in makers.items():
            make(staging / name)
        for target in targets:
            _replace(staging / target.name, target)
    finally:
        shutil.rmtree(staging)


def check_model(model: Path) -> model_config_pb2.ModelConfig:
    """Check a model's directory for everything that loading needs; returns its configuration.

    Raises:
        InputError: as `check_config`, or the artifact is damaged or of another kind.
    """
    config = check_config(model)
    language_model_facts(model / VERSION / ARTIFACT)
    return config


def check_config(model: Path) -> model_config_pb2.ModelConfig:
    """Check what Triton itself reads of a model's directory; returns its configuration.

    Raises:
        InputError: a file is missing, or the configuration is malformed, of another name, or has a wrong parameter.
    """
    for path in (model / CONFIG_FILE, model / VERSION / "model.py"):
        if not path.is_file():
            raise InputError(f"{path} is missing")
    config = _read_config(model / CONFIG_FILE)
    if config.name != model.name or config.backend != "python":
        raise InputError(f"{model / CONFIG_FILE} is of a model '{config.name}' for the backend '{config.backend}'")
    _settings(config)
    return config


def _settings(config: model_config_pb2.ModelConfig) -> Settings:
    entries = {name: {"string_value": entry.string_value} for name, entry in config.parameters.items()}
    return Settings.from_config({"parameters": entries})


def _fill_model(model: Path, artifact: Path, settings: Settings, copy: bool, draft: Path | None = None) -> None:
    shutil.copytree(TEMPLATE / MODEL_NAME, model, ignore=shutil.ignore_patterns("__pycache__", ARTIFACT, DRAFT))
    for source, name in ((artifact, ARTIFACT), (draft, DRAFT)):
        if source is not None and copy:
            shutil.copytree(source, model / VERSION / name)
        elif source is not None:
            (model / VERSION / name).symlink_to(source.resolve(), target_is_directory=True)
    if copy:
        _make_readable(model)
    config = _read_config(model / CONFIG_FILE)
    config.name = model.name
    together = settings.slots + settings.max_waiting
    config.dynamic_batching.default_queue_policy.max_queue_size = max(LEAST_QUEUE, 2 * together)
    for name, value in settings.as_parameters().items():
        config.parameters[name].string_value = value
    # An artifact with engines goes to a machine with a GPU; here Triton would not load a model that asks for one.
    kinds = model_config_pb2.ModelInstanceGroup
    for group in config.instance_group:
        group.kind = kinds.KIND_GPU if copy and read_engines(artifact) else kinds.KIND_CPU
    (model / CONFIG_FILE).write_text(text_format.MessageToString(config))
    check_model(model)


def _fill_batched(model: Path) -> None:
    shutil.copytree(TEMPLATE / BATCHED_NAME, model)
    (model / VERSION).mkdir(exist_ok=True)  # Triton asks for a version, though there is nothing in it
    _make_readable(model)


def _fill_control(model: Path) -> None:
    shutil.copytree(TEMPLATE / model.name, model, ignore=shutil.ignore_patterns("__pycache__"))
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
