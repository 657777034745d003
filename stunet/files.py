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


def read_tsv_pairs(path: Path, row: str) -> list[tuple[str, str]]:
    """The rows of a table of two columns with a tab between them (TSV), without spaces around.

    Raises:
      UserError: it is unreadable, or a row is not what `row` says: "a class, a tab and a caption".
    """
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    rows = [line.split("\t") for line in lines if line.strip()]
    for number, cells in enumerate(rows, 1):
        if len(cells) != 2:
            raise UserError(f"{path}: row {number} must be {row}")
    return [(first.strip(), second.strip()) for first, second in rows]


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
