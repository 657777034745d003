"""TFDS builder of UCF-101, from the folder of its class folders or its zip archive."""

import functools
import io
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.stored_clips import Source, SourceVideo, StoredClips, StoredClipsConfig
from stunet.errors import UserError
from stunet.files import check_not_lfs_pointer, read_tsv_pairs, user_path
from stunet.video_io.folders import FolderListing, find_files, list_names

_SUFFIXES = (".avi",)


class Ucf101(StoredClips):
    """The videos of the archive; see `StoredClips` for the records."""

    def read_source(self) -> Source:
        """Lists every `CLASS/NAME.avi`, captioned by its class."""
        return find_class_videos(user_path(self.data_config.source), self.data_config.prompts)


@dataclass(frozen=True, kw_only=True)
class Ucf101Config(StoredClipsConfig):
    """Config of the dataset "ucf101"; `source` is its folder or zip archive.

    Attributes:
      prompts: TSV file of class and caption. None derives captions from the class names.
    """

    builder_class = Ucf101

    prompts: str | None = None

    def source_files(self) -> Mapping[str, Path]:
        """Returns the videos or the archive, and the captions."""
        path = user_path(self.source)
        if path.is_dir():
            files = {name: path / name for name in _find_videos(path).files}
        else:
            files = {"archive": _check_archive(path)}
        if self.prompts is not None:
            prompts = user_path(self.prompts)
            read_class_prompts(prompts)  # raises if the file is missing
            files["prompts"] = prompts
        return files


def find_class_videos(source: Path, prompts: str | None = None) -> Source:
    """Lists all videos of the archive.

    Args:
      source: The unpacked folder, or the `.zip` archive.
      prompts: TSV file of class and caption; videos of a class that it lacks have no caption.
        None uses the words of the class name ("ApplyEyeMakeup": "apply eye makeup").

    Raises:
      UserError: the source is neither a folder nor a zip archive or contains no video, or the TSV
        file cannot be read.
    """
    captions = None if prompts is None else read_class_prompts(user_path(prompts))

    def captioned(name: str, opener: Callable) -> SourceVideo:
        label = PurePosixPath(name).parent.name
        caption = class_caption(label) if captions is None else captions.get(label.lower())
        return SourceVideo(name, opener, (caption,) if caption else ())

    listing = _find_videos(source) if source.is_dir() else _list_archive(source)
    if not listing.files:
        reason = f" ({listing.skipped[0]})" if listing.skipped else ""
        raise UserError(f"{source}: no videos{reason}, expected CLASS/NAME.avi")

    def opener(name: str) -> Callable:
        if source.is_dir():
            return functools.partial(Path, source / name)
        return functools.partial(_open_member, source, name)

    return Source([captioned(name, opener(name)) for name in listing.files], listing.skipped)


def read_class_prompts(path: Path) -> dict[str, str]:
    """Reads a TSV file of class and caption into a dict, with class names in lower case.

    UCF-101 spells one class in two ways (HandStandPushups, HandstandPushups).

    Raises:
      UserError: the file cannot be read or has an invalid row.
    """
    prompts: dict[str, str] = {}
    for label, caption in read_tsv_pairs(path, "a class, a tab and a caption"):
        if prompts.setdefault(label.lower(), caption) != caption:
            raise UserError(f"{path}: class {label!r} has two captions, expected one per class")
    return prompts


def class_caption(label: str) -> str:
    """Splits a class name into words: "ApplyEyeMakeup" becomes "apply eye makeup"."""
    return " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", label)).lower()


def _find_videos(folder: Path) -> FolderListing:
    return find_files(folder, _SUFFIXES)


def _check_archive(archive: Path) -> Path:
    if archive.suffix.lower() == ".rar":
        raise UserError(f"{archive}: a .rar archive, expected the unpacked folder or a .zip")
    if not archive.exists():
        raise UserError(f"{archive}: no such folder or archive, expected UCF-101")
    check_not_lfs_pointer(archive)
    if archive.suffix.lower() != ".zip":
        raise UserError(f"{archive}: not a .zip, expected UCF-101's folder of classes or a .zip")
    return archive


def _list_archive(archive: Path) -> FolderListing:
    try:
        with zipfile.ZipFile(_check_archive(archive)) as file:
            return list_names((m.filename for m in file.infolist() if not m.is_dir()), _SUFFIXES)
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive}: invalid ({error}), expected a complete .zip") from error


def _open_member(archive: Path, name: str) -> io.BytesIO:
    with zipfile.ZipFile(archive) as file:
        content = io.BytesIO(file.read(name))
    content.name = name  # used in decoding errors
    return content
