"""Reading files whose faults are the user's to mend."""

import json
from pathlib import Path
from typing import Any

from stunet.errors import UserError


def read_bytes(path: Path) -> bytes:
    """What a file holds; `UserError` where it is missing or unreadable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `UserError` where it is unreadable or holds no object."""
    content = read_bytes(path)
    try:
        value = json.loads(content)
    except ValueError as error:  # of JSON, or of UTF-8
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value
