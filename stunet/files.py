"""Reading of files from the user; errors become `UserError`s."""

import json
from pathlib import Path
from typing import Any

from stunet.errors import UserError


def read_bytes(path: Path) -> bytes:
    """Reads a file.

    Raises:
      UserError: The file is missing or unreadable.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_tsv_pairs(path: Path, row_format: str) -> list[tuple[str, str]]:
    """Reads a table of two tab-separated columns (TSV), stripping white space around cells.

    Args:
      path: File, UTF-8. Empty lines are skipped.
      row_format: Description of a row for error messages ("a class, a tab and a caption").

    Raises:
      UserError: The file is unreadable, or a row does not have two cells.
    """
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    rows = [line.split("\t") for line in lines if line.strip()]
    for number, cells in enumerate(rows, 1):
        if len(cells) != 2:
            raise UserError(f"{path}: row {number} has {len(cells)} cells, expected {row_format}")
    return [(first.strip(), second.strip()) for first, second in rows]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
      UserError: The file is unreadable, not JSON, or contains another value than an object.
    """
    content = read_bytes(path)
    try:
        value = json.loads(content)
    except ValueError as error:  # invalid JSON or UTF-8
        raise UserError(f"{path}: invalid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: contains a JSON {type(value).__name__}, expected an object")
    return value
