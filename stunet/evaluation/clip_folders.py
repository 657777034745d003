"""Folders of clips, and tables of their prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stunet.errors import UserError
from stunet.files import read_tsv_pairs
from stunet.video_io import read_video

SUFFIXES = (".mp4", ".mov", ".webm", ".avi", ".mkv", ".gif")


@dataclass(frozen=True)
class ClipFolder:
    """The videos of a folder and its sub-folders, sorted by name; iterating decodes them.

    Attributes:
      folder: Path of the folder.
      names: Paths of the videos, relative to the folder.
      frames: Number of frames to read from the start of each video.
      fps: Frame rate that videos are re-timed to. None keeps each video's rate.
    """

    folder: Path
    names: tuple[str, ...]
    frames: int
    fps: float | None

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


def open_clip_folder(folder: str | Path, frames: int, fps: float | None = None) -> ClipFolder:
    """Lists the clips of a folder and its sub-folders.

    Args:
      folder: Path of the folder.
      frames: Number of frames to read from the start of each video.
      fps: Frame rate to re-time videos to. None keeps each video's rate.

    Raises:
      UserError: the folder does not exist, or contains no video.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected a folder of videos")
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
    )
    if not found:
        raise UserError(f"{folder}: no videos, expected files of {', '.join(SUFFIXES)}")
    return ClipFolder(folder, tuple(found), frames, fps)


def read_clip_prompts(path: str | Path, names: tuple[str, ...]) -> list[str]:
    """Reads the prompts of clips from a TSV file of name (relative to the folder) and prompt.

    Args:
      path: Path of the TSV file.
      names: Names of the clips.

    Returns:
      One prompt per name.

    Raises:
      UserError: the file cannot be read, has an invalid row, or lacks a name.
    """
    prompts = dict(read_tsv_pairs(Path(path), "a file's name, a tab and a prompt"))
    if missing := [name for name in names if not prompts.get(name)]:
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(f"{path}: no prompt for {missing[0]}{more}, expected one per clip")
    return [prompts[name] for name in names]
