"""Files whose faults are the user's to mend, and a folder that one process has to itself."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stunet.errors import UserError


def read_bytes(path: Path) -> bytes:
    """What a file holds; `UserError` where it is missing or unreadable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error


def read_pairs(path: Path, row: str) -> list[tuple[str, str]]:
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


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps an existing folder from others who would claim it; a killed process's claim ends too.

    Raises:
      UserError: another process has claimed it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems know no locks: there nobody is kept out.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{folder}: another process is at work there; wait until it has ended, or "
                    "choose another folder"
                ) from error
        yield
    finally:
        os.close(handle)
