"""Base of the datasets of real videos: decoded once, stored as uint8 frames."""

import abc
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from data.data_config import DataConfig, Record
from data.records import progress, silence_config_warning
from stunet.errors import UserError
from stunet.video_io import decode_frames, to_float

# Videos are stored in segments of this many frames up to twice as many: long enough for a random
# start, short enough to read quickly.
SEGMENT = 16


class SourceVideo(NamedTuple):
    """A video of the source.

    Attributes:
      name: Path relative to the source.
      open: Returns the path or the content of the file.
      caption: None if the source has none for it; the video is then skipped.
    """

    name: str
    open: Callable[[], str | Path | BinaryIO]
    caption: str | None


@dataclass(frozen=True, kw_only=True)
class StoredClipsConfig(DataConfig):
    """Base of the configs of datasets that are built from video files.

    Attributes:
      source: Folder or archive of the videos. Empty is accepted in config files, but not by
        `make_builder`.
    """

    builder_class: ClassVar[type["StoredClips"]]

    source: str

    @abc.abstractmethod
    def source_files(self) -> Sequence[Path]:
        """Returns the files that the records depend on.

        Raises:
          UserError: the source does not exist or contains no video.
        """

    def make_builder(self) -> "StoredClips":
        """Returns the TFDS builder; its name changes with the fields and the source's files."""
        if not self.source:  # Path("") would be the current folder
            raise UserError(f"config.data.source: empty, expected the videos of {self.name!r}")
        builder_config = StoredClipsBuilderConfig(name=self._builder_name(), data_config=self)
        with silence_config_warning():
            return self.builder_class(
                config=builder_config, data_dir=self.data_dir, file_format="array_record"
            )

    def decode(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        """Returns a random window of `num_frames` of a stored segment."""
        frames = record["frames"]
        start = int(rng.integers(len(frames) - self.num_frames + 1))
        return to_float(frames[start : start + self.num_frames])

    def _builder_name(self) -> str:
        digest = blake2b(digest_size=5)
        for path in sorted(self.source_files()):
            state = path.stat()
            digest.update(f"{path.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        size = f"{self.resolution}px-{self.fps:g}fps-{self.num_frames}f"
        return f"{digest.hexdigest()}-{size}".replace(".", "_")


@dataclass(kw_only=True)
class StoredClipsBuilderConfig(tfds.core.BuilderConfig):
    """Passes the data config to the builder."""

    data_config: StoredClipsConfig


class StoredClips(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Records of `frames` [T, H, W, 3] uint8, `caption`, and the name of the source `file`.

    Each video is re-timed to `fps`, centre-cropped, downsampled to `resolution` with
    anti-aliasing, and cut into segments of `num_frames` or more. Videos that cannot be decoded,
    are too short or have no caption are skipped, and listed with the reason at the end.

    Raises (from `download_and_prepare`):
      UserError: every video was skipped.
    """

    VERSION = tfds.core.Version("1.0.0")

    @abc.abstractmethod
    def source_videos(self) -> list[SourceVideo]:
        """Returns the videos of the source.

        Raises:
          UserError: the source does not exist or contains no video.
        """

    @property
    def data_config(self) -> Any:
        """The data config that the builder was made from."""
        return self.builder_config.data_config

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.data_config.resolution
        frames = tfds.features.Tensor(
            shape=(None, side, side, 3), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        )
        texts = {name: tfds.features.Text() for name in ("caption", "file")}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"frames": frames, **texts})
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        videos, skipped = self.source_videos(), []
        for video in progress(videos, "videos"):
            try:
                segments = _read_segments(video, self.data_config)
            except UserError as error:
                reason = str(error).rpartition(f"{video.name}: ")[2]
                skipped.append(f"  {video.name}: {reason}")
                continue
            for index, frames in enumerate(segments):
                record = {"frames": frames, "caption": video.caption, "file": video.name}
                yield f"{video.name}#{index}", record
        if skipped:
            print(f"skipped {len(skipped)} of {len(videos)} videos:", file=sys.stderr)
            print("\n".join(skipped), file=sys.stderr)
        if len(skipped) == len(videos):
            raise UserError(
                f"{self.data_config.source}: none of {len(videos)} videos is usable "
                f"({skipped[0].strip()})"
            )


def cut(frames: Iterable[np.ndarray], minimum: int, length: int) -> Iterator[np.ndarray]:
    """Cuts a stream of frames into consecutive segments `[T, H, W, 3]`.

    Every segment has `length` frames, except the last one, which includes the remainder and has
    fewer than `2 * length`. A video of fewer than `minimum` frames yields no segment.
    """
    pending: list[np.ndarray] = []
    for frame in frames:
        pending.append(frame)
        if len(pending) == 2 * length:
            yield np.stack(pending[:length])
            del pending[:length]
    if len(pending) >= minimum:
        yield np.stack(pending)


def _read_segments(video: SourceVideo, config: StoredClipsConfig) -> list[np.ndarray]:
    if not video.caption:
        raise UserError("no caption")
    frames = decode_frames(video.open(), config.fps, config.resolution)
    count = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal count
        for frame in frames:
            count += 1
            yield frame

    # A list, so that a file that fails to decode half-way yields no records.
    segments = list(cut(counted(), config.num_frames, max(SEGMENT, config.num_frames)))
    if not segments:
        raise UserError(
            f"too short: {count} frames at {config.fps:g} fps, expected {config.num_frames}"
        )
    return segments
