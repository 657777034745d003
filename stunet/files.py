"""Reading of files from the user; errors become `UserError`s."""

import json
import re
from typing import Any

from stunet.errors import UserError
from stunet.paths import AnyPath

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_bytes(path: AnyPath) -> bytes:
    """Reads a file.

    Raises:
      UserError: The file is missing or unreadable, or a Git LFS pointer.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or 'no such file'})") from error
    check_not_lfs_content(path, content)
    return content


def check_not_lfs_pointer(path: AnyPath) -> None:
    """Checks that a file, if it can be read, is not a Git LFS pointer to the real file.

    Raises:
      UserError: It is one.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError:  # whoever reads the file reports it
        return
    check_not_lfs_content(path, start)


def check_not_lfs_content(path: AnyPath, content: bytes) -> None:
    """Checks that the first bytes of a file are not those of a Git LFS pointer.

    Raises:
      UserError: They are.
    """
    if content.startswith(_LFS_POINTER):
        raise UserError(
            f"{path}: is a Git LFS pointer, expected the file itself; fetch it with `git lfs pull`"
        )


def read_text(path: AnyPath, errors: str = "strict") -> str:
    """Reads a text in UTF-8, or in UTF-16 with a byte order mark.

    Args:
      path: File to read.
      errors: Treatment of invalid bytes, as in `bytes.decode`.

    Raises:
      UserError: The file cannot be read, or has another encoding and `errors` is "strict".
    """
    content = read_bytes(path)
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding, errors)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: invalid text ({error}), expected UTF-8") from error


def split_lines(text: str) -> list[str]:
    """Splits a text at newlines (LF, CRLF or CR) only.

    `str.splitlines` also splits at characters such as U+2028, which captions can contain.
    """
    lines = re.split("\r\n|\n|\r", text)
    return lines[:-1] if lines[-1] == "" else lines


def read_tsv_pairs(path: AnyPath, row_format: str) -> list[tuple[str, str]]:
    """Reads a table of two tab-separated columns (TSV), stripping white space around cells.

    Args:
      path: File, see `read_text`. Empty lines are skipped.
      row_format: Description of a row for error messages ("a class, a tab and a caption").

    Raises:
      UserError: The file is unreadable, or a row does not have two cells.
    """
    rows = []
    for number, line in enumerate(split_lines(read_text(path)), 1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != 2:
            raise UserError(f"{path}: line {number} has {len(cells)} cells, expected {row_format}")
        rows.append((cells[0], cells[1]))
    return rows


def read_json(path: AnyPath) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
      UserError: The file is unreadable, not JSON, or contains another value than an object.
    """
    content = read_bytes(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:  # also invalid UTF-8
        raise UserError(f"{path}: invalid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: contains a JSON {type(value).__name__}, expected an object")
    return value
