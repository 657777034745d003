"""TFDS builder of the moving-shapes world: attributes, seeds and captions, without pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

import numpy as np
import tensorflow_datasets as tfds

from data.data_config import Record, TfdsDataConfig
from data.moving_shapes.render import NOMINAL_SECONDS, render_at
from data.moving_shapes.vocabulary import MOTIONS, Attributes, caption, draw_attributes
from data.records import make_builder, progress
from stunet.errors import UserError
from stunet.schema import Range

ATTRIBUTES = tuple(field.name for field in fields(Attributes))
SPLITS = ("train", "heldout")


@dataclass(frozen=True, kw_only=True)
class MovingShapesConfig(TfdsDataConfig):
    """Config of the dataset "moving_shapes", rendered while training.

    Attributes:
      num_examples: Number of records of the split `train`.
      clip_frames: Length of a clip in frames, of which an example is a random window of
        `num_frames`. None uses `num_frames`.
      texture: Standard deviation of the background's texture, for values in 0 to 1.
      motions: Motions to sample from; repetition acts as a weight. Empty means all, uniformly.
    """

    num_examples: Annotated[int, Range(1, 10**8)]
    clip_frames: int | None = None
    texture: Annotated[float, Range(0, 1)] = 0.0
    motions: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.clip_frames is not None and self.clip_frames < self.num_frames:
            raise UserError(
                f"clip_frames: {self.clip_frames}, expected at least num_frames {self.num_frames}"
            )
        if unknown := set(self.motions) - set(MOTIONS):
            raise UserError(
                f"motions: unknown motion {min(unknown)!r}, expected some of {', '.join(MOTIONS)}"
            )

    def make_builder(self) -> "MovingShapes":
        """Returns the TFDS builder."""
        config = MovingShapesBuilderConfig(
            name=f"n{self.num_examples}", num_examples=self.num_examples
        )
        return make_builder(MovingShapes, config, self.data_dir)

    def decode(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        """Renders a record: a window of its clip, or one frame at a random time."""
        words = (record[name].decode() for name in ATTRIBUTES)
        attributes, seed = Attributes(*words), int(record["seed"])
        clip_frames = self.clip_frames or self.num_frames
        if self.num_frames == 1:
            fractions, seconds = rng.random(1), NOMINAL_SECONDS
        else:
            first = rng.integers(clip_frames - self.num_frames + 1)
            fractions = (first + np.arange(self.num_frames)) / clip_frames
            seconds = clip_frames / self.fps
        return render_at(attributes, seed, fractions, seconds, self.resolution, self.texture)

    def select_records(self, records: Sequence[Record]) -> Sequence[Record]:
        """Returns the records of the motions in `motions`, repeated by their weight."""
        if not self.motions:
            return records
        return [r for r in records for _ in range(self.motions.count(r["motion"].decode()))]


@dataclass(kw_only=True)
class MovingShapesBuilderConfig(tfds.core.BuilderConfig):
    """Number of records of `train`; `heldout` has a tenth of that."""

    num_examples: int = 20_000


class MovingShapes(tfds.core.GeneratorBasedBuilder):
    """Records of `Attributes`, a caption, and the seed to render with (`render.py`).

    `heldout` has the (shape, colour, motion) combinations that `train` never shows.
    """

    VERSION = tfds.core.Version("1.2.0")  # 1.2: all wordings of a motion share one word

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {name: tfds.features.Text() for name in (*ATTRIBUTES, "caption")}
        features = tfds.features.FeaturesDict({**texts, "seed": np.int64})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        count = self.builder_config.num_examples
        return {
            "train": self._generate_examples("train", count),
            "heldout": self._generate_examples("heldout", max(1, count // 10)),
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict]]:
        for index in progress(range(count), split):
            rng = np.random.default_rng((SPLITS.index(split), index))
            attributes = draw_attributes(split, rng)
            seed = int(rng.integers(2**31))
            yield index, {**asdict(attributes), "seed": seed, "caption": caption(attributes, seed)}
