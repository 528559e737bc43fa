"""The configuration of a model: its config.json, as transformers reads it. No code that comes with a model is run."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UnsupportedModelError, one_line
from ..json_files import read_json_object

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PACK = "`hebbline pack` takes the model's own ONNX export"
"""What to do with a model that is refused."""
COMPRESSION_FIELDS = ("quantization_config", "compression_config", "sparsity_config")
"""Fields of config.json that say how weights are stored; the last two are of earlier versions of compressed-tensors."""
_WRAPPING = re.compile(r"^(Class validation|Validation) error.*?Error: ")
"""What the validators of transformers put before the sentence that says what is wrong."""
_TYPE = re.compile(r"<class '(?:\w+\.)*(\w+)'>")
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "n_embd",
    "n_inner",
    "n_layer",
    "n_head",
    "n_positions",
    "d_model",
    *(f"{part}_{size}" for part in ("encoder", "decoder") for size in ("layers", "attention_heads", "ffn_dim")),
)
"""Fields that divide or make up shapes: transformers does not look whether they are positive."""


def read_config(source: str | Path) -> "PretrainedConfig":
    """The configuration of a directory, of a file `config.json`, or of a name on the hub.

    Raises:
        InputError: there is none, it is no JSON object, or a field has a value that it cannot have.
        UnsupportedModelError: transformers knows no such model.
    """
    from transformers import AutoConfig

    path = _local(source)
    if path is not None:
        _check(path, read_json_object(path))
    try:
        with quiet():
            config: PretrainedConfig = AutoConfig.from_pretrained(
                source, local_files_only=path is not None, trust_remote_code=False
            )
    except Exception as error:  # of no common base: those of transformers, of the hub's client and of its validators
        where = path or f"'{source}' is no directory, and on the hub"
        raise InputError(f"{where}: the configuration cannot be read: {_said(error)}") from error
    return config


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers keep to itself what is said here in one line, such as a table of weights that do not fit."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def config_file(directory: Path) -> Path:
    """`config.json` of a model directory.

    Raises:
        InputError: there is none.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise InputError(f"{directory} is not a model directory: it has no config.json")
    return path


def plain_config(path: Path) -> "PretrainedConfig":
    """The configuration of the model that the expanded weights of a directory are.

    Raises:
        InputError, UnsupportedModelError: as `read_config`.
    """
    config = read_config(path)
    for field in COMPRESSION_FIELDS:
        if hasattr(config, field):
            delattr(config, field)
    return config


def _local(source: str | Path) -> Path | None:
    """The file that a directory or path means; None for a name on the hub."""
    path = Path(source)
    if path.is_dir():
        return config_file(path)
    if path.is_file():
        return path
    check_hub_name(source)
    return None


def check_hub_name(source: str | Path) -> None:
    """Refuse what is no directory here and can be no name on the hub, which has at most one slash.

    Raises:
        InputError: it is a path.
    """
    text = str(source)
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or text.endswith("/"):
        raise InputError(f"{source} is not a directory")


def _said(error: Exception) -> str:
    """What a validator says of a field, without what it puts around that for programmers."""
    text, _, _ = _WRAPPING.sub("", " ".join(str(error).split())).partition(" Errors: ")
    return one_line(Exception(_TYPE.sub(r"\1", text).strip('"')))


def _check(path: Path, config: Mapping[str, Any]) -> None:
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise InputError(f"{path} has no model_type, the name of the model's family such as 'llama'; {PACK}")
    if kind not in CONFIG_MAPPING:
        own = " (code that comes with a model is not run)" if "auto_map" in config else ""
        raise UnsupportedModelError(f"{path}: model_type '{kind}' is none that transformers knows{own}; {PACK}")
    for field in ("dtype", "torch_dtype"):
        if isinstance(value := config.get(field), int | float | list):
            raise InputError(f"{path}: {field} is {value}; it is the name of a type, such as 'float32'")
    for field in _SIZES:
        if isinstance(value := config.get(field), int | float) and value < 1:
            raise InputError(f"{path}: {field} is {value}; it must be at least 1")
