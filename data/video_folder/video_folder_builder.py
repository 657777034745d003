"""TFDS builder of a folder of videos, captioned by `captions.csv` or a `.txt` file per video.

With `num_frames=1`, images count as videos of one frame.
"""

import csv
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.stored_clips import SourceVideo, StoredClips, StoredClipsConfig
from stunet.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".avi", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CAPTIONS = "captions.csv"


class VideoFolder(StoredClips):
    """The videos of a folder; see `StoredClips` for the records."""

    def source_videos(self) -> list[SourceVideo]:
        """Returns the videos of the folder and its sub-folders, and all in `captions.csv`."""
        return find_captioned_videos(Path(self.data_config.source), self.data_config.num_frames)


@dataclass(frozen=True, kw_only=True)
class VideoFolderConfig(StoredClipsConfig):
    """Config of the dataset "video_folder"; `source` is the folder."""

    builder_class = VideoFolder

    def source_files(self) -> Sequence[Path]:
        """Returns the videos and all files that may contain captions."""
        folder = Path(self.source)
        videos = _find_videos(folder, self.num_frames)
        return [*videos, *folder.rglob("*.txt"), *folder.glob(CAPTIONS)]


def find_captioned_videos(folder: Path, num_frames: int) -> list[SourceVideo]:
    """Returns all videos under `folder`, and images if `num_frames` is 1.

    Captions come from `captions.csv` in the folder (columns `file`, relative to the folder, and
    `caption`), otherwise from a text file beside the video (`dog.mp4`, `dog.txt`).

    Raises:
      UserError: the folder does not exist or contains no video, the CSV lacks a column, or no
        video has a caption.
    """
    videos = _find_videos(folder, num_frames)
    captions = _read_captions(folder / CAPTIONS)
    names = sorted({*(str(path.relative_to(folder)) for path in videos), *captions})
    found = [
        SourceVideo(
            name,
            functools.partial(Path, folder / name),
            captions.get(name) or _read_text_beside(folder / name),
        )
        for name in names
    ]
    if not any(video.caption for video in found):
        raise UserError(
            f"{folder}: no captions, expected {CAPTIONS} with columns file,caption or a .txt file "
            "beside each video"
        )
    return found


def _find_videos(folder: Path, num_frames: int) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected a folder of videos")
    suffixes = VIDEO_SUFFIXES + (IMAGE_SUFFIXES if num_frames == 1 else ())
    videos = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes]
    if not videos:
        raise UserError(f"{folder}: no videos, expected files of {', '.join(suffixes)}")
    return videos


def _read_captions(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if not {"file", "caption"} <= set(reader.fieldnames or ()):
                raise UserError(
                    f"{path}: columns {','.join(reader.fieldnames or ())} in the first line, "
                    "expected file,caption"
                )
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: invalid ({error}), expected CSV in UTF-8") from error
    pairs = ((row["file"], row["caption"]) for row in rows if row["file"])
    return {str(Path(file.strip())): (caption or "").strip() for file, caption in pairs}


def _read_text_beside(video: Path) -> str | None:
    text = video.with_suffix(".txt")
    if not text.exists():
        return None
    # An invalid byte in a caption is no reason to skip the video.
    return " ".join(text.read_text(encoding="utf-8-sig", errors="replace").split()) or None
