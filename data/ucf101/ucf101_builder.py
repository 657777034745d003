"""The dataset UCF-101, from the folder of its class folders or its zip archive."""

import re
import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath

from data.sources import MediaFile, Source, SourceClip
from data.stored_clips import StoredClipsConfig
from stunet.errors import UserError
from stunet.files import check_not_lfs_pointer, read_tsv_pairs
from stunet.paths import AnyPath, user_path
from stunet.video_io.folders import FolderListing, find_files, list_names

_SUFFIXES = (".avi",)


@dataclass(frozen=True, kw_only=True)
class Ucf101Config(StoredClipsConfig):
    """Config of the dataset "ucf101"; `source` is its folder or zip archive.

    Attributes:
      prompts: TSV file of class and caption. None derives captions from the class names.
    """

    prompts: str | None = None

    def read_source(self) -> Source:
        """Lists every `CLASS/NAME.avi`, captioned by its class."""
        return find_class_videos(user_path(self.source), self.prompts)


def find_class_videos(source: AnyPath, prompts: str | None = None) -> Source:
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

    is_folder = source.is_dir()
    listing = find_files(source, _SUFFIXES) if is_folder else _list_archive(source)
    if not listing.files:
        reason = f" ({listing.skipped[0]})" if listing.skipped else ""
        raise UserError(f"{source}: no videos{reason}, expected CLASS/NAME.avi")

    def captioned(name: str) -> SourceClip:
        label = PurePosixPath(name).parent.name
        caption = class_caption(label) if captions is None else captions.get(label.lower())
        file = MediaFile(source / name) if is_folder else MediaFile(source, name)
        return SourceClip(name, file, (caption,) if caption else ())

    return Source([captioned(name) for name in listing.files], listing.skipped)


def read_class_prompts(path: AnyPath) -> dict[str, str]:
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


def _check_archive(archive: AnyPath) -> AnyPath:
    if archive.suffix.lower() == ".rar":
        raise UserError(f"{archive}: a .rar archive, expected the unpacked folder or a .zip")
    if not archive.exists():
        raise UserError(f"{archive}: no such folder or archive, expected UCF-101")
    check_not_lfs_pointer(archive)
    if archive.suffix.lower() != ".zip":
        raise UserError(f"{archive}: not a .zip, expected UCF-101's folder of classes or a .zip")
    return archive


def _list_archive(archive: AnyPath) -> FolderListing:
    try:
        with _check_archive(archive).open("rb") as content, zipfile.ZipFile(content) as file:
            return list_names((m.filename for m in file.infolist() if not m.is_dir()), _SUFFIXES)
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive}: invalid ({error}), expected a complete .zip") from error
