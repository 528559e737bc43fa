"""The tokenizer of a model directory: read from whatever file holds it, and written into what is published."""

import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .checkpoints import check_hub_name, quiet
from .errors import InputError, one_line
from .fetched import check_fetched
from .json_files import read_json_object

TOKENIZER_FILE = "tokenizer.json"
CONVERTED_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
"""Files from which transformers makes a fast tokenizer where there is no tokenizer.json."""
COPIED_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""What says how a tokenizer is used and a text is generated: published beside it where the model has it."""


def check_tokenizer(directory: Path) -> None:
    """Refuse a directory in which no file of a tokenizer lies, or one that is published with it is no JSON.

    Raises:
        InputError: there is none; or a file that says how it is used is no JSON object.
    """
    if not any((directory / name).is_file() for name in (TOKENIZER_FILE, *CONVERTED_FILES)):
        raise InputError(
            f"{directory} has no {TOKENIZER_FILE}, nor {', '.join(CONVERTED_FILES)}; save the model's tokenizer beside "
            "it (save_pretrained)"
        )
    _check_copied(directory)


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a directory: `tokenizer.json`, or what transformers makes of the files of an older one.

    Raises:
        InputError: there is none, or it cannot be read or converted.
    """
    check_tokenizer(directory)
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        return _converted(directory)
    check_fetched(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path}: cannot read the tokenizer: {one_line(error)}") from error


def check_tokenizer_fits(directory: Path, vocab_size: int) -> None:
    """Refuse a tokenizer that cannot be read, or whose own tokens a model has no embeddings for.

    Tokens that were added to it may lie outside, as those of images do in Gemma 3.

    Raises:
        InputError: as `read_tokenizer`; or it is another model's.
    """
    tokens = read_tokenizer(directory).get_vocab_size(with_added_tokens=False)
    if tokens > vocab_size:
        raise InputError(
            f"{directory}: the tokenizer has {tokens:,} tokens, and the model embeddings for {vocab_size:,}: it is "
            "another model's; save the model's own beside it (save_pretrained)"
        )


def fast_tokenizer(source: str | Path) -> Any:
    """The tokenizer as transformers has it, of a directory or of a name on the hub. No code of it is run.

    Raises:
        InputError: there is none, it cannot be read, or it is no fast one.
    """
    from transformers import AutoTokenizer

    is_local = Path(source).is_dir()
    if is_local and (Path(source) / TOKENIZER_FILE).is_file():
        read_tokenizer(Path(source))  # says better what is wrong with one
    elif is_local:
        check_tokenizer(Path(source))
    else:
        check_hub_name(source)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=is_local, trust_remote_code=False)
    except Exception as error:  # transformers, tokenizers, sentencepiece and protobuf raise errors of no common base
        raise InputError(f"{source}: the tokenizer cannot be read: {one_line(error)}") from error
    if not tokenizer.is_fast:
        raise InputError(f"{source} has no {TOKENIZER_FILE}, which all later stages read: save it as a fast tokenizer")
    return tokenizer


def publish_tokenizer(source: Path, out: Path) -> None:
    """Write `tokenizer.json` into a directory, and copy what says how it is used.

    Raises:
        InputError: as `read_tokenizer`; or a file that is copied is no JSON object.
    """
    _check_copied(source)
    if (source / TOKENIZER_FILE).is_file():
        shutil.copyfile(source / TOKENIZER_FILE, out / TOKENIZER_FILE)
    else:
        read_tokenizer(source).save(str(out / TOKENIZER_FILE))
    for name in COPIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def _check_copied(directory: Path) -> None:
    for name in COPIED_FILES:
        if name.endswith(".json") and (directory / name).is_file():
            read_json_object(directory / name)


def _converted(directory: Path) -> Tokenizer:
    tokenizer = fast_tokenizer(directory)
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend
