"""Paths on disk and in Google Cloud Storage (`gs://BUCKET/PATH`), and complete writes to both.

A path on disk is a `pathlib.Path`. A path in a bucket is an `etils.epath.Path` with the methods of
`pathlib.Path`, over gcsfs (`stunet.bucket_files`). A bucket has no append, rename, lock or memory
map, and no folders: a folder exists while an object lies under its name. One write of an object is
atomic.
"""

import base64
import contextlib
import importlib.util
import os
import posixpath
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from stunet.errors import UserError, writing

# Read before the first request: epath's TensorFlow backend is not used, and gcsfs's support of
# hierarchical buckets asks a second service about every bucket (60 s if there is none).
os.environ.setdefault("EPATH_USE_TF", "0")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# Listings are not cached in child processes either, which may use gcsfs's own class.
os.environ.setdefault("FSSPEC_GCS", '{"use_listings_cache": false}')

if TYPE_CHECKING:
    from etils import epath

    AnyPath = Path | epath.Path
else:
    AnyPath = PurePath  # the base of both: epath is imported for the first gs:// path

_GS = "gs://"
_MAX_NAME = 255  # bytes
_MAX_PATH = 3840  # bytes; Linux has 4096, and names are appended to a user's folder
_MARKER = "config.json"  # written last: a folder with it is complete
_SCHEME = re.compile("[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def user_path(path: str | AnyPath) -> AnyPath:
    """Returns the path that a user wrote, on disk or in a bucket.

    Args:
      path: A local path, in which `~` or `~NAME` is that user's home directory, or
        "gs://BUCKET/PATH". A path object is returned as it is, except for `~`.

    Raises:
      UserError: There is no such user; no file system can have the path; the address is neither
        local nor gs://BUCKET; or the extra `gcs` is not installed.
    """
    text = os.fspath(path)
    _check_possible(text)
    if text.startswith(_GS):
        return _bucket_path(text)
    if _SCHEME.match(text):
        raise UserError(
            f"{text}: no such file or folder, expected a local path or gs://BUCKET/PATH"
        )
    if text == "gs:" or text.startswith("gs:/"):
        raise UserError(f"{text}: invalid address, expected gs://BUCKET/PATH")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: unknown home directory, expected a path") from error


def output_file(text: str) -> AnyPath:
    """Returns the path of a file to write that a user wrote, on disk or in a bucket.

    Raises:
      UserError: As `user_path`, or the path is that of a folder ("new/", ".."), the name has
        nothing before its ending ("..mp4"), or a line break, which would split the lines that
        commands print.
    """
    path = user_path(text)
    if text.splitlines() not in ([], [text]):
        raise UserError(f"{' '.join(text.splitlines())}: contains a line break, expected a path")
    if text.endswith(("/", "/.")) or not path.stem.strip("."):
        raise UserError(f"{text}: not the name of a file, expected one such as video.mp4")
    return path


def check_outputs(
    outputs: Iterable[tuple[str, AnyPath]], inputs: Iterable[tuple[str, AnyPath]] = ()
) -> None:
    """Checks that a command writes every file once and none that it reads, before any work.

    Args:
      outputs: Name of the option, and path of a file to write.
      inputs: Name of the option, and path of a file to read.

    Raises:
      UserError: A file is written twice, or read and written, maybe by symbolic links.
    """
    users = {resolved(path): name for name, path in inputs}
    for name, path in outputs:
        if (file := resolved(path)) in users:
            raise UserError(f"{name}: {path} is also {users[file]}, expected another file")
        users[file] = name


def _check_possible(text: str) -> None:
    """Raises a `UserError` if no file system can have a path."""
    if "\0" in text:
        raise UserError(f"{text}: contains a NUL character, expected a path")
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise UserError(f"{text}: cannot be encoded ({error.reason}), expected a path") from error
    if len(encoded) > _MAX_PATH or max(map(len, encoded.split(b"/"))) > _MAX_NAME:
        raise UserError(
            f"{text}: too long, expected a path of at most {_MAX_PATH} bytes and names of at most "
            f"{_MAX_NAME} bytes"
        )


def _bucket_path(text: str) -> AnyPath:
    if not text.removeprefix(_GS).split("/")[0]:
        raise UserError(f"{text}: names no bucket, expected gs://BUCKET/PATH")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{text}: needs the extra gcs: pip install 'stunet[gcs]'")
    import fsspec
    from etils import epath

    for protocol in ("gs", "gcs"):
        fsspec.register_implementation(protocol, "stunet.bucket_files.BucketFiles", clobber=True)
    return epath.Path(text)


def is_remote(path: str | AnyPath) -> bool:
    """Returns whether a path names an object or folder in a bucket."""
    return os.fspath(path).startswith(_GS)


@contextlib.contextmanager
def local_input(path: AnyPath) -> Iterator[Path]:
    """Yields a local file with the content of `path`: the file itself, or a temporary download.

    The download has the name of the object.

    Raises:
      UserError: The object does not exist, or the bucket cannot be read. A local file is not
        opened.
    """
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="stunet-") as folder:
        local = Path(folder) / path.name
        try:
            _files(path).get_file(str(path), str(local))
        except FileNotFoundError as error:
            raise UserError(f"{path}: does not exist, expected a file") from error
        yield local


@contextlib.contextmanager
def local_output(path: AnyPath) -> Iterator[Path]:
    """Yields a local path to write to. The file becomes `path` if the block succeeds.

    An existing file is replaced in one step: by a rename on disk, by one upload to a bucket. If the
    block fails, nothing is left. The yielded path has the suffix of `path`.

    Raises:
      UserError: The bucket cannot be written.
      OSError: The disk cannot be written.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="stunet-") as folder:
            local = Path(folder) / path.name
            yield local
            upload_file(local, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not with the name in it, which may be as long as the file system permits.
    hashed = zlib.crc32(os.fsencode(path.name))
    temporary = path.with_name(f".{hashed:08x}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: AnyPath, text: str) -> None:
    """Writes a text (UTF-8) and its folder. An existing file is replaced in one step.

    Raises:
      UserError: The disk is full or read-only, or the bucket cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: AnyPath, content: bytes) -> None:
    """Writes a file and its folder. An existing file is replaced in one step.

    Raises:
      UserError: The disk is full or read-only, or the bucket cannot be written.
    """
    if is_remote(path):
        _files(path).pipe_file(str(path), content)
        return
    with writing(path), local_output(path) as new:
        new.write_bytes(content)


def resolved(path: AnyPath) -> AnyPath:
    """Returns a path without ".." and, on disk, without symbolic links.

    Raises:
      UserError: The links form a circle, or the disk cannot be read.
    """
    if not is_remote(path):
        try:
            return Path(path).resolve()
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path}: cannot be resolved ({error}), expected a path") from error
    return user_path(_GS + posixpath.normpath(str(path).removeprefix(_GS)))


def absolute(path: AnyPath) -> AnyPath:
    """Returns a path that does not depend on the current folder, with its symbolic links."""
    return path if is_remote(path) else path.absolute()


def is_complete(folder: AnyPath, last: str) -> bool:
    """Returns whether a folder was written completely.

    Args:
      folder: A folder that is renamed into place on disk.
      last: Name of its file that is written last to a bucket.
    """
    return (folder / last if is_remote(folder) else folder).exists()


def object_version(path: AnyPath) -> tuple[int, str]:
    """Returns the size in bytes and the generation of an object, which changes with every write.

    Raises:
      UserError: The bucket cannot be read.
      FileNotFoundError: There is no such object.
    """
    info = _files(path).info(str(path))
    if info["type"] != "file":
        raise FileNotFoundError(str(path))
    return info["size"], info["generation"]


def read_range(path: AnyPath, start: int, stop: int, generation: str | None = None) -> bytearray:
    """Reads bytes [start, stop) of an object, by several concurrent requests if they are many.

    Args:
      path: Path in a bucket.
      start: First byte.
      stop: End of the range.
      generation: Generation to read. None reads the newest.

    Raises:
      UserError: The bucket cannot be read.
      FileNotFoundError: There is no such object, or it has been replaced.
    """
    return _files(path).read_range(str(path), start, stop, generation)


def list_objects(folder: AnyPath) -> dict[str, int]:
    """Returns the sizes of all objects below a folder in a bucket, by name relative to the folder.

    Raises:
      UserError: The bucket cannot be listed.
    """
    return {name: size for name, (size, _) in list_checksums(folder).items()}


def object_checksum(path: AnyPath) -> tuple[int, str] | None:
    """Returns size and CRC-32C (eight hexadecimal digits) of an object; None if it is missing."""
    try:
        info = _files(path).info(str(path))
    except FileNotFoundError:
        return None
    return None if info["type"] != "file" else _checksum_of(info)


def list_checksums(folder: AnyPath) -> dict[str, tuple[int, str]]:
    """Returns size and CRC-32C (eight hexadecimal digits) of objects; see `list_objects`."""
    root = str(folder).removeprefix(_GS).rstrip("/") + "/"
    found = _files(folder).find(str(folder), detail=True)
    return {
        name.removeprefix(root): _checksum_of(info)
        for name, info in found.items()
        # Consoles create empty objects "NAME/" to show folders.
        if name.startswith(root) and not name.endswith("/")
    }


def _checksum_of(info: dict[str, Any]) -> tuple[int, str]:
    return info["size"], base64.b64decode(info["crc32c"]).hex()


def existing(paths: Iterable[AnyPath]) -> set[AnyPath]:
    """Returns the paths that exist. Objects in a bucket are found by one listing of each folder."""
    paths = set(paths)
    remote = {path for path in paths if is_remote(path)}
    listed = {
        folder / name
        for folder in {path.parent for path in remote}
        for name in list_objects(folder)
    }
    return {path for path in paths - remote if path.exists()} | (remote & listed)


def check_bucket_writable(path: AnyPath) -> None:
    """Checks that an object could be written, without writing one.

    Raises:
      UserError: The bucket does not exist or cannot be written.
    """
    _files(path).check_upload(str(path))


def upload_file(source: Path, target: AnyPath) -> None:
    """Uploads a local file. An existing object is replaced in one step.

    Raises:
      UserError: The bucket cannot be written.
    """
    _files(target).put_file(str(source), str(target))


def upload_folder(source: Path, target: AnyPath) -> None:
    """Replaces a folder in a bucket by a local one.

    A `config.json` of the folder itself makes it complete: an existing one remains valid until the
    new files are in the bucket (as a hidden folder beside it). Then it is deleted, the new files
    are moved to their places on the server, those that the new folder lacks are deleted, and the
    new `config.json` is written last.

    Args:
      source: Local folder.
      target: Folder in a bucket.

    Raises:
      UserError: The bucket cannot be written.
    """
    files = _files(target)
    names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    others = sorted(set(names) - {_MARKER})
    new = target.with_name(f".{target.name}.new")
    remove_folder(new)  # of a killed upload
    for name in others:
        upload_file(source / name, new / name)
    (target / _MARKER).unlink(missing_ok=True)
    for name in others:
        files.cp_file(str(new / name), str(target / name))
    for name in list_objects(target).keys() - set(names):
        (target / name).unlink(missing_ok=True)
    if _MARKER in names:
        upload_file(source / _MARKER, target / _MARKER)
    remove_folder(new)


def remove_folder(folder: AnyPath) -> None:
    """Deletes a folder in a bucket, if there is one.

    Raises:
      UserError: The bucket cannot be written.
    """
    if list_objects(folder):
        _files(folder).rm(str(folder), recursive=True)


def _files(path: AnyPath):
    import fsspec

    user_path(path)  # registers BucketFiles
    return fsspec.filesystem("gs")
