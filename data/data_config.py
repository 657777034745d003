"""The typed data config: fields that all datasets share, and what each dataset defines."""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from data import records
from data.parts import BuildParts
from stunet.errors import UserError
from stunet.files import split_lines
from stunet.paths import AnyPath, user_path
from stunet.schema import FrameRate, Range, Seed, check_fields

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class DataConfig(abc.ABC):
    """Base class of the datasets' configs; a subclass adds its own fields and the methods below.

    Datasets of video files subclass `data.stored_clips.StoredClipsConfig`, others `TfdsDataConfig`.

    Attributes:
      name: Key of `data.datasets.DATASETS`, or "package.module:name" of a subclass.
      data_dir: Folder in which the datasets' records are stored, on disk or in a bucket (gs://).
      split: Split of the dataset, such as "train".
      num_frames: Frames of an example. 1 draws a single random frame of each clip.
      resolution: Height and width of a frame in pixels.
      fps: Frames per second.
      seed: Seed of the order of examples and of all random choices within an example.
      caption_dropout: Probability of an empty caption, for classifier-free guidance.
      crop: Height and width in pixels of a random square crop of each example. None uses whole
        frames.
      text_states: Whether batches contain cached text encoder states instead of tokens.
      workers: Processes that decode examples. 0 uses threads of this process. None uses one
        process per core, up to 8, for encoded clips, else threads.
    """

    name: str
    data_dir: str
    split: str
    num_frames: Annotated[int, Range(1, 100_000)]
    resolution: Annotated[int, Range(1, 2**14)]
    fps: FrameRate
    seed: Seed
    caption_dropout: Annotated[float, Range(0, 1)]
    crop: int | None = None
    text_states: bool = False
    workers: Annotated[int, Range(0, 1024)] | None = None

    video_dtype: ClassVar[str] = "float32"  # of `decode`

    def __post_init__(self):
        check_fields(self)
        if self.crop is not None and self.crop > self.resolution:
            raise UserError(f"crop: {self.crop}, expected at most the resolution {self.resolution}")

    @abc.abstractmethod
    def prepare(self, build_parts: BuildParts, check: Callable[[str], None]) -> "DataConfig":
        """Builds the dataset under `data_dir`, unless it exists.

        Args:
          build_parts: Builds the parts of datasets that have several.
          check: Called with the fingerprint before anything is built; may raise.

        Returns:
          A config that identifies the built dataset without its source, for the methods below.

        Raises:
          UserError: the source is missing or contains nothing usable, or the disk is full.
        """

    @abc.abstractmethod
    def folder(self) -> AnyPath:
        """Returns the folder of the built dataset."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Returns a name that changes with the content of the dataset's clips and captions."""

    @abc.abstractmethod
    def open_records(self) -> Sequence[Record]:
        """Returns the records of the split, with random access. They can be pickled.

        Raises:
          UserError: the dataset has not been built, or has no such split.
        """

    @abc.abstractmethod
    def decode(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        """Returns the clip of a record.

        Args:
          record: A record of the dataset. Each line of its text `caption` is a caption.
          rng: Source of all random choices, such as the first frame; it differs per example.

        Returns:
          `[num_frames, resolution, resolution, 3]`, float32 in [-1, 1] or uint8.
        """

    def draw(self, record: Record, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """Draws an example of a record.

        Args:
          record: A record of the dataset.
          rng: Source of all random choices; it differs per example.

        Returns:
          The clip as `decode` returns it, cropped to `crop`; and one of its captions.
        """
        video = self.decode_crop(record, rng)
        texts = split_captions(record)
        return video, texts[int(rng.integers(len(texts))) if len(texts) > 1 else 0]

    def decode_crop(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        """Returns the clip of a record, cropped to `crop` at random; see `decode`."""
        return self.crop_video(self.decode(record, rng), rng)

    def crop_video(self, video: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns a random crop of a clip; the whole clip if `crop` is None."""
        top, left, height, width = self.draw_crop(rng)
        return video[:, top : top + height, left : left + width]

    def draw_crop(self, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Returns top, left, height and width in pixels of an example's crop."""
        if self.crop is None:
            return 0, 0, self.resolution, self.resolution
        top, left = (int(rng.integers(self.resolution - self.crop + 1)) for _ in range(2))
        return top, left, self.crop, self.crop

    def captions(self) -> list[str]:
        """Returns the captions of all records of the split."""
        found = self.open_records()
        return [text for index in range(len(found)) for text in split_captions(found[index])]

    def read_workers(self) -> int:
        """Returns the number of processes that decode examples; 0 for threads."""
        return self.workers or 0


@dataclass(frozen=True, kw_only=True)
class TfdsDataConfig(DataConfig):
    """Base class of the configs of datasets with a TFDS builder of their own."""

    @abc.abstractmethod
    def make_builder(self) -> tfds.core.DatasetBuilder:
        """Returns the TFDS builder in `data_dir`. Its records need the feature `caption` (text).

        Raises:
          UserError: the source of the dataset is missing or invalid.
        """

    def select_records(self, records: Sequence[Record]) -> Sequence[Record]:
        """Returns the records to train on; a repeated record is drawn more often."""
        return records

    def prepare(self, build_parts: BuildParts, check: Callable[[str], None]) -> "TfdsDataConfig":
        """Builds the dataset in this process; see `DataConfig.prepare`."""
        del build_parts
        check(self.fingerprint())
        records.build(
            lambda folder: replace(self, data_dir=folder).make_builder(), user_path(self.data_dir)
        )
        return self

    def folder(self) -> AnyPath:
        """Returns the folder of the built dataset."""
        return user_path(self.make_builder().data_path)

    def fingerprint(self) -> str:
        """Returns the builder's name, config and version."""
        return self.make_builder().info.full_name

    def open_records(self) -> Sequence[Record]:
        """Returns the records of the split that `select_records` selects."""
        return self.select_records(records.read(self.make_builder(), self.split))


def split_captions(record: Record) -> tuple[str, ...]:
    """Returns the captions of a record, at least one (which may be empty)."""
    return tuple(split_lines(record["caption"].decode())) or ("",)
