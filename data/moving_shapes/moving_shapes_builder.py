"""TFDS builder of the moving-shapes world: attributes, seeds and captions, no pixels."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data.moving_shapes.vocabulary import Attributes, caption, draw_attributes
from data.records import progress, quiet

ATTRIBUTES = tuple(field.name for field in fields(Attributes))
SPLITS = ("train", "heldout")


@dataclass(kw_only=True)
class MovingShapesConfig(tfds.core.BuilderConfig):
    """How many records `train` holds; `heldout` holds a tenth of that."""

    num_examples: int = 20_000


class MovingShapes(tfds.core.GeneratorBasedBuilder):
    """Records of `Attributes`, a caption and the seed to render with (`render.py`).

    `heldout` has the (shape, colour, motion) combinations that `train` never shows.
    """

    VERSION = tfds.core.Version("1.2.0")  # 1.2: each motion keeps one word in all its wordings

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


def make_builder(data_dir: str, num_examples: int) -> MovingShapes:
    """The builder whose records lie (or will lie) under `data_dir`."""
    config = MovingShapesConfig(name=f"n{num_examples}", num_examples=num_examples)
    with quiet():
        return MovingShapes(config=config, data_dir=data_dir, file_format="array_record")
