"""Lists the videos and images of a folder."""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stunet.errors import UserError

# Animated images are videos; a still in one of these formats is a video of one frame.
ANIMATION_SUFFIXES = (".gif", ".webp", ".avif", ".apng")
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".3gp", ".ogv", ".flv", ".wmv"),
    *ANIMATION_SUFFIXES,
)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".heic", ".heif", ".bmp", ".tif", ".tiff")

# Files that describe videos, which are not reported as unread.
_TEXT_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".md", ".srt", ".vtt", "")
_SYSTEM_NAMES = ("__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin")


@dataclass(frozen=True)
class FolderListing:
    """Files of a folder and its sub-folders.

    Attributes:
      files: Paths below the folder, with "/" between folders, sorted.
      skipped: A line for each file or folder that was skipped, and for the endings of other files:
        "NAME: reason".
    """

    files: tuple[str, ...]
    skipped: tuple[str, ...]


def find_files(folder: Path, suffixes: Collection[str]) -> FolderListing:
    """Lists the files with certain endings in a folder and its sub-folders.

    Ignores hidden files and those of operating systems (`._clip.mp4`, `__MACOSX`). Enters a linked
    folder once. Skips what cannot be read: dangling links, files that are not regular (pipes,
    sockets, devices) or empty, names that are not UTF-8, and folders without permission.

    Args:
      folder: An existing folder.
      suffixes: Endings in lower case; upper-case endings match, too.

    Raises:
      UserError: The folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected a folder of videos")
    files, skipped, others = [], [], Counter()
    for name, problem in _walk(folder):
        suffix = os.path.splitext(name)[1].lower()
        if problem is None and suffix not in suffixes:
            if suffix not in _TEXT_SUFFIXES:
                others[suffix] += 1
        elif problem is None:
            files.append(name)
        elif suffix in suffixes or not suffix or problem.startswith("folder"):
            skipped.append(f"{printable_name(name)}: {problem}")
    if others:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        skipped.append(f"not read: {counts} (expected {', '.join(suffixes)})")
    return FolderListing(tuple(sorted(files)), tuple(sorted(skipped)))


class FileNames:
    """Finds files by the names that tables give them.

    Accepts another Unicode normalisation, "\\\\" between folders, "./", and, if there is one such
    file only, another case.

    Args:
      names: Paths of the files, with "/" between folders.
    """

    def __init__(self, names: Iterable[str]):
        self._names = dict.fromkeys(names)
        self._normal = {normalize_name(name): name for name in self._names}
        self._folded: dict[str, set[str]] = {}
        for name in self._names:
            self._folded.setdefault(normalize_name(name).casefold(), set()).add(name)

    def find(self, name: str) -> str:
        """Returns the path of a file, or the name if there is none."""
        if name in self._names:
            return name
        normal = normalize_name(name)
        if normal in self._normal:
            return self._normal[normal]
        folded = self._folded.get(normal.casefold(), set())
        return next(iter(folded)) if len(folded) == 1 else name


def normalize_name(name: str) -> str:
    """Returns a path in Unicode's composed form (NFC) with "/" between folders and without "./"."""
    return str(PurePosixPath(unicodedata.normalize("NFC", name).replace("\\", "/")))


def printable_name(name: str) -> str:
    """Returns a file name with bytes that are not UTF-8 escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _walk(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Yields (path below the folder, problem or None) for every file, and for skipped folders.

    Linked folders follow after all others, so that a folder inside the tree keeps its own name.
    """
    links: list[str] = []
    entered: set[tuple[int, int]] = set()
    pending = [""]
    while pending or links:
        is_link = not pending
        name = links.pop(0) if is_link else pending.pop()
        try:
            state = os.stat(folder / name)
            entries = sorted(os.scandir(folder / name), key=lambda entry: entry.name)
        except OSError as error:
            yield name, f"folder cannot be read ({error.strerror})"
            continue
        if (state.st_dev, state.st_ino) in entered:
            yield name, "folder is linked to a folder that is listed already"
            continue
        entered.add((state.st_dev, state.st_ino))
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_NAMES:
                continue
            path = f"{name}/{entry.name}" if name else entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif _is_linked_folder(entry):
                links.append(path)
            else:
                yield path, _problem(entry, path)


def _is_linked_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _problem(entry: os.DirEntry, path: str) -> str | None:
    """Returns why a file cannot be read, else None."""
    try:
        state = entry.stat()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not stat.S_ISREG(state.st_mode):
        return "not a regular file"
    if not state.st_size:
        return "empty file"
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "name is not UTF-8"
    return None
