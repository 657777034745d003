"""Arrays in `.npy` files on disk or in buckets, of which single rows are read."""

import contextlib
import io
import math
import os
import tokenize
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from stunet.errors import UserError
from stunet.paths import AnyPath, is_remote, local_output, object_version, read_range

_HEADER_BYTES = 1024  # more than a header of version 1 has for a few dimensions
_READ_THREADS = 8


class Rows(Protocol):
    """An array whose rows are read when they are indexed."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns rows `[N, ...]` by their numbers `[N]`."""


class _RemoteRows:
    """An array in a bucket. Each row is read by one request."""

    def __init__(self, path: AnyPath):
        size, self._generation = object_version(path)
        header = io.BytesIO(read_range(path, 0, min(size, _HEADER_BYTES), self._generation))
        if np.lib.format.read_magic(header) != (1, 0):
            raise ValueError("not version 1.0 of the format")
        self.shape, is_fortran, self.dtype = np.lib.format.read_array_header_1_0(header)
        self._path, self._offset = path, header.tell()
        expected = self._offset + math.prod(self.shape) * self.dtype.itemsize
        if is_fortran or size != expected:
            raise ValueError(f"{size} bytes, expected {expected}")

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        shape = self.shape[1:]
        row_bytes = math.prod(shape) * self.dtype.itemsize
        starts = [self._offset + int(row) * row_bytes for row in rows]

        def read(start: int) -> bytes:
            return read_range(self._path, start, start + row_bytes, self._generation)

        try:
            with ThreadPoolExecutor(_READ_THREADS) as pool:
                content = b"".join(pool.map(read, starts))
        except FileNotFoundError as error:
            raise UserError(f"{self._path}: was replaced, expected no change in use") from error
        return np.frombuffer(content, self.dtype).reshape(len(rows), *shape)


def open_rows(path: AnyPath) -> Rows:
    """Opens an array: a memory map of a file on disk, or one that reads rows from a bucket.

    Raises:
      OSError: the file is missing or cannot be read.
      ValueError: it is incomplete or not a `.npy` file.
    """
    with _invalid_headers():
        return _RemoteRows(path) if is_remote(path) else np.lib.format.open_memmap(path, mode="r")


def load_array(path: AnyPath) -> np.ndarray:
    """Returns an array: a memory map of a file on disk, or a copy of one in a bucket.

    Raises:
      OSError, ValueError: see `open_rows`.
    """
    with _invalid_headers():
        if is_remote(path):
            return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        return np.lib.format.open_memmap(path, mode="r")


@contextlib.contextmanager
def _invalid_headers() -> Iterator[None]:
    """Turns the errors of NumPy's parser of headers into `ValueError`s."""
    try:
        yield
    except (SyntaxError, tokenize.TokenError, TypeError, EOFError, OverflowError) as error:
        raise ValueError(f"invalid header ({error})") from error


def write_array(path: AnyPath, array: np.ndarray) -> None:
    """Writes an array; an existing file is replaced in one step.

    Raises:
      OSError: the disk is full or read-only.
      UserError: the bucket cannot be written.
    """
    content = np.ascontiguousarray(array)  # the header describes this order
    header = np.lib.format.header_data_from_array_1_0(content)
    with local_output(path) as new, new.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        # `np.save` would report a full disk without its reason, a memory map by a crash (SIGBUS).
        file.write(content.data)
        file.flush()
        os.fsync(file.fileno())
