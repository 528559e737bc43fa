"""JSON files of others: an object, or one line that says which file is none."""

import json
from pathlib import Path
from typing import Any

from .errors import InputError


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        InputError: it cannot be read, is no JSON, or holds something else; the file is named.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no JSON object, but {_KINDS.get(type(content), 'a number')}")
    return content


_KINDS: dict[type, str] = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}
