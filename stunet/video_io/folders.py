"""Lists the videos and images of a folder."""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stunet.errors import UserError
from stunet.paths import AnyPath, is_remote, list_objects, object_version, user_path

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


def find_files(folder: AnyPath, suffixes: Collection[str]) -> FolderListing:
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
    if is_remote(folder):
        return _find_objects(folder, suffixes)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected a folder of videos")
    names, skipped = [], []
    for name, problem in _walk(folder):
        if problem is None:
            names.append(name)
        elif problem.startswith("folder") or _suffix(name) in suffixes:
            skipped.append(f"{printable_name(name)}: {problem}")
    listing = list_names(names, suffixes)
    problems = {name: file_problem(folder / name) for name in listing.files}
    skipped += [f"{printable_name(name)}: {text}" for name, text in problems.items() if text]
    files = tuple(name for name, text in problems.items() if text is None)
    return FolderListing(files, (*sorted(skipped), *listing.skipped))


def _find_objects(folder: AnyPath, suffixes: Collection[str]) -> FolderListing:
    sizes = list_objects(folder)
    if not sizes:
        raise UserError(f"{folder}: no such folder, expected a folder of videos")
    listing = list_names(sizes, suffixes)
    empty = [f"{printable_name(name)}: empty file" for name in listing.files if not sizes[name]]
    files = tuple(name for name in listing.files if sizes[name])
    return FolderListing(files, (*empty, *listing.skipped))


def list_names(names: Iterable[str], suffixes: Collection[str]) -> FolderListing:
    """Selects the names with certain endings, and counts the endings of the others.

    Ignores hidden files, those of operating systems, texts and tables.

    Args:
      names: Paths of files, with "/" between folders.
      suffixes: Endings in lower case; upper-case endings match, too.
    """
    names = [name for name in names if not any(map(_is_hidden, name.split("/")))]
    endings = Counter(map(_suffix, names))
    others = sorted(endings.keys() - {*suffixes, *_TEXT_SUFFIXES})
    skipped = ()
    if others:
        counts = ", ".join(f"{endings[suffix]} {suffix}" for suffix in others)
        are_images = not {*IMAGE_SUFFIXES}.isdisjoint(others) and suffixes == VIDEO_SUFFIXES
        images = "; num_frames=1 reads images" if are_images else ""
        skipped = (f"not read: {counts} (expected {', '.join(suffixes)}{images})",)
    return FolderListing(tuple(sorted(n for n in names if _suffix(n) in suffixes)), skipped)


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
    """Returns a file name with control characters and bytes that are not UTF-8 escaped."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def file_problem(path: str | AnyPath) -> str | None:
    """Returns why a file cannot be read, else None.

    Opening a pipe or a device would block or never end.
    """
    if is_remote(path):
        try:
            return None if object_version(user_path(path))[0] else "empty file"
        except FileNotFoundError:
            return "no such file"
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return "dangling link" if os.path.islink(path) else "no such file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not stat.S_ISREG(state.st_mode):
        return "not a regular file"
    return None if state.st_size else "empty file"


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
        if is_link and folder.resolve().is_relative_to((folder / name).resolve()):
            yield name, "folder is linked to a folder that contains this one"
            continue
        entered.add((state.st_dev, state.st_ino))
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            path = f"{name}/{entry.name}" if name else entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif _is_linked_folder(entry):
                links.append(path)
            else:
                yield path, None if _is_utf8(path) else "name is not UTF-8"


def _is_linked_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_hidden(part: str) -> bool:
    return (part.startswith(".") and part != ".") or part.lower() in _SYSTEM_NAMES


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
