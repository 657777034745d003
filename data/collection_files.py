"""Index of the videos, texts and tables in a folder and in the tar archives below it."""

import bisect
import posixpath
import tarfile
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from data.sources import MediaFile
from data.tables import TABLE_SUFFIXES, has_surrogates, parse_json
from stunet.errors import BucketError, UserError
from stunet.files import check_not_lfs_pointer, read_text
from stunet.paths import AnyPath, absolute, is_remote, list_objects, user_path
from stunet.video_io.folders import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    FileNames,
    file_problem,
    find_files,
    list_names,
    normalize_name,
    printable_name,
)

_TEXT_SUFFIXES = (".txt", ".json")
_COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".lz4")
_METADATA = "metadata.json"  # other JSON files describe one video each
_BLOCK = 512  # bytes of a block of a tar archive
_READ_AHEAD = 1000  # texts in a bucket that are in memory
_READ_THREADS = 32  # for texts in a bucket


class CollectionFiles:
    """The files of a collection. Only the headers of archives are read.

    Args:
      folder: An existing folder.
      num_frames: With 1, images count as videos.

    Attributes:
      folder: The folder.
      videos: Videos by their names, sorted: paths below the folder with "/" between folders, and
        "ARCHIVE.tar/MEMBER" for members of archives.
      tables: Names of the tables, sorted.
      archives: Names of the archives, sorted.
      skipped: A line for each file that was skipped, and for the endings of other files.

    Raises:
      UserError: the folder does not exist or contains no video, or an archive is compressed or
        damaged.
    """

    def __init__(self, folder: AnyPath, num_frames: int):
        suffixes = VIDEO_SUFFIXES + (IMAGE_SUFFIXES if num_frames == 1 else ())
        names = find_files(folder, (*_TEXT_SUFFIXES, *TABLE_SUFFIXES, ".tar")).files
        self.folder = folder
        self.archives = tuple(name for name in names if _suffix(name) == ".tar")
        self.tables = tuple(
            name
            for name in names
            if _suffix(name) in TABLE_SUFFIXES or posixpath.basename(name).lower() == _METADATA
        )
        listing = find_files(folder, (*suffixes, ".tar") if self.archives else suffixes)
        self._texts = {name: None for name in names if _suffix(name) in _TEXT_SUFFIXES}
        self._read: set[str] = set()
        self._ahead: dict[str, str | UserError] = {}
        self._members: dict[str, MediaFile] = {}
        skipped = []
        for archive in self.archives:
            for name, file in _members(folder / archive, archive).items():
                if problem := _name_problem(name):
                    if _suffix(name) in suffixes:
                        skipped.append(f"{printable_name(name)}: {problem}")
                else:
                    self._members[name] = file
        self.skipped = (*listing.skipped, *skipped)
        members = list_names(self._members, suffixes)
        self._texts.update(dict.fromkeys(n for n in self._members if _suffix(n) in _TEXT_SUFFIXES))
        videos = (n for n in listing.files if _suffix(n) != ".tar")
        self.videos = tuple(sorted((*videos, *members.files)))
        if not self.videos:
            self._check_not_compressed()
            reason = f" ({self.skipped[0]})" if self.skipped else ""
            raise UserError(f"{folder}: no videos{reason}, expected files of {', '.join(suffixes)}")

    def media(self, name: str) -> MediaFile:
        """Returns the file or the member of this name."""
        if (member := self._members.get(name)) is not None:
            return member
        return MediaFile(user_path(name) if is_remote(name) else self.folder / name)

    def problem(self, name: str) -> str | None:
        """Returns why a file below or beside the folder cannot be read, else None."""
        if not is_remote(self.folder) or is_remote(name):
            return file_problem(name if is_remote(name) else f"{self.folder}/{name}")
        size = self._sizes.get(posixpath.normpath(name))
        return ("no such file" if size is None else "empty file") if not size else None

    def find_video(self, patterns: Sequence[str], base: str = "") -> str | None:
        """Returns the name of the video that a table means, or None.

        Args:
          patterns: Names in order of preference: paths relative to `base` or to the folder,
            "**/NAME" for a file in any sub-folder or archive; "PATH.*" has any ending. Other
            spellings of paths as in `FileNames`.
          base: Sub-folder that contains the table.
        """
        for pattern in patterns:
            if pattern.startswith("**/") or pattern.endswith(".*"):
                name = self._by_pattern.get(normalize_name(pattern))
            else:
                name = self._find_path(pattern, base)
            if name is not None:
                return name
        return None

    def text_for(self, stem: str, suffix: str = ".txt") -> str | None:
        """Returns the name of the text file of a video, or None.

        Args:
          stem: Path of the video without its ending, or "**/NAME" for any sub-folder.
          suffix: ".txt" or ".json".
        """
        name = stem + suffix
        if name in self._texts:
            return name
        if name.startswith("**/"):
            return self._texts_anywhere.get(normalize_name(name))
        name = self._text_names.find(name)  # may be spelled in another case
        return name if name in self._texts else None

    def read_text(self, name: str) -> str:
        """Reads a text file; invalid UTF-8 is replaced by U+FFFD.

        Raises:
          UserError: it cannot be read.
        """
        self._read.add(name)
        file = self.media(name)
        if not file.member:  # an invalid byte in a caption is no reason to skip the video
            return self._read_ahead(name) if is_remote(file.path) else _read_text(file.path)
        with file.open() as content:
            return content.read().decode("utf-8-sig", errors="replace")

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a JSON object; the names of its values are returned in lower case.

        Raises:
          UserError: it cannot be read or contains another value.
        """
        try:
            values = parse_json(self.read_text(name))
        except ValueError as error:
            raise UserError(f"{name}: invalid JSON ({error})") from error
        if not isinstance(values, dict):
            raise UserError(f"{name}: a JSON {type(values).__name__}, expected an object")
        return {key.lower(): value for key, value in values.items()}

    def texts(self, suffix: str) -> list[str]:
        """Returns the names of all files with the ending ".txt" or ".json"."""
        return [name for name in self._texts if _suffix(name) == suffix]

    def unread_texts(self, videos: Iterable[str]) -> list[str]:
        """Returns the names of text files beside videos that have not been read."""
        if not self.texts(".txt"):
            return []
        texts = {self.text_for(stem(name)) for name in videos}
        return sorted(text for text in texts if text and text not in self._read)

    def _find_path(self, path: str, base: str) -> str | None:
        if path.startswith("/") or is_remote(path):
            try:
                path, base = user_path(path).relative_to(self._absolute_folder).as_posix(), ""
            except ValueError:  # outside the folder
                return path if file_problem(path) is None else None
        for candidate in dict.fromkeys((posixpath.normpath(posixpath.join(base, path)), path)):
            if candidate in self._videos:
                return candidate
            name = self._video_names.find(candidate)
            if name in self._videos:
                return name
            if name in self._paths_in_archives:
                return self._paths_in_archives[name]
            # Any ending is accepted, and files beside the folder.
            if self.problem(candidate) is None:
                return posixpath.normpath(candidate)
        return None

    def _read_ahead(self, name: str) -> str:
        """Reads a text in a bucket, and the next ones with it: one request takes a long time."""
        if name not in self._ahead:
            start = bisect.bisect_left(self._text_list, name)
            batch = [name, *self._text_list[start + 1 : start + _READ_AHEAD]]
            with ThreadPoolExecutor(_READ_THREADS) as pool:
                paths = [self.media(other).path for other in batch]
                self._ahead = dict(zip(batch, pool.map(_read_text_or_error, paths), strict=True))
        if isinstance(text := self._ahead[name], UserError):
            raise text
        return text

    @cached_property
    def _text_list(self) -> list[str]:
        """Names of the texts outside of archives, sorted as videos are."""
        return sorted(name for name in self._texts if name not in self._members)

    @cached_property
    def _absolute_folder(self) -> AnyPath:
        return absolute(self.folder)

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return list_objects(self.folder)

    @cached_property
    def _videos(self) -> frozenset[str]:
        return frozenset(self.videos)

    @cached_property
    def _video_names(self) -> FileNames:
        return FileNames((*self.videos, *self._paths_in_archives))

    @cached_property
    def _text_names(self) -> FileNames:
        return FileNames(self._texts)

    @cached_property
    def _paths_in_archives(self) -> dict[str, str]:
        """Names by the paths within the archives."""
        names = (name for name in self.videos if name in self._members)
        return _first((self._members[name].member, name) for name in names)

    @cached_property
    def _by_pattern(self) -> dict[str, str]:
        """Names by "**/NAME", "**/STEM.*" and "PATH.*"."""
        return _first(
            (unicodedata.normalize("NFC", pattern), name)
            for name in self.videos
            for base in [posixpath.basename(name)]
            for pattern in (f"**/{base}", f"**/{stem(base)}.*", f"{stem(name)}.*")
        )

    @cached_property
    def _texts_anywhere(self) -> dict[str, str]:
        return _first((normalize_name(f"**/{posixpath.basename(n)}"), n) for n in self._texts)

    def _check_not_compressed(self) -> None:
        for name in find_files(self.folder, _COMPRESSED).files:
            raise UserError(f"{self.folder / name}: compressed archive, expected an unpacked one")


def _read_text(path: AnyPath) -> str:
    return read_text(path, errors="replace")


def _read_text_or_error(path: AnyPath) -> str | UserError:
    try:
        return _read_text(path)
    except BucketError:
        raise
    except UserError as error:
        return error


def stem(name: str) -> str:
    """Returns a path without its ending, in Unicode's composed form (NFC)."""
    return posixpath.splitext(unicodedata.normalize("NFC", name))[0]


def _members(path: AnyPath, name: str) -> dict[str, MediaFile]:
    """Returns the regular files of a tar archive by "ARCHIVE/MEMBER"."""
    check_not_lfs_pointer(path)
    members = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # would keep all headers in memory
                if member.isreg() and member.sparse is None and member.size:
                    media = MediaFile(path, member.name, member.offset_data, member.size)
                    # Absolute names are relative to the archive, as for `tar`.
                    inner = posixpath.normpath(member.name.lstrip("/"))
                    members[posixpath.join(name, inner)] = media
            file.seek(archive.offset)
            if len(file.read(_BLOCK)) < _BLOCK:
                raise tarfile.ReadError("no block of zeros at the end")
    except tarfile.TarError as error:
        raise UserError(
            f"{path}: damaged, truncated or compressed ({error}), expected an uncompressed tar"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return members


def _name_problem(name: str) -> str | None:
    """Returns why the member of an archive with this name is skipped, or None."""
    if has_surrogates(name):
        return "name is not UTF-8"
    return "outside the folder of its archive" if ".." in name.split("/") else None


def _first(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns a dict in which the first of several equal keys wins."""
    values: dict[str, str] = {}
    for key, value in pairs:
        values.setdefault(key, value)
    return values


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()
