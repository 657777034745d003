"""Dataset of the captioned videos in a folder, in any layout of `data.layouts`.

With `num_frames=1`, images count as videos of one frame.
"""

from dataclasses import dataclass

from data.layouts import read_collection
from data.sources import Source
from data.stored_clips import StoredClipsConfig
from stunet.paths import user_path


@dataclass(frozen=True, kw_only=True)
class VideoFolderConfig(StoredClipsConfig):
    """Config of the dataset "video_folder"; `source` is the folder.

    Attributes:
      layout: Key of `data.layouts.LAYOUTS`. None detects the layout.
      filter: Conditions on numeric columns that all must hold, such as
        "aesthetic score>5,fps>=24". None uses all clips.
    """

    layout: str | None = None
    filter: str | None = None

    def read_source(self) -> Source:
        """Lists the clips of the folder and its sub-folders."""
        return read_collection(user_path(self.source), self.num_frames, self.layout, self.filter)
