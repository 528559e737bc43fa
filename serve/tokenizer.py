"""The tokenizer of an artifact."""

from pathlib import Path

from tokenizers import Tokenizer

from ..artifacts import InputError

TOKENIZER_FILE = "tokenizer.json"


def load_tokenizer(artifact: Path) -> Tokenizer:
    """Read `tokenizer.json`, without the padding and truncation that training may have left in it.

    Raises:
        InputError: the file is missing, or is no tokenizer.
    """
    path = artifact / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path}: cannot read the tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
