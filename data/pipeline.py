"""Batches for training: one global order of examples, sliced over processes, by Grain.

A config (an `ml_collections.ConfigDict` or a dict) has the fields of `DataConfig`.

The example at global position g is record `order(epoch)[g mod n]`, and what is drawn
for it depends on (seed, g) alone. So batch k is the same whether the iterator started
at step 0 or at step k, and for any number of processes.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np

from data import records
from data.moving_shapes.vocabulary import MOTIONS
from data.sources import NAMES, Source, make_builder, open_source
from stunet.errors import UserError
from stunet.schema import from_dict

Tokenize = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]

# Threads, not processes: rendering is quick, and Grain's processes need parsed absl flags.
READ_THREADS = 2
PREFETCHED_BATCHES = 2


@dataclass(frozen=True)
class DataConfig:
    """The fields of a data config.

    Attributes:
      name: "moving_shapes", "video_folder" or "ucf101".
      data_dir: where the records are kept.
      split: which of the dataset's splits.
      num_frames: of an example; 1 for single images, a random moment of each clip.
      resolution: height and width of a frame in pixels.
      fps: frames per second.
      seed: of the order and of all that is drawn for an example.
      caption_dropout: the probability of an empty caption, for guidance.
      crop: height and width of the square that is cut out of each example at random; None for
        whole frames.
      num_examples: of moving_shapes.
      clip_frames: of a whole clip of moving_shapes, of which an example is `num_frames` in a row;
        None for `num_frames`. (The other datasets' clips have their own lengths.)
      texture: of moving_shapes' backgrounds, a standard deviation of values in 0..1.
      motions: of moving_shapes, the only ones that are shown, one named twice twice as often; ()
        for all, evenly.
      source: folder or archive that video_folder and ucf101 are made from.
      prompts: a TSV of class and caption, for ucf101.
      text_states: take text states from `text_states_path` instead of tokens.
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
    num_examples: int | None = None
    clip_frames: int | None = None
    texture: float = 0.0
    motions: tuple[str, ...] = ()
    source: str | None = None
    prompts: str | None = None
    text_states: bool = False

    def __post_init__(self):
        if self.name not in NAMES:
            raise UserError(f"unknown dataset '{self.name}'; known are {', '.join(NAMES)}")
        needed = "num_examples" if self.name == "moving_shapes" else "source"
        if getattr(self, needed) is None:
            raise UserError(f"dataset '{self.name}' needs the field '{needed}'")
        for field in ("num_frames", "resolution", "fps", "num_examples", "crop", "clip_frames"):
            if (value := getattr(self, field)) is not None and value <= 0:
                raise UserError(f"{field} is {value}; it must be positive")
        if (self.crop or 0) > self.resolution:
            raise UserError(f"crop is {self.crop}; frames are only {self.resolution} pixels wide")
        if self.clip_frames is not None and self.clip_frames < self.num_frames:
            raise UserError(
                f"clip_frames is {self.clip_frames}; num_frames {self.num_frames} need as many"
            )
        if unknown := set(self.motions) - set(MOTIONS):
            raise UserError(f"motions: no {min(unknown)!r}; choose of {', '.join(MOTIONS)}")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must not be negative")
        if not 0 <= self.caption_dropout <= 1:
            raise UserError(f"caption_dropout is {self.caption_dropout}; it must be within 0..1")


def prepare(config: Mapping[str, Any]) -> None:
    """Builds the dataset under `config.data_dir` if it is not there.

    Raises:
      UserError: a field of the config is unknown, missing or impossible, or there is nothing
        usable in the dataset's source.
    """
    from_dict(DataConfig, dict(config), "config.data")
    records.build(make_builder(config))


def captions(config: Mapping[str, Any]) -> list[str]:
    """The captions of the split, in the order of its records."""
    source = open_source(config).records
    return [source[index]["caption"].decode() for index in range(len(source))]


def whole_examples(config: Mapping[str, Any], count: int) -> tuple[np.ndarray, list[str]]:
    """The first `count` examples uncropped: `[N, T, H, W, 3]` in [-1, 1], and their captions."""
    config = {**config, "crop": None, "caption_dropout": 0.0}
    source = open_source(config)
    examples = [_example(config, source, position) for position in range(count)]
    videos = np.stack([example["video"] for example in examples])
    return videos, [example["caption"] for example in examples]


def text_states_path(config: Mapping[str, Any]) -> Path:
    """Where cached text states of the split lie.

    The file is `[N + 1, L, D]` float16: row i is for record i's caption (the order of
    `captions`), row N for the empty caption.
    """
    return Path(make_builder(config).data_path) / f"text_states_{config['split']}.npy"


def make_batches(
    config: Mapping[str, Any],
    tokenize: Tokenize,
    *,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from step `start_step` on, prefetched in threads.

    Args:
      config: see the module's docstring.
      tokenize: captions -> ids [N, L] int32, mask [N, L] bool; unused with `text_states`.
      batch_size: of the global batch; this process gets its contiguous slice of it.
      start_step: the first batch's number; all that resuming needs.
      process_index: this process, of `process_count`.
      process_count: how many processes share each global batch.

    Yields:
      `video` [B, T, H, W, 3] float32 in [-1, 1]; `tokens` [B, L] int32 and `token_mask`
      [B, L] bool, or `text_states` [B, L, D] float16; `position` [B] int64, the global
      position of each example; B is `batch_size / process_count`.

    Raises:
      UserError: the dataset or its text states are absent, or the batch does not divide.
    """
    if batch_size % process_count:
        raise UserError(f"batch size {batch_size} is not divisible by {process_count} processes")
    local = batch_size // process_count
    first = start_step * batch_size + process_index * local
    source = open_source(config)
    states = _open_states(config, len(source.records)) if config.get("text_states") else None

    def example(index: int) -> dict[str, Any]:
        step, row = divmod(index, local)
        return _example(config, source, first + step * batch_size + row)

    def collate(examples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
        batch = {
            "video": np.stack([example["video"] for example in examples]),
            "position": np.array([example["position"] for example in examples], np.int64),
        }
        if states is not None:
            # Row -1, the last, is the empty caption's.
            rows = [-1 if not item["caption"] else item["record"] for item in examples]
            return {**batch, "text_states": states[rows]}
        tokens, mask = tokenize([example["caption"] for example in examples])
        return {**batch, "tokens": tokens, "token_mask": mask}

    reading = grain.ReadOptions(READ_THREADS, prefetch_buffer_size=PREFETCHED_BATCHES * local)
    dataset = grain.MapDataset.range(sys.maxsize).map(example).to_iter_dataset(reading)
    return iter(dataset.batch(local, batch_fn=collate))


def _example(config: Mapping[str, Any], source: Source, position: int) -> dict[str, Any]:
    epoch, place = divmod(position, len(source.records))
    index = int(_order(config["seed"], epoch, len(source.records))[place])
    record = source.records[index]
    rng = np.random.default_rng((config["seed"], 1, position))
    dropped = rng.random() < config["caption_dropout"]
    video = source.decode(record, rng)
    if size := config.get("crop"):
        top, left = (int(rng.integers(side - size + 1)) for side in video.shape[1:3])
        video = video[:, top : top + size, left : left + size]
    return {
        "video": video,
        "caption": "" if dropped else record["caption"].decode(),
        "record": index,
        "position": position,
    }


@functools.lru_cache(maxsize=4)  # threads read across an epoch's end
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, epoch)).permutation(count)


def _open_states(config: Mapping[str, Any], count: int) -> np.ndarray:
    path = text_states_path(config)
    if not path.exists():
        raise UserError(f"no cached text states at {path}: compute them, or unset text_states")
    states = np.load(path, mmap_mode="r")
    if states.ndim != 3 or len(states) != count + 1:
        raise UserError(f"{path}: expected [{count + 1}, L, D] text states, got {states.shape}")
    return states
