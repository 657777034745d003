"""TFDS builder of the emoji world: stills and animations with alpha, without backgrounds."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from data.data_config import BuildParts, Record, TfdsDataConfig, split_captions
from data.emoji.composition import Layout, compose, draw_layout, shrink
from data.emoji.packages import EmojiFiles, find_emoji
from data.emoji.vocabulary import Emoji, all_captions, draw_caption, select_concepts
from data.preparation import available_cores
from data.records import is_built, make_builder, progress, read
from stunet.errors import UserError
from stunet.schema import Range

SPLITS = ("train", "heldout")
_STILL_SHARE = 0.25  # of pictures (`num_frames=1`) that show the still instead of a frame
# Records of a concept are repeated until it has this many, so that "running", which has 18 (skin
# tones and genders), is drawn three times as often as a concept with a single record.
_RECORDS_OF_CONCEPT = 6
_BUILD_BATCH = 64  # emoji whose records are in memory while the dataset is built


@dataclass(frozen=True, kw_only=True)
class EmojiConfig(TfdsDataConfig):
    """Config of the dataset "emoji", composed while training.

    Attributes:
      source: Folder with the unpacked npm packages (`data.emoji.packages`). Not needed once the
        dataset is built.
      frame_size: Height and width in pixels at which frames are stored. None uses `resolution`.
      concepts: Concepts to use, such as "running"; "moving" stands for all of `motions.tsv`,
        "clear" for those of `clear.txt`. Empty uses all.
      min_size: Smallest side of an emoji relative to the frame's; the largest is 1.
    """

    source: str = ""
    frame_size: Annotated[int, Range(8, 256)] | None = None
    concepts: tuple[str, ...] = ()
    min_size: Annotated[float, Range(0.1, 1)] = 0.75

    video_dtype: ClassVar[str] = "uint8"

    def __post_init__(self):
        super().__post_init__()
        if self.frame_size is None and not 8 <= self.resolution <= 256:
            raise UserError(f"resolution: {self.resolution}, expected 8 to 256, or a frame_size")

    def make_builder(self) -> "FluentEmoji":
        """Returns the TFDS builder."""
        size = self.frame_size or self.resolution
        config = EmojiBuilderConfig(name=f"{size}px", frame_size=size, source=self.source)
        return make_builder(FluentEmoji, config, self.data_dir)

    def prepare(self, build_parts: BuildParts, check: Callable[[str], None]) -> "EmojiConfig":
        """See `DataConfig.prepare`. Names of concepts are checked before the dataset is built."""
        if self.concepts and self.source and not is_built(self.make_builder()):
            found = find_emoji(Path(self.source).expanduser())
            select_concepts(self.concepts, {file.emoji.concept for file in found})
        return super().prepare(build_parts, check)

    def emoji(self) -> list[Emoji]:
        """Returns the emoji of the split, in the order of its records, of all concepts.

        Raises:
          UserError: the dataset has not been built, or has no such split.
        """
        builder = self.make_builder()
        read(builder, self.split)
        return read_index(builder, self.split)

    def select_records(self, records: Sequence[Record]) -> Sequence[Record]:
        """Returns the records of `concepts`, repeated so that rare concepts are drawn as well."""
        of_concept: dict[str, list[int]] = {}
        for position, emoji in self._selected().items():
            of_concept.setdefault(emoji.concept, []).append(position)
        repeated = (
            itertools.islice(itertools.cycle(found), max(len(found), _RECORDS_OF_CONCEPT))
            for found in of_concept.values()
        )
        return SelectedRecords(records, list(itertools.chain.from_iterable(repeated)))

    def captions(self) -> list[str]:
        """Returns all captions that the selected emoji can have."""
        return [text for emoji in self._selected().values() for text in all_captions(emoji)]

    def _selected(self) -> dict[int, Emoji]:
        """Returns the emoji of `concepts` by the position of their records.

        Raises:
          UserError: there is no such concept, or the split has none of them.
        """
        index, builder = self.emoji(), self.make_builder()
        known = {emoji.concept for split in SPLITS for emoji in read_index(builder, split)}
        selected = select_concepts(self.concepts, known)
        found = {n: emoji for n, emoji in enumerate(index) if emoji.concept in selected}
        if not found:
            raise UserError(f"concepts: {', '.join(self.concepts)} not in split {self.split!r}")
        return found

    def draw(self, record: Record, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """Composes a record over a random background, with a caption that names it."""
        layout = draw_layout(self.min_size, bool(record["can_mirror"]), rng)
        phrases = split_captions(record)
        caption = draw_caption(phrases, layout.background, layout.mirrored, rng)
        is_still = self.num_frames == 1 and rng.random() < _STILL_SHARE
        video = self.compose(record, layout, is_still)
        return self.crop_video(video, rng), caption

    def decode(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        """Composes a record over a random background, without crop."""
        return self.compose(record, draw_layout(self.min_size, bool(record["can_mirror"]), rng))

    def compose(self, record: Record, layout: Layout, is_still: bool = False) -> np.ndarray:
        """Composes a record with a given layout; see `data.emoji.composition.compose`."""
        picture = record["still" if is_still else "animation"]
        return compose(picture, layout, self.num_frames, self.resolution, self.fps)


@dataclass(kw_only=True)
class EmojiBuilderConfig(tfds.core.BuilderConfig):
    """Size of the stored frames in pixels, and the folder of the packages."""

    frame_size: int = 256
    source: str = ""


class FluentEmoji(tfds.core.GeneratorBasedBuilder):
    """Records of an `Emoji` with WebP files of its animation and its still.

    `heldout` has a tenth of the combinations of skin tone, gender and activity; `train` never shows
    them.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        texts = dict.fromkeys(("code", "name", "concept", "gender", "tones", "caption"), text)
        pictures = dict.fromkeys(("animation", "still"), text)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({**texts, "can_mirror": np.bool_, **pictures}),
            license=Path(__file__).with_name("LICENSES.md").read_text(),
            metadata=tfds.core.MetadataDict(),  # the emoji of each split, see `read_index`
            disable_shuffling=True,  # so that the metadata has the order of the records
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        if not self.builder_config.source:
            raise UserError("config.data.source: missing, expected the folder of the npm packages")
        found = find_emoji(Path(self.builder_config.source).expanduser())
        parts = {
            split: [file for file in found if file.emoji.is_held_out == (split == "heldout")]
            for split in SPLITS
        }
        for split, files in parts.items():
            self.info.metadata[split] = [list(file.emoji) for file in files]
        return {split: self._generate_examples(split, files) for split, files in parts.items()}

    def _generate_examples(
        self, split: str, files: Sequence[EmojiFiles]
    ) -> Iterator[tuple[int, dict]]:
        def to_record(file: EmojiFiles) -> dict[str, Any]:
            emoji = file.emoji._asdict()
            tones, phrases = ", ".join(emoji.pop("tones")), "\n".join(emoji.pop("phrases"))
            pictures = {
                "animation": shrink(file.animation, self.builder_config.frame_size),
                "still": shrink(file.still, self.builder_config.frame_size),
            }
            return {**emoji, "tones": tones, "caption": phrases, **pictures}

        with ThreadPoolExecutor(available_cores()) as pool:
            starts = progress(range(0, len(files), _BUILD_BATCH), f"{split}, {_BUILD_BATCH} emoji")
            for start in starts:
                found = pool.map(to_record, files[start : start + _BUILD_BATCH])
                yield from enumerate(found, start)


class SelectedRecords(Sequence):
    """Records at given positions, some of which may be repeated.

    Args:
      records: All records.
      positions: Positions of the selected records.
    """

    def __init__(self, records: Sequence[Record], positions: Sequence[int]):
        self._records, self._positions = records, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Record:
        return self._records[self._positions[index]]


def read_index(builder: FluentEmoji, split: str) -> list[Emoji]:
    """Returns the emoji of a split of the built dataset, in the order of its records."""
    rows = builder.info.metadata[split]
    return [Emoji(*(tuple(v) if isinstance(v, list) else v for v in row)) for row in rows]
