"""A dataset from outside the package, for tests: clips of one grey level per record."""

from dataclasses import dataclass

import numpy as np
import tensorflow_datasets as tfds

from data.data_config import TfdsDataConfig

LEVELS = 3


class Stripes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"level": np.int64, "caption": tfds.features.Text()}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for level in range(LEVELS):
            yield level, {"level": level, "caption": f"stripes {level}"}


@dataclass(frozen=True, kw_only=True)
class StripesConfig(TfdsDataConfig):
    period: int

    def make_builder(self):
        return Stripes(data_dir=self.data_dir, file_format="array_record")

    def decode(self, record, rng):
        clip = np.ones((self.num_frames, self.resolution, self.resolution, 3), np.float32)
        clip[:, :, :: self.period] = int(record["level"]) / 2 - 1
        return clip
