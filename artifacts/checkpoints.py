"""Checkpoints of other tools whose weights are not plain numbers: packed, or rounded with scales beside them.

transformers needs the tool's own package to read one, or fills the weights that it does not find at random. Both are
met here beforehand, by what the configuration says and by the names of the tensors.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .errors import InputError, UnsupportedModelError
from .masks import MASKS_FILE

_COMPRESSED = "compressed-tensors"
_SUFFIXES = {
    ".compressed": _COMPRESSED,
    ".bitmask": _COMPRESSED,
    ".weight_packed": _COMPRESSED,
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_scale": "integers or float8 with scales",
    ".weight_scale_inv": "float8 with scales",
}
"""How the names of tensors end that only such checkpoints have, and what wrote them."""
_DO = "read it with the tool that wrote it, and save the model with plain floating-point weights (save_pretrained)"
_SHOWN = 60


def check_plain_checkpoint(path: Path) -> None:
    """Refuse a model directory whose weights are compressed or quantised, before anything is loaded.

    Args:
        path: a directory with `config.json`; weights are looked at where they are safetensors.

    Raises:
        UnsupportedModelError: they are; the message names the format, where it is said, and what to do.
        InputError: `config.json` is no JSON object, or a file of weights cannot be read.
    """
    check_plain_configuration(_read_config(path / "config.json"), str(path / "config.json"))
    for file in sorted(path.glob("*.safetensors")):
        if file.name != MASKS_FILE:
            _check_names(file)


def check_plain_configuration(config: Mapping[str, Any], where: str) -> None:
    """Refuse a transformers configuration, read from `where`, of a model with compressed or quantised weights.

    Raises:
        UnsupportedModelError: as `check_plain_checkpoint`.
    """
    quantised = config.get("quantization_config")
    if quantised:
        _refuse(where, "quantization_config", quantised if isinstance(quantised, Mapping) else {})
    for field in ("compression_config", "sparsity_config"):  # of earlier versions of compressed-tensors
        entry = config.get(field)
        if isinstance(entry, Mapping) and not _is_dense(entry):
            _refuse(where, field, {"quant_method": _COMPRESSED} | dict(entry))


def check_weights_fit(where: str, found: Mapping[str, Iterable[Any]]) -> None:
    """Refuse a model some of whose weights transformers did not find, or did not know where to put.

    Args:
        where: the directory, for the message.
        found: what `from_pretrained` gives with `output_loading_info`. It fills a missing weight at random.

    Raises:
        InputError: there are such weights; the message names the first.
    """
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in found.get(problem, ()))
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{where}: the weights do not fit config.json: {problem} {names[0]}{more}")


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is no JSON object")
    return config


def _is_dense(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of compressed-tensors says that zeros and weights are stored as they are."""
    sparse = entry.get("sparsity_config") or {}
    formats = [entry.get("format"), sparse.get("format") if isinstance(sparse, Mapping) else None]
    return not entry.get("config_groups") and all(name in (None, "dense") for name in formats)


def _refuse(where: str, field: str, entry: Mapping[str, Any]) -> None:
    method = entry.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in entry else "an unnamed method")
    sparse = entry.get("sparsity_config")
    formats = [entry.get("format"), sparse.get("format") if isinstance(sparse, Mapping) else None]
    named = ", ".join(_shown(name) for name in formats if name and name != "dense")
    if method == _COMPRESSED and _is_dense(entry):
        raise UnsupportedModelError(
            f"{where}: {field} says {_COMPRESSED}, yet that the weights are stored as they are (format 'dense'); "
            f"remove {field} from a copy of the file"
        )
    detail = f" (format {named})" if named else ""
    raise UnsupportedModelError(f"{where}: {field} says {_shown(method)}{detail}, which is not read here; {_DO}")


def _check_names(file: Path) -> None:
    try:
        with safe_open(file, framework="numpy") as tensors:
            names = list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot read the weights: {error}") from error
    for name in names:
        suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)
        if suffix is not None:
            tool = _SUFFIXES[suffix]
            raise UnsupportedModelError(f"{file}: tensor {_shown(name)} is of {tool}, which is not read here; {_DO}")


def _shown(value: object) -> str:
    """A word of somebody else's file, in quotes and short."""
    text = repr(str(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…'"
