"""TFDS builder of a folder of videos, captioned by `captions.csv` or a `.txt` file per video.

With `num_frames=1`, images count as videos of one frame.
"""

import functools
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.captions import merge_captions, read_caption_file, read_caption_table
from data.stored_clips import Source, SourceVideo, StoredClips, StoredClipsConfig
from stunet.errors import UserError
from stunet.files import user_path
from stunet.video_io.folders import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    FileNames,
    FolderListing,
    file_problem,
    find_files,
)

CAPTIONS = "captions.csv"


class VideoFolder(StoredClips):
    """The videos of a folder; see `StoredClips` for the records."""

    def read_source(self) -> Source:
        """Lists the videos of the folder and its sub-folders, and all in `captions.csv`."""
        return find_captioned_videos(
            user_path(self.data_config.source), self.data_config.num_frames
        )


@dataclass(frozen=True, kw_only=True)
class VideoFolderConfig(StoredClipsConfig):
    """Config of the dataset "video_folder"; `source` is the folder."""

    builder_class = VideoFolder

    def source_files(self) -> Mapping[str, Path]:
        """Returns the videos and all files that contain captions."""
        folder = user_path(self.source)
        names = [*_find_videos(folder, self.num_frames).files, *_caption_files(folder).values()]
        if (table := _caption_table(folder)) is not None:
            names.append(table.name)
        return {name: folder / name for name in names}


def find_captioned_videos(folder: Path, num_frames: int) -> Source:
    """Lists all videos under `folder`, and images if `num_frames` is 1.

    Captions come from `captions.csv` in the folder (columns `file`, relative to the folder, and
    `caption`), otherwise from a text file beside the video (`dog.mp4`, `dog.txt`).

    Raises:
      UserError: the folder does not exist or contains no video, the CSV is invalid, or no video has
        a caption.
    """
    listing = _find_videos(folder, num_frames)
    table = _caption_table(folder)
    rows = {} if table is None else read_caption_table(table)
    captions = merge_captions(rows, FileNames(listing.files))
    beside = _caption_files(folder)
    stems = FileNames(beside)  # a text file may be spelled in another case
    texts = {
        name: beside[stem]
        for name in {*listing.files, *captions}
        if (stem := stems.find(_stem(name))) in beside
    }
    videos = [
        _captioned(folder, name, captions.get(name, ()), texts.get(name))
        for name in sorted({*listing.files, *captions})
    ]
    if not any(video.captions for video in videos):
        raise UserError(
            f"{folder}: no captions, expected {CAPTIONS} with columns file,caption or a .txt file "
            "beside each video"
        )
    skipped = listing.skipped
    if table is not None and (unused := sorted(n for n in texts if captions.get(n))):
        reason = f"not read, {table.name} has captions of their videos ({texts[unused[0]]}, ...)"
        skipped = (*skipped, f"{len(unused)} .txt files: {reason}")
    if damaged := [video for video in videos if "\ufffd" in "".join(video.captions)]:
        reason = f"captions contain characters that are not UTF-8 ({damaged[0].name}, ...)"
        skipped = (*skipped, f"{len(damaged)} videos: {reason}")
    return Source(videos, skipped)


def _captioned(folder: Path, name: str, captions: tuple[str, ...], text: str | None) -> SourceVideo:
    problem = file_problem(folder / name)
    if not captions and text is not None:
        try:
            captions = read_caption_file(folder / text)
        except UserError as error:
            problem = problem or f"caption: {error}"
    return SourceVideo(name, functools.partial(Path, folder / name), captions, problem)


def _find_videos(folder: Path, num_frames: int) -> FolderListing:
    suffixes = VIDEO_SUFFIXES + (IMAGE_SUFFIXES if num_frames == 1 else ())
    listing = find_files(folder, suffixes)
    if not listing.files:
        skipped = f" ({listing.skipped[0]})" if listing.skipped else ""
        raise UserError(f"{folder}: no videos{skipped}, expected files of {', '.join(suffixes)}")
    return listing


def _caption_table(folder: Path) -> Path | None:
    """Returns the table of captions, whose name may be in upper case."""
    paths = (path for path in sorted(folder.iterdir()) if path.name.lower() == CAPTIONS)
    tables = [path for path in paths if path.is_file()]
    if len(tables) > 1:
        names = " and ".join(path.name for path in tables)
        raise UserError(f"{folder}: contains {names}, expected one table of captions")
    return next(iter(tables), None)


def _caption_files(folder: Path) -> dict[str, str]:
    """Returns the text files by their paths without ending."""
    return {_stem(name): name for name in find_files(folder, (".txt",)).files}


def _stem(name: str) -> str:
    return str(PurePosixPath(unicodedata.normalize("NFC", name)).with_suffix(""))
