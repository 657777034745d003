"""The clips of a source: which part of which file, with which captions."""

import contextlib
import functools
import io
import zipfile
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple

from stunet.video_io.folders import file_problem

_SAMPLE = 2**16  # bytes at each end of a video that identify its content


class MediaFile(NamedTuple):
    """A video file, or a member of a zip or tar archive.

    Attributes:
      path: The file, or the archive.
      member: Name of the member within the archive. Empty for a file.
      offset: Position of an uncompressed member in bytes (tar). Unused for zip archives.
      size: Size of the member in bytes. None for a file.
    """

    path: Path
    member: str = ""
    offset: int = 0
    size: int | None = None

    def open(self) -> Path | BinaryIO:
        """Returns the path of a file, or the content of a member."""
        if not self.member:
            return self.path
        if self.path.suffix.lower() == ".zip":
            with zipfile.ZipFile(self.path) as archive:
                content = io.BytesIO(archive.read(self.member))
        else:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                content = io.BytesIO(file.read(self.size))
        content.name = self.member  # used in decoding errors
        return content

    def digest(self) -> str:
        """Identifies the content: size, and both ends or a checksum. Empty if it cannot be read.

        Independent of the file's name and modification time.
        """
        if file_problem(self.path):  # opening a pipe would block
            return ""
        with contextlib.suppress(OSError, zipfile.BadZipFile, KeyError):
            if self.member and self.path.suffix.lower() == ".zip":
                size, checksum = _checksums(self.path, self.path.stat().st_mtime_ns)[self.member]
                return f"{size} {checksum:08x}"
            with self.path.open("rb") as file:
                size = file.seek(0, io.SEEK_END) if self.size is None else self.size
                file.seek(self.offset)
                digest = blake2b(file.read(min(_SAMPLE, size)), digest_size=16)
                rest = min(_SAMPLE, max(0, size - _SAMPLE))
                file.seek(self.offset + size - rest)
                digest.update(file.read(rest))
            return f"{size} {digest.hexdigest()}"
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


@functools.lru_cache(maxsize=8)
def _checksums(archive: Path, modified: int) -> dict[str, tuple[int, int]]:
    """Returns size and CRC of a zip archive's members; `modified` invalidates the cache."""
    with zipfile.ZipFile(archive) as file:
        return {member.filename: (member.file_size, member.CRC) for member in file.infolist()}
