"""The tokenizer of a model directory: read from whatever file holds it, and carried into what is published."""

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer

from .errors import InputError

TOKENIZER_FILE = "tokenizer.json"
CONVERTED_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
"""Files from which transformers makes a fast tokenizer where there is no tokenizer.json."""
CARRIED_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""What says how a tokenizer is used and a text is generated: published beside it where the model has it."""


def check_tokenizer(directory: Path) -> None:
    """Refuse a directory in which no file of a tokenizer lies.

    Raises:
        InputError: there is none.
    """
    if not any((directory / name).is_file() for name in (TOKENIZER_FILE, *CONVERTED_FILES)):
        raise InputError(
            f"{directory} has no {TOKENIZER_FILE}, nor {', '.join(CONVERTED_FILES)}; save the model's tokenizer beside "
            "it (save_pretrained)"
        )


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a directory: `tokenizer.json`, or what transformers makes of the files of an older one.

    Raises:
        InputError: there is none, or it cannot be read or converted.
    """
    check_tokenizer(directory)
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        return _converted(directory)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path}: cannot read the tokenizer: {error}") from error


def publish_tokenizer(source: Path, out: Path) -> None:
    """Write `tokenizer.json` into a directory, and copy what says how it is used.

    Raises:
        InputError: as `read_tokenizer`; or a file that is carried is no JSON object.
    """
    carried = [name for name in CARRIED_FILES if (source / name).is_file()]
    for name in carried:
        _check_json(source / name)
    if (source / TOKENIZER_FILE).is_file():
        shutil.copyfile(source / TOKENIZER_FILE, out / TOKENIZER_FILE)
    else:
        read_tokenizer(source).save(str(out / TOKENIZER_FILE))
    for name in carried:
        shutil.copyfile(source / name, out / name)


def _check_json(path: Path) -> None:
    if path.suffix != ".json":
        return
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no JSON object")


def _converted(directory: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        backend: Tokenizer = tokenizer.backend_tokenizer
    except Exception as error:  # transformers, sentencepiece and protobuf raise their own, of no common base
        raise InputError(
            f"{directory}: no {TOKENIZER_FILE}, and the tokenizer cannot be converted: {' '.join(str(error).split())}"
        ) from error
    return backend
