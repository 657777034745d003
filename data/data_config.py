"""The typed data config: fields that all datasets share, and what each dataset defines."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from stunet.errors import UserError
from stunet.files import split_lines

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class DataConfig(abc.ABC):
    """Base class of the datasets' configs; a subclass adds its own fields and the methods below.

    Attributes:
      name: Key of `data.datasets.DATASETS`, or "package.module:name" of a subclass.
      data_dir: Folder in which the datasets' records are stored.
      split: Split of the dataset, such as "train".
      num_frames: Frames of an example. 1 draws a single random frame of each clip.
      resolution: Height and width of a frame in pixels.
      fps: Frames per second.
      seed: Seed of the order of examples and of all random choices within an example.
      caption_dropout: Probability of an empty caption, for classifier-free guidance.
      crop: Height and width in pixels of a random square crop of each example. None uses whole
        frames.
      text_states: Whether batches contain cached text encoder states instead of tokens.
    """

    name: str
    data_dir: str
    split: str
    num_frames: int
    resolution: int
    fps: float
    seed: int
    caption_dropout: float
    crop: int | None = None
    text_states: bool = False

    def __post_init__(self):
        self.check_positive("num_frames", "resolution", "fps", "crop")
        if self.crop is not None and self.crop > self.resolution:
            raise UserError(f"crop: {self.crop}, expected at most the resolution {self.resolution}")
        if self.seed < 0:
            raise UserError(f"seed: {self.seed}, expected 0 or more")
        if not 0 <= self.caption_dropout <= 1:
            raise UserError(f"caption_dropout: {self.caption_dropout}, expected 0 to 1")

    def check_positive(self, *names: str) -> None:
        """Raises `UserError` if one of these fields is set and not positive."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name}: {value}, expected a positive number")

    @abc.abstractmethod
    def make_builder(self) -> tfds.core.DatasetBuilder:
        """Returns the TFDS builder.

        Its records need the feature `caption` (text). Each line of it is a caption; an example
        uses one of them.

        Raises:
          UserError: the source of the dataset is missing or invalid.
        """

    @abc.abstractmethod
    def decode(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        """Returns the clip of a record.

        Args:
          record: A record of the TFDS builder.
          rng: Source of all random choices, such as the first frame; it differs per example.

        Returns:
          `[num_frames, resolution, resolution, 3]` float32 in [-1, 1].
        """

    def captions(self, records: Sequence[Record]) -> list[tuple[str, ...]]:
        """Returns the captions of every record."""
        return [split_captions(records[index]) for index in range(len(records))]

    def select_records(self, records: Sequence[Record]) -> Sequence[Record]:
        """Returns the records to train on; a repeated record is drawn more often."""
        return records


def split_captions(record: Record) -> tuple[str, ...]:
    """Returns the captions of a record, at least one (which may be empty)."""
    return tuple(split_lines(record["caption"].decode())) or ("",)
