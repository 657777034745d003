"""Folders of clips, and tables of their prompts."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stunet.errors import UserError
from stunet.files import read_tsv_pairs
from stunet.paths import AnyPath, user_path
from stunet.video_io import probe, read_video
from stunet.video_io.folders import ANIMATION_SUFFIXES, VIDEO_SUFFIXES, FileNames, find_files


@dataclass(frozen=True)
class ClipFolder:
    """The videos of a folder and its sub-folders, sorted by name; iterating decodes them.

    Attributes:
      folder: Path of the folder.
      names: Paths of the videos, relative to the folder.
      frames: Number of frames to read from the start of each video.
      fps: Frame rate that videos are re-timed to. None keeps each video's rate.
      skipped: A line for each file that is not read, with the reason.
    """

    folder: AnyPath
    names: tuple[str, ...]
    frames: int
    fps: float | None
    skipped: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[np.ndarray, float]]:
        """Yields clips `[frames, H, W, 3]` in [-1, 1], which may differ in size, and their fps.

        Raises:
          UserError: a file is not a readable video, or too short.
        """
        for name in self.names:
            clip, fps = read_video(self.folder / name, fps=self.fps, max_frames=self.frames)
            if len(clip) < self.frames:
                at = "" if self.fps is None else f" at {self.fps:g} fps"
                raise UserError(
                    f"{self.folder / name}: {len(clip)} frames{at}, expected {self.frames} or more "
                    "(--frames)"
                )
            yield clip, fps

    def rate_warning(self) -> str | None:
        """Returns a warning if re-timing repeats frames of some videos, else None.

        Raises:
          UserError: a file is not a readable video.
        """
        if self.fps is None:
            return None
        rates = {name: probe(self.folder / name).fps for name in self.names}
        slow = {name: rate for name, rate in rates.items() if 0 < 1.05 * rate < self.fps}
        if not slow:
            return None
        name = min(slow, key=slow.__getitem__)
        return (
            f"{self.folder}: {len(slow)} of {len(rates)} videos have fewer than {self.fps:g} "
            f"frames per second (the slowest {slow[name]:g}: {name}); their frames are repeated"
        )


def open_clip_folder(folder: str | AnyPath, frames: int, fps: float | None = None) -> ClipFolder:
    """Lists the clips of a folder and its sub-folders.

    Args:
      folder: Path of the folder.
      frames: Number of frames to read from the start of each video.
      fps: Frame rate to re-time videos to. None keeps each video's rate.

    Raises:
      UserError: the folder does not exist, or contains no video.
    """
    folder = user_path(folder)
    listing = find_files(folder, VIDEO_SUFFIXES)
    stills = {name for name in listing.files if _is_still(folder / name)}
    names = tuple(name for name in listing.files if name not in stills)
    skipped = (
        *listing.skipped,
        *(f"{name}: an image, expected a video" for name in sorted(stills)),
    )
    if not names:
        reason = f" ({skipped[0]})" if skipped else ""
        raise UserError(
            f"{folder}: no videos{reason}, expected files of {', '.join(VIDEO_SUFFIXES)}"
        )
    return ClipFolder(folder, names, frames, fps, skipped)


def _is_still(path: AnyPath) -> bool:
    return path.suffix.lower() in ANIMATION_SUFFIXES and probe(path).num_frames == 1


def read_clip_prompts(path: str | AnyPath, names: tuple[str, ...]) -> list[str]:
    """Reads the prompts of clips from a TSV file of name (relative to the folder) and prompt.

    Args:
      path: Path of the TSV file.
      names: Names of the clips.

    Returns:
      One prompt per name.

    Raises:
      UserError: the file cannot be read, has an invalid row, or lacks a name.
    """
    path, files = user_path(path), FileNames(names)
    prompts: dict[str, str] = {}
    for listed, prompt in read_tsv_pairs(path, "a file's name, a tab and a prompt"):
        if prompts.setdefault(files.find(listed), prompt) != prompt:
            raise UserError(f"{path}: {listed} has two prompts, expected one per clip")
    if missing := [name for name in names if not prompts.get(name)]:
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(f"{path}: no prompt for {missing[0]}{more}, expected one per clip")
    return [prompts[name] for name in names]
