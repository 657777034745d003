"""Reads `captions.csv`, the table of captions that people write by hand.

Its many variants are accepted, and its mistakes refused with the number of the line.
"""

import csv
from collections.abc import Iterator

from stunet.errors import UserError
from stunet.files import read_text, split_lines
from stunet.paths import AnyPath
from stunet.video_io.folders import IMAGE_SUFFIXES, VIDEO_SUFFIXES

COLUMNS = ("file", "caption")
_DELIMITERS = ",;\t"


def read_caption_rows(path: AnyPath) -> Iterator[tuple[int, dict[str, str]]]:
    """Reads a CSV file with the columns `file` and `caption`, in any order, and others.

    Cells are separated by commas, semicolons or tabs. A file may have several rows. If `caption`
    is the last column, its commas need no quotes. Line breaks in quotes become spaces.

    Args:
      path: File, see `stunet.files.read_text`.

    Yields:
      Number of the first line of a row, and its cells by the names of the columns in lower case.

    Raises:
      UserError: The table cannot be read, lacks a column or has an invalid row; names the line.
    """
    lines = split_lines(read_text(path))
    if not lines:
        raise UserError(f"{path}: empty, expected a first line {','.join(COLUMNS)}")
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise UserError(f"{path}: line {number} contains a NUL character, expected text")
    delimiter, names = _read_header(path, lines[0])
    end = 1
    reader = csv.reader(
        (f"{line}\n" for line in lines[1:]), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    while True:
        start = end + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise UserError(f"{path}: line {start}: invalid quotes ({error})") from error
        end = 1 + reader.line_num
        row = lines[start - 1 : end]
        if not any(cell.strip() for cell in cells):
            continue
        _check_swallowed_rows(path, start, row, delimiter)
        values = dict(zip(names, _fit(path, start, row, cells, names, delimiter), strict=True))
        if not values["file"].strip():
            raise UserError(f"{path}: line {start}: no file, expected {','.join(COLUMNS)}")
        file, caption = values["file"].strip(), " ".join(values["caption"].split())
        yield start, {**values, "file": file, "caption": caption}


def _read_header(path: AnyPath, line: str) -> tuple[str, list[str]]:
    """Returns the delimiter and the names of the columns, in lower case."""
    for delimiter in _DELIMITERS:
        try:
            names = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
        except csv.Error as error:
            raise UserError(f"{path}: line 1: {error}, expected {','.join(COLUMNS)}") from error
        names = [name.strip().lower() for name in names]
        while names and not names[-1]:  # spreadsheets append empty columns
            names.pop()
        if all(column in names for column in COLUMNS):
            if repetition := next((name for name in COLUMNS if names.count(name) > 1), None):
                raise UserError(f"{path}: column {repetition!r} occurs twice, expected it once")
            return delimiter, names
    raise UserError(
        f"{path}: columns {line.strip()[:200]} in the first line, expected file,caption"
    )


def _check_swallowed_rows(path: AnyPath, start: int, row: list[str], delimiter: str) -> None:
    """Raises if a quote that is opened in one line hides rows until it is closed in another."""
    for number, line in enumerate(row[1:], start + 1):
        name = line.split(delimiter)[0].strip().strip('"').lower()
        if delimiter in line and name.endswith(VIDEO_SUFFIXES + IMAGE_SUFFIXES):
            raise UserError(
                f"{path}: line {start}: a quote is not closed before line {number} ({line!r}), "
                "expected quotes around whole captions"
            )


def _fit(
    path: AnyPath, start: int, row: list[str], cells: list[str], names: list[str], delimiter: str
) -> list[str]:
    """Returns one cell per column."""
    cells = [*cells]
    line = row[0]
    while len(cells) > len(names) and not cells[-1].strip():  # empty columns of spreadsheets
        cells.pop()
        line = line.rpartition(delimiter)[0]
    last = len(names) - 1
    is_plain_caption = names[last] == "caption" and len(row) == 1 and '"' not in row[0]
    if is_plain_caption:  # otherwise the comma may belong to the name of the file
        file = cells[names.index("file")] if len(cells) > last else ""
        is_plain_caption = file.strip().lower().endswith(VIDEO_SUFFIXES + IMAGE_SUFFIXES)
    if len(cells) > len(names) and is_plain_caption:  # an unquoted comma in the caption
        return [*cells[:last], line.split(delimiter, last)[last]]
    if len(cells) != len(names):
        raise UserError(
            f"{path}: line {start} has {len(cells)} cells, expected {len(names)} "
            f"({','.join(names)}; captions that contain the separator need quotes)"
        )
    return cells
