"""Log files that grow during a run: appended on disk, written in parts to a bucket.

A bucket cannot append. The parts of an object `NAME` are the objects `NAME.0001`, `NAME.0002` and
so on. A part is replaced as it grows, until it has `PART_BYTES`.
"""

import itertools
import re
from concurrent.futures import Future, ThreadPoolExecutor

from stunet.errors import UserError
from stunet.files import read_text
from stunet.paths import AnyPath, is_remote, write_bytes

PART_BYTES = 2**20


class DiskFile:
    """Appends to a file on disk.

    Args:
      path: The file. Created by the first `append`.

    Raises:
      OSError: in all methods, if the disk is full or read-only.
    """

    def __init__(self, path: AnyPath):
        self._path = path

    def append(self, data: bytes) -> None:
        """Appends bytes."""
        with self._path.open("ab") as file:
            file.write(data)

    def flush(self) -> None:
        """Returns when all bytes are stored."""


class BucketFile:
    """Writes the parts of a growing object in a thread, so that training does not wait for them.

    Args:
      path: The object whose parts are written. Existing parts are replaced.
      part_bytes: Size from which a part is complete.

    Raises:
      UserError: in all methods, if the bucket cannot be written.
    """

    def __init__(self, path: AnyPath, part_bytes: int = PART_BYTES):
        self._path, self._part_bytes = path, part_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log")
        self._upload: Future | None = None
        self._number, self._part, self._sent = 1, b"", 0

    def append(self, data: bytes) -> None:
        """Appends bytes. They are sent with later ones if an earlier upload is not complete."""
        if len(self._part) >= self._part_bytes:
            self.flush()
            self._number, self._part, self._sent = self._number + 1, b"", 0
        self._part += data
        if self._upload is None or self._upload.done():
            self._send()

    def flush(self) -> None:
        """Returns when all bytes are stored."""
        if self._sent < len(self._part):
            self._send()
        if self._upload is not None:
            self._upload.result()

    def _send(self) -> None:
        if self._upload is not None:
            self._upload.result()  # raises the error of an upload that failed
        path = self._path.with_name(f"{self._path.name}.{self._number:04d}")
        self._upload = self._thread.submit(write_bytes, path, self._part)
        self._sent = len(self._part)


def growing_file(path: AnyPath) -> DiskFile | BucketFile:
    """Returns the writer of a growing file on disk or in a bucket."""
    return BucketFile(path) if is_remote(path) else DiskFile(path)


def read_lines(path: AnyPath, torn: str = ".*") -> list[str]:
    """Reads the lines, with their ends, of a file and its parts. No file has no lines.

    Omits an incomplete last line of a killed run. Equal lines count once, because a run that was
    killed while it joined the parts has left some twice.

    Args:
      path: The file.
      torn: Regular expression of an incomplete line.

    Raises:
      UserError: A file cannot be read, is not a text, or ends with another incomplete line.
    """
    lines: dict[str, None] = {}
    for file in (path, *_parts(path)):
        if file.exists():
            *complete, last = read_text(file).split("\n")
            if not re.fullmatch(torn, last):
                raise UserError(
                    f"{file}: ends with {last[-40:]!r}, expected complete lines; move the file "
                    "away to continue without it"
                )
            lines |= dict.fromkeys(f"{line}\n" for line in complete)
    return list(lines)


def replace_lines(path: AnyPath, lines: list[str]) -> None:
    """Replaces the content of a file, and its parts, by these lines with their ends.

    Raises:
      UserError: the disk is full or read-only, or the bucket cannot be written.
    """
    content, parts = "".join(lines).encode(), _parts(path)
    if not (path.exists() and path.read_bytes() == content):
        write_bytes(path, content)
    for part in reversed(parts):  # a run that is killed here leaves parts from the first one on
        part.unlink()


def _parts(path: AnyPath) -> list[AnyPath]:
    """Returns the parts of a file, up to the first number that is missing."""
    if not path.parent.exists():
        return []
    names = {file.name for file in path.parent.iterdir()}
    numbered = (f"{path.name}.{number:04d}" for number in itertools.count(1))
    return [path.with_name(name) for name in itertools.takewhile(names.__contains__, numbered)]
