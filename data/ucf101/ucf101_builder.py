"""TFDS builder of UCF-101, from the folder of its class folders or its zip archive."""

import functools
import io
import re
import zipfile
from pathlib import Path, PurePosixPath

from data.records import quiet
from data.stored_clips import Clip, StoredClips, stored_config
from stunet.errors import UserError
from stunet.files import read_tsv_pairs


class Ucf101(StoredClips):
    """The videos of the archive; `StoredClips` says how they are stored."""

    def clips(self) -> list[Clip]:
        """Every `CLASS/NAME.avi`, captioned by its class."""
        return find_clips(Path(self.builder_config.source), self.builder_config.prompts)


def find_clips(source: Path, prompts: str | None = None) -> list[Clip]:
    """All videos of the archive, sorted by name.

    Args:
      source: the unpacked folder, or the `.zip`.
      prompts: a TSV of class name and caption; without it the caption is the class
        name taken apart ("ApplyEyeMakeup": "apply eye makeup"). A class that the TSV
        leaves out has no caption.

    Raises:
      UserError: the source is neither, or holds no video; the TSV cannot be read.
    """
    captions = None if prompts is None else read_prompts(Path(prompts))

    def clip(name: str, opener) -> Clip:
        label = PurePosixPath(name).parent.name
        caption = class_caption(label) if captions is None else captions.get(label.lower())
        return Clip(name, opener, caption)

    if source.is_dir():
        found = {path.relative_to(source).as_posix(): path for path in _videos(source)}
        clips = [clip(name, functools.partial(Path, path)) for name, path in found.items()]
    else:
        names = _zip_names(source)
        clips = [clip(name, functools.partial(_open_member, source, name)) for name in names]
    if not clips:
        raise UserError(f"{source}: holds no CLASS/NAME.avi")
    return sorted(clips)


def read_prompts(path: Path) -> dict[str, str]:
    """Lower-case class name -> caption, from a TSV.

    The archive itself spells one class in two ways (HandStandPushups), hence the case.
    """
    rows = read_tsv_pairs(path, "a class, a tab and a caption")
    return {label.lower(): caption for label, caption in rows}


def class_caption(label: str) -> str:
    """A class name taken apart at its capitals."""
    return " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", label)).lower()


def make_builder(
    data_dir: str,
    source: str,
    resolution: int,
    fps: float,
    num_frames: int,
    prompts: str | None = None,
) -> Ucf101:
    """The builder whose records lie (or will lie) under `data_dir`."""
    if prompts is not None:
        read_prompts(Path(prompts))  # refuses one that is absent, before its date is asked for
    path = Path(source)
    files = _videos(path) if path.is_dir() else [_checked(path)]
    config = stored_config(
        [*files, *([Path(prompts)] if prompts else [])],
        source=source,
        resolution=resolution,
        fps=fps,
        num_frames=num_frames,
        prompts=prompts,
    )
    with quiet():
        return Ucf101(config=config, data_dir=data_dir, file_format="array_record")


def _videos(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix.lower() == ".avi"]


def _checked(archive: Path) -> Path:
    if archive.suffix.lower() == ".rar":
        raise UserError(f"{archive}: unpack the .rar first, and give the folder that it makes")
    if not archive.exists():
        raise UserError(f"{archive}: no such folder or archive")
    if archive.suffix.lower() != ".zip":
        raise UserError(f"{archive}: expected the folder of UCF-101's classes, or a .zip of it")
    return archive


def _zip_names(archive: Path) -> list[str]:
    try:
        with zipfile.ZipFile(_checked(archive)) as file:
            return [name for name in file.namelist() if name.lower().endswith(".avi")]
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive}: not a complete zip archive ({error})") from error


def _open_member(archive: Path, name: str) -> io.BytesIO:
    with zipfile.ZipFile(archive) as file:
        content = io.BytesIO(file.read(name))
    content.name = name  # what an error calls it
    return content
