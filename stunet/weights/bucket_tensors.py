"""Tensors of safetensors files in a bucket, read by ranges of bytes."""

import functools
import json
import math
from dataclasses import dataclass
from typing import NamedTuple

from stunet.errors import UserError
from stunet.files import check_not_lfs_content
from stunet.paths import AnyPath, object_version, read_range

_HEAD_BYTES = 2**20  # holds most headers; a longer one needs a second request
_BLOCK_BYTES = 2**22  # small tensors are read in blocks, because a request takes tens of ms


@dataclass(frozen=True)
class ObjectRange:
    """Bytes [start, stop) of one generation of an object of `size` bytes."""

    path: AnyPath
    generation: str
    size: int
    start: int
    stop: int

    def read(self, first: int = 0, last: int | None = None) -> bytearray:
        """Reads bytes [first, last) of the range. A last byte of None reads all.

        Raises:
          UserError: The object has been replaced, or the bucket cannot be read.
        """
        start = self.start + first
        stop = self.stop if last is None else self.start + last
        try:
            if stop - start > _BLOCK_BYTES:
                return read_range(self.path, start, stop, self.generation)
            blocks = range(start // _BLOCK_BYTES, -(-stop // _BLOCK_BYTES))
            content = b"".join(
                _read_block(self.path, self.generation, self.size, block) for block in blocks
            )
        except FileNotFoundError as error:
            raise UserError(
                f"{self.path}: has been replaced or deleted since it was opened; run it again"
            ) from error
        offset = blocks.start * _BLOCK_BYTES
        return bytearray(content[start - offset : stop - offset])


class Entry(NamedTuple):
    """A tensor of a safetensors file; `dtype` is the name in the header."""

    shape: tuple[int, ...]
    dtype: str
    range: ObjectRange


def read_entries(path: AnyPath) -> dict[str, Entry]:
    """Reads the header of a safetensors file, and returns its tensors by name.

    Raises:
      UserError: The file is a Git LFS pointer, or the bucket cannot be read.
      ValueError: The file is incomplete or has another format.
      FileNotFoundError: There is no such file.
    """
    size, generation = object_version(path)
    head = read_range(path, 0, min(size, _HEAD_BYTES), generation)
    check_not_lfs_content(path, head)
    end = 8 + int.from_bytes(head[:8], "little")
    if not 8 < end <= size:
        raise ValueError(f"its header ends at {end} of {size} bytes")
    if end > len(head):
        head += read_range(path, len(head), end, generation)
    header = json.loads(head[8:end])
    header.pop("__metadata__", None)
    entries = {}
    try:
        for name, fields in header.items():
            start, stop = fields["data_offsets"]
            place = ObjectRange(path, generation, size, end + start, end + stop)
            entries[name] = Entry(tuple(fields["shape"]), fields["dtype"], place)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"its header has an invalid entry ({error})") from error
    data_end = max((entry.range.stop for entry in entries.values()), default=end)
    if data_end != size:
        raise ValueError(f"{size} bytes, its header describes {data_end}")
    return entries


def row_range(shape: tuple[int, ...], itemsize: int, rows: slice) -> tuple[int, int]:
    """Returns the first and last byte of rows (of step 1) of the first axis."""
    first, last, _ = rows.indices(shape[0])
    size = math.prod(shape[1:]) * itemsize
    return first * size, last * size


@functools.lru_cache(maxsize=4)
def _read_block(path: AnyPath, generation: str, size: int, block: int) -> bytearray:
    start = block * _BLOCK_BYTES
    return read_range(path, start, min(start + _BLOCK_BYTES, size), generation)
