"""Streams the rows of tables in CSV, TSV, JSON Lines, JSON and Parquet files.

A table in a bucket is downloaded to a temporary file while its rows are read.
"""

import contextlib
import csv
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from stunet.errors import UserError
from stunet.files import check_not_lfs_pointer, read_text
from stunet.paths import AnyPath, local_input

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")

_BATCH = 4096  # rows of a Parquet file in memory
_MAX_CELL = 2**26  # characters; longer ones have a quote that is not closed
_DELIMITERS = ",;\t"
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")

Row = Mapping[str, Any]


def read_columns(path: AnyPath) -> tuple[str, ...]:
    """Returns the names of the columns that `read_rows` returns; those of the first row in JSON.

    Empty for a JSON file that contains an object: it is no table.

    Raises:
      UserError: the file cannot be read, is damaged or empty, or has a column twice.
    """
    if path.suffix.lower() == ".parquet":
        with _parquet_file(path) as file:
            names = tuple(map(_column_name, _plain_columns(file)))
    elif path.suffix.lower() in (".csv", ".tsv"):
        with _open_text(path) as file:
            names = _read_header(path, file)[1]
    elif path.suffix.lower() == ".json" and isinstance(_read_json(path), dict):
        return ()
    else:
        names = tuple(next(read_rows(path), ("", {}))[1])
    if not names:
        raise UserError(f"{path}: no rows, expected a table with the names of its columns")
    if repetition := next((name for name in names if name and names.count(name) > 1), None):
        raise UserError(f"{path}: column {repetition!r} occurs twice, expected it once")
    return names


def read_rows(path: AnyPath) -> Iterator[tuple[str, Row]]:
    """Yields each row's place ("line 3") and its values by the names of the columns in lower case.

    Values of CSV files are strings. Binary and nested columns of Parquet files are left out.

    Raises:
      UserError: the file cannot be read or is damaged; names the line.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path)
    elif suffix == ".json":
        yield from _json_rows(path)
    else:
        with _open_text(path) as file:
            yield from (_json_lines if suffix == ".jsonl" else _csv_rows)(path, file)


def parse_json(text: str) -> Any:
    """Parses JSON, with U+FFFD for halves of surrogate pairs (an emoji that was cut in two).

    Raises:
      ValueError: the text is not JSON, or too deeply nested.
    """
    try:
        value = json.loads(text)
        return replace_surrogates(value) if _SURROGATE_ESCAPE.search(text) else value
    except RecursionError as error:
        raise ValueError("too deeply nested") from error


def replace_surrogates(value: Any) -> Any:
    """Returns a value of strings, lists, tuples and dicts that can be encoded in UTF-8.

    Pairs of surrogates become the character that they encode, others U+FFFD.
    """
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list | tuple):
        return [replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(item) for key, item in value.items()}
    return value


def has_surrogates(text: str) -> bool:
    """Returns whether a string cannot be encoded in UTF-8."""
    return _SURROGATE.search(text) is not None


@contextlib.contextmanager
def _open_text(path: AnyPath) -> Iterator[TextIO]:
    check_not_lfs_pointer(path)
    try:
        with local_input(path) as local:
            with local.open("rb") as file:
                is_utf_16 = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
            encoding = "utf-16" if is_utf_16 else "utf-8-sig"
            with local.open(encoding=encoding) as file:
                yield file
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: invalid text ({error}), expected UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _read_header(path: AnyPath, file: TextIO) -> tuple[str, tuple[str, ...]]:
    """Returns the delimiter, which gives the most columns, and the names of the columns."""
    line = file.readline()
    try:
        rows = {d: next(csv.reader([line], delimiter=d), []) for d in _DELIMITERS}
    except csv.Error as error:
        raise UserError(f"{path}: line 1: {error}, expected the names of the columns") from error
    delimiter = max(rows, key=lambda d: len(rows[d]))
    names = [_column_name(name) for name in rows[delimiter]]
    while names and not names[-1]:  # spreadsheets append empty columns
        names.pop()
    return delimiter, tuple(names)


def _csv_rows(path: AnyPath, file: TextIO) -> Iterator[tuple[str, Row]]:
    delimiter, names = _read_header(path, file)
    csv.field_size_limit(_MAX_CELL)  # lists of captions exceed the default of 131,072
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    while True:
        place = f"line {reader.line_num + 2}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}: {place}: invalid quotes ({error})") from error
        if cells is None:
            return
        while len(cells) > len(names) and not cells[-1].strip():
            cells.pop()
        if not cells:
            continue
        if len(cells) != len(names):
            raise UserError(
                f"{path}: {place} has {len(cells)} cells, expected {len(names)} "
                f"({','.join(names)}; cells that contain {delimiter!r} need quotes)"
            )
        yield place, dict(zip(names, cells, strict=True))


def _json_lines(path: AnyPath, file: TextIO) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                values = parse_json(line)
            except ValueError as error:
                raise UserError(f"{path}: line {number}: invalid JSON ({error})") from error
            yield f"line {number}", _object(path, f"line {number}", values)


def _json_rows(path: AnyPath) -> Iterator[tuple[str, Row]]:
    rows = _read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: contains a JSON {type(rows).__name__}, expected a list of rows")
    for number, values in enumerate(rows, 1):
        yield f"row {number}", _object(path, f"row {number}", values)


def _read_json(path: AnyPath) -> Any:
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: invalid JSON ({error})") from error


def _object(path: AnyPath, place: str, values: Any) -> Row:
    if not isinstance(values, dict):
        raise UserError(f"{path}: {place} is {json.dumps(values)[:40]}, expected an object {{...}}")
    return {_column_name(name): value for name, value in values.items()}


def _parquet_rows(path: AnyPath) -> Iterator[tuple[str, Row]]:
    with _parquet_file(path) as file:
        names = _plain_columns(file)
        numbers = itertools.count(1)
        for batch in file.iter_batches(_BATCH, columns=names):
            columns = [_column_name(name) for name in batch.schema.names]
            values = (column.to_pylist() for column in batch.columns)
            for row in zip(*values, strict=True):
                yield f"row {next(numbers)}", dict(zip(columns, row, strict=True))


@contextlib.contextmanager
def _parquet_file(path: AnyPath) -> Iterator[Any]:
    import pyarrow  # takes 0.3 s to import
    import pyarrow.parquet

    check_not_lfs_pointer(path)
    try:
        with local_input(path) as local, pyarrow.parquet.ParquetFile(local) as file:
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason}), expected a Parquet file") from error


def _plain_columns(file: Any) -> list[str]:
    """Returns the names of columns that do not contain files."""
    from pyarrow import types

    files = (types.is_struct, types.is_binary, types.is_large_binary)
    return [field.name for field in file.schema_arrow if not any(is_(field.type) for is_ in files)]


def _column_name(name: Any) -> str:
    return str(name).strip().lower()
