"""Folders of clips, and the texts that go with them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stunet.errors import UserError
from stunet.files import read_tsv_pairs
from stunet.video_io import read_video

ENDINGS = (".mp4", ".mov", ".webm", ".avi", ".mkv", ".gif")


@dataclass(frozen=True)
class ClipFolder:
    """The first frames of every video in a folder and the folders in it, in the order of names.

    Attributes:
      folder: where.
      names: of the files, relative to it.
      frames: that are taken of each.
      fps: that they are re-timed to; None for as they are.
    """

    folder: Path
    names: tuple[str, ...]
    frames: int
    fps: float | None

    def __iter__(self) -> Iterator[tuple[np.ndarray, float]]:
        """Clips `[frames, H, W, 3]` in [-1, 1], each of its own size, and their rates.

        Raises:
          UserError: a file is no readable video, or too short.
        """
        for name in self.names:
            clip, fps = read_video(self.folder / name, fps=self.fps, max_frames=self.frames)
            if len(clip) < self.frames:
                at = "" if self.fps is None else f" at {self.fps:g} a second"
                raise UserError(
                    f"{self.folder / name}: has {len(clip)} frames{at}, but {self.frames} of each "
                    "clip are measured; take fewer (--frames), or put it elsewhere"
                )
            yield clip, fps


def open_folder(folder: str | Path, frames: int, fps: float | None = None) -> ClipFolder:
    """The clips of a folder.

    Raises:
      UserError: there is no such folder, or no video in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in ENDINGS
    )
    if not found:
        raise UserError(f"{folder}: holds no video ({', '.join(ENDINGS)})")
    return ClipFolder(folder, tuple(found), frames, fps)


def read_prompts(path: str | Path, names: tuple[str, ...]) -> list[str]:
    """The text of each of these files, from a TSV: a name relative to their folder, a tab, a text.

    Raises:
      UserError: the file cannot be read, has a row of another form, or lacks one of the names.
    """
    prompts = dict(read_tsv_pairs(Path(path), "a file's name, a tab and a text"))
    if missing := [name for name in names if not prompts.get(name)]:
        more = f", nor for {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(f"{path}: has no text for {missing[0]}{more}")
    return [prompts[name] for name in names]
