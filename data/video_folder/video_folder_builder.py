"""TFDS builder of a folder of videos, captioned by `captions.csv` or side-car `.txt` files.

Where single frames are asked for, pictures count too.
"""

import csv
import functools
from pathlib import Path

from data.records import quiet
from data.stored_clips import Clip, StoredClips, stored_config
from stunet.errors import UserError

ENDINGS = (".mp4", ".mov", ".webm", ".avi", ".gif")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
CAPTIONS = "captions.csv"


class VideoFolder(StoredClips):
    """The videos under a folder; `StoredClips` says how they are stored."""

    def clips(self) -> list[Clip]:
        """The videos, sub-folders included, and what `captions.csv` names besides."""
        config = self.builder_config
        return find_clips(Path(config.source), config.num_frames)


def find_clips(folder: Path, num_frames: int) -> list[Clip]:
    """All videos under `folder`, and pictures for `num_frames` 1, each with its caption or None.

    Captions come from `captions.csv` in the folder (columns `file`, relative to the
    folder, and `caption`); a video that it does not name from a text file beside it
    (`dog.mp4`, `dog.txt`).

    Raises:
      UserError: no such folder, no video in it, a CSV without those columns, or no
        caption at all.
    """
    videos = _videos(folder, num_frames)
    captions = _read_csv(folder / CAPTIONS)
    names = sorted({*(str(path.relative_to(folder)) for path in videos), *captions})
    clips = [
        Clip(
            name,
            functools.partial(Path, folder / name),
            captions.get(name) or _side_car(folder / name),
        )
        for name in names
    ]
    if not any(clip.caption for clip in clips):
        raise UserError(
            f"{folder}: has no captions; add {CAPTIONS} with the columns file,caption, "
            "or a .txt file beside each video"
        )
    return clips


def make_builder(
    data_dir: str, source: str, resolution: int, fps: float, num_frames: int
) -> VideoFolder:
    """The builder whose records lie (or will lie) under `data_dir`."""
    folder = Path(source)
    config = stored_config(
        _videos(folder, num_frames) + _texts(folder),
        source=source,
        resolution=resolution,
        fps=fps,
        num_frames=num_frames,
    )
    with quiet():
        return VideoFolder(config=config, data_dir=data_dir, file_format="array_record")


def _videos(folder: Path, num_frames: int) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of videos")
    endings = ENDINGS + (PICTURES if num_frames == 1 else ())
    videos = [path for path in folder.rglob("*") if path.suffix.lower() in endings]
    if not videos:
        raise UserError(f"{folder}: holds no videos ({', '.join(endings)})")
    return videos


def _texts(folder: Path) -> list[Path]:
    return [*folder.rglob("*.txt"), *folder.glob(CAPTIONS)]


def _read_csv(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if not {"file", "caption"} <= set(reader.fieldnames or ()):
                raise UserError(f"{path}: its first line must name the columns file,caption")
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    pairs = ((row["file"], row["caption"]) for row in rows if row["file"])
    return {str(Path(file.strip())): (caption or "").strip() for file, caption in pairs}


def _side_car(video: Path) -> str | None:
    text = video.with_suffix(".txt")
    if not text.exists():
        return None
    # A stray byte in a caption is no reason to lose the clip.
    return " ".join(text.read_text(encoding="utf-8-sig", errors="replace").split()) or None
