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
from data.data_config import DataConfig, Record, split_captions
from data.datasets import DATASETS, parse_config
from stunet.errors import UserError
from stunet.files import check_not_lfs_pointer
from stunet.text import Tokenizer

__all__ = [
    "DATASETS",
    "DataConfig",
    "caption_warnings",
    "captions",
    "fingerprint",
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
    return [text for texts in config.captions(open_records(config)) for text in texts]


def caption_warnings(config: DataConfig, tokenizer: Tokenizer | None) -> list[str]:
    """Returns warnings about captions that a tokenizer truncates or has no tokens for.

    Args:
      config: The dataset.
      tokenizer: Tokenizer of the text encoder. None if there is none; nothing is checked then.
    """
    if tokenizer is None:
        return []
    texts, what = captions(config), f"config.data: captions of {config.name!r}"
    warnings = (
        tokenizer.truncation_warning(texts, what),
        tokenizer.unknown_words_warning(texts, what),
    )
    return [warning for warning in warnings if warning is not None]


def fingerprint(config: DataConfig) -> str:
    """Returns a name that changes with the content of the dataset's clips and captions."""
    return config.make_builder().info.full_name


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

    The file contains `[N + 1, L, D]` float16: row i belongs to caption i in the order of
    `captions`, row N to the empty caption.
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
    states, first_rows = _open_states(config, source) if config.text_states else (None, None)

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
            rows = [
                first_rows[item["record"]] + item["choice"] if item["caption"] else -1
                for item in examples
            ]
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
    texts = split_captions(record)
    choice = int(rng.integers(len(texts))) if len(texts) > 1 else 0
    return {
        "video": video,
        "caption": "" if dropped else texts[choice],
        "record": index,
        "choice": choice,
        "position": position,
    }


@functools.lru_cache(maxsize=4)  # around the end of an epoch, threads read from two orders
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, epoch)).permutation(count)


def _open_states(config: DataConfig, source: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the states, and the row of the first caption of each record."""
    path = text_states_path(config)
    counts = [len(texts) for texts in config.captions(source)]
    first_rows, count = np.cumsum([0, *counts[:-1]]), sum(counts)
    if not path.exists():
        raise UserError(
            f"{path}: no such text states, expected the output of experiments.cache_text "
            "(or text_states=False)"
        )
    check_not_lfs_pointer(path)
    states = np.load(path, mmap_mode="r")
    if states.ndim != 3 or len(states) != count + 1:
        raise UserError(
            f"{path}: text states of shape {states.shape}, expected [{count + 1}, L, D]"
        )
    return states, first_rows
