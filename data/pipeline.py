"""Batches for training, from one global order of examples that Grain reads per process.

The example at global position g is record `order(epoch)[g mod n]`, and its random choices depend
on (seed, g) only. Batch k is therefore the same after a restart at any step, and for any number of
processes.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from data import records
from data.data_config import DataConfig, Record
from data.datasets import DATASETS, parse_config
from stunet.errors import UserError

__all__ = [
    "DATASETS",
    "DataConfig",
    "captions",
    "make_batches",
    "open_records",
    "parse_config",
    "prepare",
    "text_states_path",
    "whole_examples",
]

Tokenize = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]

# Threads, not processes: rendering is quick, and Grain's processes need parsed absl flags.
READ_THREADS = 2
PREFETCHED_BATCHES = 2


def prepare(config: DataConfig) -> None:
    """Builds the dataset under `config.data_dir`, unless it exists.

    Raises:
      UserError: the dataset's source is missing or contains nothing usable.
    """
    records.build(config.make_builder())


def open_records(config: DataConfig) -> Sequence[Record]:
    """Returns the records of the split, as `config.select_records` selects them.

    Raises:
      UserError: the dataset has not been built, or has no such split.
    """
    return config.select_records(records.read(config.make_builder(), config.split))


def captions(config: DataConfig) -> list[str]:
    """Returns the captions of the split, in the order of its records."""
    source = open_records(config)
    return [source[index]["caption"].decode() for index in range(len(source))]


def whole_examples(config: DataConfig, count: int) -> tuple[np.ndarray, list[str]]:
    """Returns the first `count` examples without crop and with captions.

    Returns:
      Clips `[count, T, H, W, 3]` float32 in [-1, 1], and their captions.
    """
    config = dataclasses.replace(config, crop=None, caption_dropout=0.0)
    source = open_records(config)
    examples = [_example(config, source, position) for position in range(count)]
    videos = np.stack([example["video"] for example in examples])
    return videos, [example["caption"] for example in examples]


def text_states_path(config: DataConfig) -> Path:
    """Returns the path of the cached text states of the split.

    The file contains `[N + 1, L, D]` float16: row i belongs to the caption of record i (in the
    order of `captions`), row N to the empty caption.
    """
    return Path(config.make_builder().data_path) / f"text_states_{config.split}.npy"


def make_batches(
    config: DataConfig,
    tokenize: Tokenize,
    *,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns an endless iterator over batches, prefetched in threads.

    Args:
      config: The dataset and how to draw examples from it.
      tokenize: Maps N captions to token ids `[N, L]` int32 and a mask `[N, L]` bool. Not called
        if `config.text_states` is set.
      batch_size: Size of the global batch. Each process reads a contiguous slice of it.
      start_step: Number of the first batch. Resuming needs no other state.
      process_index: Index of this process, 0 to `process_count - 1`.
      process_count: Number of processes that share each global batch.

    Yields:
      `video` [B, T, H, W, 3] float32 in [-1, 1]; `tokens` [B, L] int32 and `token_mask` [B, L]
      bool, or `text_states` [B, L, D] float16; `position` [B] int64, the global position of each
      example. B is `batch_size / process_count`.

    Raises:
      UserError: the dataset or its text states are missing, or `batch_size` is not a multiple of
        `process_count`.
    """
    if batch_size % process_count:
        raise UserError(f"batch_size: {batch_size}, expected a multiple of {process_count}")
    local = batch_size // process_count
    first = start_step * batch_size + process_index * local
    source = open_records(config)
    states = _open_states(config, len(source)) if config.text_states else None

    def example(index: int) -> dict[str, Any]:
        step, row = divmod(index, local)
        return _example(config, source, first + step * batch_size + row)

    def collate(examples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
        batch = {
            "video": np.stack([example["video"] for example in examples]),
            "position": np.array([example["position"] for example in examples], np.int64),
        }
        if states is not None:
            # The last row (-1) belongs to the empty caption.
            rows = [-1 if not item["caption"] else item["record"] for item in examples]
            return {**batch, "text_states": states[rows]}
        tokens, mask = tokenize([example["caption"] for example in examples])
        return {**batch, "tokens": tokens, "token_mask": mask}

    reading = grain.ReadOptions(READ_THREADS, prefetch_buffer_size=PREFETCHED_BATCHES * local)
    dataset = grain.MapDataset.range(sys.maxsize).map(example).to_iter_dataset(reading)
    return iter(dataset.batch(local, batch_fn=collate))


def _example(config: DataConfig, source: Sequence[Record], position: int) -> dict[str, Any]:
    epoch, rank = divmod(position, len(source))
    index = int(_order(config.seed, epoch, len(source))[rank])
    record = source[index]
    rng = np.random.default_rng((config.seed, 1, position))
    dropped = rng.random() < config.caption_dropout
    video = config.decode(record, rng)
    if size := config.crop:
        top, left = (int(rng.integers(side - size + 1)) for side in video.shape[1:3])
        video = video[:, top : top + size, left : left + size]
    return {
        "video": video,
        "caption": "" if dropped else record["caption"].decode(),
        "record": index,
        "position": position,
    }


@functools.lru_cache(maxsize=4)  # around the end of an epoch, threads read from two orders
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, epoch)).permutation(count)


def _open_states(config: DataConfig, count: int) -> np.ndarray:
    path = text_states_path(config)
    if not path.exists():
        raise UserError(
            f"{path}: no such text states, expected the output of experiments.cache_text "
            "(or text_states=False)"
        )
    states = np.load(path, mmap_mode="r")
    if states.ndim != 3 or len(states) != count + 1:
        raise UserError(
            f"{path}: text states of shape {states.shape}, expected [{count + 1}, L, D]"
        )
    return states
