"""Checkpoints that are not read here: rounded with scales of another tool, or damaged.

transformers needs the tool's own package to read one, or fills the weights that it does not find at random. Both are
met here beforehand, by what the configuration says and by the names of the tensors.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UnsupportedModelError
from ..json_files import read_json_object
from .configuration import COMPRESSION_FIELDS, config_file
from .files import WeightFiles

if TYPE_CHECKING:
    from torch import Tensor

_COMPRESSED = "compressed-tensors"
_EXPANDED = "gguf"
"""transformers expands a GGUF file when it reads it, and leaves the word in the configuration of what it then saves."""
_READ = (
    "dense",
    "sparse-bitmask",
    "sparse-24-bitmask",
    "pack-quantized",
    "int-quantized",
    "naive-quantized",
    "float-quantized",
)
"""Formats of compressed-tensors that are expanded; earlier versions wrote them with underscores."""
_SUFFIXES = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_scale_inv": "float8 with scales",
    ".weight_global_scale": "4-bit floats with scales",
}
"""How the names of tensors end that only such checkpoints have, and what wrote them."""
_DO = "read it with the tool that wrote it, and save the model with plain floating-point weights (save_pretrained)"
_SHOWN = 60
_PROBLEMS = {
    "missing_keys": "they have no tensor '{}'",
    "unexpected_keys": "tensor '{}' has no place in the model",
    "mismatched_keys": "tensor '{}' is [{}], and should be [{}]",
}
"""What transformers calls each way in which weights do not fit, and the words for it."""


def check_checkpoint(path: Path) -> None:
    """Refuse a model directory whose weights are in a form that is not read here, before anything is loaded.

    Raises:
        UnsupportedModelError: they are; the message names the format, where it is said, and what to do.
        InputError: `config.json` is no JSON object, or a file of weights is missing or cannot be read.
    """
    config = config_file(path)
    check_configuration(read_json_object(config), str(config))
    files = WeightFiles(path)
    for name in files.names:
        suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)
        if suffix is not None:
            raise UnsupportedModelError(
                f"{files.file_of(name)}: tensor {_shown(name)} is of {_SUFFIXES[suffix]}, which is not read here; {_DO}"
            )


def check_configuration(config: Mapping[str, Any], where: str) -> None:
    """Refuse a transformers configuration, read from `where`, of a model whose weights are not read here.

    Raises:
        UnsupportedModelError: as `check_checkpoint`.
    """
    for field in COMPRESSION_FIELDS:
        entry = config.get(field)
        if not entry:
            continue
        said = dict(entry) if isinstance(entry, Mapping) else {}
        if field != "quantization_config":
            said = {"quant_method": _COMPRESSED} | said
        _check_entry(where, field, said)


def check_weights_fit(where: str, found: Mapping[str, Iterable[Any]]) -> None:
    """Refuse a model some of whose weights transformers did not find, or did not know where to put.

    Args:
        where: the directory, for the message.
        found: what `from_pretrained` gives with `output_loading_info`, and, for shapes that differ,
            `ignore_mismatched_sizes`. It fills a missing weight at random.

    Raises:
        InputError: there are such weights; the message names the first.
    """
    for problem, words in _PROBLEMS.items():
        entries = sorted(_entry(one) for one in found.get(problem, ()))
        if entries:
            more = f" (and so {len(entries) - 1} more)" if len(entries) > 1 else ""
            raise InputError(f"{where}: the weights do not fit config.json: {words.format(*entries[0])}{more}")


def check_finite(where: str, name: str, values: "Tensor") -> None:
    """Refuse a parameter that has values which are NaN or infinite.

    Raises:
        InputError: it has; the message names it.
    """
    import torch

    # Extremes are not finite where any value is not, and take no memory.
    if values.numel() and not all(torch.isfinite(extreme) for extreme in torch.aminmax(values.detach())):
        count = int((~torch.isfinite(values)).sum())
        raise InputError(f"{where}: layer '{name}' has {count} weights that are NaN or infinite")


def _entry(found: Any) -> tuple[str, ...]:
    """The name of a tensor, and, where they differ, the shapes that it has and should have."""
    name, *shapes = found if isinstance(found, tuple) else (found,)
    return str(name), *(", ".join(str(extent) for extent in shape) for shape in shapes)


def _check_entry(where: str, field: str, entry: Mapping[str, Any]) -> None:
    method = entry.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in entry else "an unnamed method")
    if method == _EXPANDED:
        return
    sparse = entry.get("sparsity_config")
    formats = [entry.get("format"), sparse.get("format") if isinstance(sparse, Mapping) else None]
    groups = entry.get("config_groups")
    if isinstance(groups, Mapping):  # a model of mixed precision names a format for each group
        formats += [group.get("format") for group in groups.values() if isinstance(group, Mapping)]
    unread = [name for name in formats if name and str(name).replace("_", "-") not in _READ]
    if method == _COMPRESSED and not unread:
        return
    detail = f" (format {', '.join(_shown(name) for name in dict.fromkeys(unread))})" if unread else ""
    raise UnsupportedModelError(f"{where}: {field} says {_shown(method)}{detail}, which is not read here; {_DO}")


def _shown(value: object) -> str:
    """A word of somebody else's file, in quotes and short."""
    text = repr(str(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…'"
