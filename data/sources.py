"""The clips of a source: which part of which file, with which captions."""

import contextlib
import functools
import io
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple

from stunet.errors import UserError
from stunet.paths import AnyPath, is_remote, local_input, object_version, read_range
from stunet.video_io.folders import file_problem

MAX_MEMBER_BYTES = 2**31  # of a member of an archive, which is read into memory
_SAMPLE = 2**16  # bytes at each end of a video that identify its content


class MediaFile(NamedTuple):
    """A video file, or a member of a zip or tar archive.

    Attributes:
      path: The file or the archive, on disk or in a bucket.
      member: Name of the member within the archive. Empty for a file.
      offset: Position of an uncompressed member in bytes (tar). Unused for zip archives.
      size: Size of the member in bytes. None for a file.
    """

    path: AnyPath
    member: str = ""
    offset: int = 0
    size: int | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Path | BinaryIO]:
        """Yields the path of a file on disk, or the content of a member.

        A file in a bucket is downloaded to a temporary one. The process keeps the last one, because
        a table may cut many clips from one video.

        Raises:
          UserError: the object has vanished, the bucket cannot be read (`BucketError`), or a member
            has more than `MAX_MEMBER_BYTES`.
        """
        if self.member:
            yield self._read_member()
        elif is_remote(self.path):
            download = _download(self.path, file_version(self.path))
            yield download.path
        else:
            yield self.path

    def _read_member(self) -> BinaryIO:
        if self.path.suffix.lower() == ".zip":
            with self.path.open("rb") as file, zipfile.ZipFile(file) as archive:
                size = archive.getinfo(self.member).file_size
                self._check_size(size)
                with archive.open(self.member) as member:
                    # Without the size, a member that contains more would be decompressed first.
                    content = io.BytesIO(member.read(size))
        else:
            self._check_size(self.size)
            content = io.BytesIO(_read(self.path, self.offset, self.offset + self.size))
        content.name = self.member  # used in decoding errors
        return content

    def _check_size(self, size: int) -> None:
        if size > MAX_MEMBER_BYTES:
            raise UserError(
                f"{self.path}: {self.member}: {size / 2**30:.4g} GiB, expected at most "
                f"{MAX_MEMBER_BYTES / 2**30:g} GiB in an archive"
            )

    def digest(self) -> str:
        """Identifies the content: size, and both ends or a checksum. Empty if it cannot be read.

        Independent of the file's name and modification time.
        """
        if not is_remote(self.path) and file_problem(self.path):  # opening a pipe would block
            return ""
        with contextlib.suppress(OSError, zipfile.BadZipFile, KeyError):
            if self.member and self.path.suffix.lower() == ".zip":
                size, checksum = _checksums(self.path, file_version(self.path))[self.member]
                return f"{size} {checksum:08x}"
            size = _size(self.path) if self.size is None else self.size
            if not size:
                return ""
            end = self.offset + size
            head = _read(self.path, self.offset, self.offset + min(_SAMPLE, size))
            tail = _read(self.path, max(end - _SAMPLE, self.offset + len(head)), end)
            return f"{size} {blake2b(head + tail, digest_size=16).hexdigest()}"
        return ""


class SourceClip(NamedTuple):
    """A clip of the source.

    Attributes:
      name: Path relative to the source, unique together with `span`.
      file: Where the clip is stored.
      captions: Captions of the clip. Empty if the source has none for it; it is then skipped.
      span: Start and end within the file in seconds. None for the whole file.
      problem: Why the clip is skipped. None if nothing is known.
      content: Digest of the file when the dataset was planned. None before.
    """

    name: str
    file: MediaFile
    captions: tuple[str, ...]
    span: tuple[float, float] | None = None
    problem: str | None = None
    content: str | None = None


class Source(NamedTuple):
    """The clips of a source.

    Attributes:
      clips: All clips, sorted by name and span.
      skipped: A line for each file or row that is not among them, with the reason.
      summary: What was found, in one line ("OpenVid-1M: 120 rows, 118 files, 2 missing"). None if
        the dataset has nothing to report.
    """

    clips: list[SourceClip]
    skipped: tuple[str, ...] = ()
    summary: str | None = None


class _Download:
    """A temporary copy of an object in a bucket, deleted with this value."""

    def __init__(self, path: AnyPath):
        folder = tempfile.mkdtemp(prefix="stunet-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        with local_input(path) as local:
            self.path = Path(shutil.move(local, folder))


@functools.lru_cache(maxsize=1)
def _download(path: AnyPath, version: str) -> _Download:
    """Downloads an object; `version` invalidates the cache."""
    del version
    return _Download(path)


def _read(path: AnyPath, start: int, end: int) -> bytes:
    if is_remote(path):
        return read_range(path, start, end) if end > start else b""  # an empty range reads all
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def _size(path: AnyPath) -> int:
    return object_version(path)[0] if is_remote(path) else path.stat().st_size


def file_version(path: AnyPath) -> str:
    """Returns what changes when a file is written; empty if it is missing."""
    try:
        return object_version(path)[1] if is_remote(path) else str(path.stat().st_mtime_ns)
    except FileNotFoundError:  # whoever reads the file reports it
        return ""


@functools.lru_cache(maxsize=8)
def _checksums(archive: AnyPath, version: str) -> dict[str, tuple[int, int]]:
    """Returns size and CRC of a zip archive's members; `version` invalidates the cache."""
    del version
    with archive.open("rb") as content, zipfile.ZipFile(content) as file:
        return {member.filename: (member.file_size, member.CRC) for member in file.infolist()}
