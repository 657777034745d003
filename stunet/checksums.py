"""Checksums of the files of a folder: `checksums.json`, written last and compared before use.

    {"config.json": {"bytes": 1024, "crc32c": "0a1b2c3d"}, "part/file": ...}

CRC-32C detects every change of up to 32 consecutive bits and misses one in 4 billion others. It is
the checksum that Cloud Storage keeps of each object, so files in a bucket are compared without
reading them. Of files that end with their own CRC-32C, such as those of Orbax, it does not notice
an exchange of two of equal size. Files that the list lacks are ignored.
"""

import functools
import json
import logging
import posixpath
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from stunet.errors import UserError
from stunet.files import check_not_lfs_pointer, read_bytes
from stunet.paths import AnyPath, is_remote, list_checksums, object_checksum, write_text

CHECKSUMS = "checksums.json"
_BLOCK_BYTES = 2**18  # fits into a processor's cache, from which the checksum is computed
# A file can change again without a new time of modification, whose steps are up to 2 s.
_SETTLED_SECONDS = 3


class DamageError(UserError):
    """A file is missing, or differs from its checksum."""


class FileChecksum(NamedTuple):
    """Size and CRC-32C (eight hexadecimal digits) of a file."""

    bytes: int
    crc32c: str


def checksum(content: bytes) -> int:
    """Returns the CRC-32C of bytes."""
    return google_crc32c.value(content)


def write_checksums(folder: AnyPath, select: Callable[[str], bool] = lambda name: True) -> None:
    """Writes the checksums of files in a folder and its subfolders, replacing existing ones.

    Args:
      folder: A complete folder.
      select: Returns whether a file, by its path relative to the folder, has a checksum.

    Raises:
      UserError: The disk is full or read-only, or the bucket cannot be written.
    """
    if is_remote(folder):
        found = _list_remote(folder)
    else:
        paths = [path for path in folder.rglob("*") if path.is_file()]
        names = [path.relative_to(folder).as_posix() for path in paths]
        found = {name: _read_checksum(folder / name) for name in filter(select, names)}
    names = sorted(name for name in found if name != CHECKSUMS and select(name))
    content = {name: found[name]._asdict() for name in names}
    write_text(folder / CHECKSUMS, json.dumps(content, indent=2) + "\n")


def check_files(
    folder: AnyPath,
    names: Iterable[str] | None = None,
    *,
    share: slice = slice(None),
    size_only: Callable[[str], bool] = lambda name: False,
    progress: Callable[[int], None] = lambda size: None,
) -> bool:
    """Compares files with the folder's checksums. Files on disk are read completely.

    A file is read once by a process, unless it changes.

    Args:
      folder: The folder.
      names: Files to compare, relative to the folder. None for all that have a checksum.
      share: Selects files in the order of their names, so that processes can share the work.
      size_only: Returns whether only the size of a file is compared, because its reader compares
        checksums of its content.
      progress: Called with the size of each file in bytes after it was compared.

    Returns:
      Whether the folder has checksums. Those of older versions have none.

    Raises:
      DamageError: A file is missing, or has another size or content; names the first one.
      UserError: A file or the bucket cannot be read now.
    """
    expected = read_checksums(folder)
    if expected is None:
        return False
    selected = sorted(expected if names is None else names)[share]
    for name in selected:
        if name not in expected:
            raise DamageError(f"{folder / CHECKSUMS}: lacks {name}, expected its checksum")
    found = {}
    if is_remote(folder) and selected:
        found = _list_remote(folder) if names is None else _ask_for(folder, selected)
    for name in selected:
        path = folder / name
        try:
            if is_remote(folder):
                actual = found[name]
            elif size_only(name):
                actual = expected[name]._replace(bytes=path.stat().st_size)
            else:
                actual = _file_checksum(path)
        except (KeyError, FileNotFoundError):
            raise DamageError(f"{path}: no such file, but {CHECKSUMS} lists it") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        if actual != expected[name]:
            check_not_lfs_pointer(path)
            raise DamageError(
                f"{path}: damaged or changed ({actual.bytes} bytes, CRC-32C {actual.crc32c}), "
                f"expected {expected[name].bytes} bytes and {expected[name].crc32c} as in "
                f"{CHECKSUMS}"
            )
        progress(actual.bytes)
    return True


@functools.cache
def report_unchecked(folder: AnyPath) -> None:
    """Reports once that damage to a folder of an older version will not be noticed."""
    logging.getLogger("stunet").warning(
        "%s: not covered by checksums (no %s), damage will not be noticed", folder, CHECKSUMS
    )


def read_checksums(folder: AnyPath) -> dict[str, FileChecksum] | None:
    """Returns the stored checksums of a folder by name, or None if it has none.

    Raises:
      DamageError: The file of checksums is damaged, or names a file outside of the folder.
      UserError: It cannot be read now.
    """
    path = folder / CHECKSUMS
    if not path.exists():
        return None
    content = read_bytes(path)
    try:
        found = {name: FileChecksum(**values) for name, values in json.loads(content).items()}
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise DamageError(
            f"{path}: damaged ({error}), expected bytes and crc32c of files"
        ) from error
    for name in found:
        if "\0" in name or posixpath.normpath(f"/{name}") != f"/{name}" or name == "":
            raise DamageError(f"{path}: invalid name {name!r}, expected a file in the folder")
    return found


def _list_remote(folder: AnyPath) -> dict[str, FileChecksum]:
    return {name: FileChecksum(*values) for name, values in list_checksums(folder).items()}


def _ask_for(folder: AnyPath, names: Iterable[str]) -> dict[str, FileChecksum]:
    """Returns the checksums of a few objects, those that exist, without listing the folder."""
    found = {name: object_checksum(folder / name) for name in names}
    return {name: FileChecksum(*values) for name, values in found.items() if values is not None}


def _file_checksum(path: Path) -> FileChecksum:
    status = path.stat()
    if time.time() - status.st_mtime < _SETTLED_SECONDS:
        return _read_checksum(path)
    version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return _cached_checksum(path.absolute(), version)


@functools.lru_cache(maxsize=2**16)
def _cached_checksum(path: Path, version: tuple[int, ...]) -> FileChecksum:
    return _read_checksum(path)


def _read_checksum(path: Path) -> FileChecksum:
    size = crc = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            crc = google_crc32c.extend(crc, block)
            size += len(block)
    return FileChecksum(size, f"{crc:08x}")
