"""TFDS builder of UCF-101, from the folder of its class folders or its zip archive."""

import functools
import io
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.stored_clips import SourceVideo, StoredClips, StoredClipsConfig
from stunet.errors import UserError
from stunet.files import read_tsv_pairs


class Ucf101(StoredClips):
    """The videos of the archive; see `StoredClips` for the records."""

    def source_videos(self) -> list[SourceVideo]:
        """Returns every `CLASS/NAME.avi`, captioned by its class."""
        return find_class_videos(Path(self.data_config.source), self.data_config.prompts)


@dataclass(frozen=True, kw_only=True)
class Ucf101Config(StoredClipsConfig):
    """Config of the dataset "ucf101"; `source` is its folder or zip archive.

    Attributes:
      prompts: TSV file of class and caption. None derives captions from the class names.
    """

    builder_class = Ucf101

    prompts: str | None = None

    def source_files(self) -> Sequence[Path]:
        """Returns the videos or the archive, and the captions."""
        prompts = []
        if self.prompts is not None:
            read_class_prompts(Path(self.prompts))  # raises if the file is missing
            prompts = [Path(self.prompts)]
        path = Path(self.source)
        files = _find_videos(path) if path.is_dir() else [_check_archive(path)]
        return [*files, *prompts]


def find_class_videos(source: Path, prompts: str | None = None) -> list[SourceVideo]:
    """Returns all videos of the archive, sorted by name.

    Args:
      source: The unpacked folder, or the `.zip` archive.
      prompts: TSV file of class and caption; videos of a class that it lacks have no caption.
        None uses the words of the class name ("ApplyEyeMakeup": "apply eye makeup").

    Raises:
      UserError: the source is neither a folder nor a zip archive or contains no video, or the TSV
        file cannot be read.
    """
    captions = None if prompts is None else read_class_prompts(Path(prompts))

    def captioned(name: str, opener: Callable) -> SourceVideo:
        label = PurePosixPath(name).parent.name
        caption = class_caption(label) if captions is None else captions.get(label.lower())
        return SourceVideo(name, opener, caption)

    if source.is_dir():
        paths = {path.relative_to(source).as_posix(): path for path in _find_videos(source)}
        videos = [captioned(name, functools.partial(Path, path)) for name, path in paths.items()]
    else:
        names = _zip_names(source)
        videos = [captioned(name, functools.partial(_open_member, source, name)) for name in names]
    if not videos:
        raise UserError(f"{source}: no videos, expected CLASS/NAME.avi")
    return sorted(videos)


def read_class_prompts(path: Path) -> dict[str, str]:
    """Reads a TSV file of class and caption into a dict, with class names in lower case.

    UCF-101 spells one class in two ways (HandStandPushups, HandstandPushups).

    Raises:
      UserError: the file cannot be read or has an invalid row.
    """
    rows = read_tsv_pairs(path, "a class, a tab and a caption")
    return {label.lower(): caption for label, caption in rows}


def class_caption(label: str) -> str:
    """Splits a class name into words: "ApplyEyeMakeup" becomes "apply eye makeup"."""
    return " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", label)).lower()


def _find_videos(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix.lower() == ".avi"]


def _check_archive(archive: Path) -> Path:
    if archive.suffix.lower() == ".rar":
        raise UserError(f"{archive}: a .rar archive, expected the unpacked folder or a .zip")
    if not archive.exists():
        raise UserError(f"{archive}: no such folder or archive, expected UCF-101")
    if archive.suffix.lower() != ".zip":
        raise UserError(f"{archive}: not a .zip, expected UCF-101's folder of classes or a .zip")
    return archive


def _zip_names(archive: Path) -> list[str]:
    try:
        with zipfile.ZipFile(_check_archive(archive)) as file:
            return [name for name in file.namelist() if name.lower().endswith(".avi")]
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive}: invalid ({error}), expected a complete .zip") from error


def _open_member(archive: Path, name: str) -> io.BytesIO:
    with zipfile.ZipFile(archive) as file:
        content = io.BytesIO(file.read(name))
    content.name = name  # used in decoding errors
    return content
