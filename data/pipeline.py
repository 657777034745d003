"""Batches for training, from one global order of examples that Grain reads per process.

The example at global position g is record `order(epoch)[g mod n]`, and its random choices depend
on (seed, g) only. Batch k is therefore the same after a restart at any step, and for any number of
processes.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from data.data_config import DataConfig, Record
from data.datasets import DATASETS, parse_config
from data.parts import BuildParts, build_locally
from data.preparation import quiet_resource_tracker, start_reader
from stunet.errors import UserError
from stunet.memory import check_memory
from stunet.paths import AnyPath
from stunet.text import Tokenizer
from stunet.text_states import open_text_states
from stunet.video_io import to_float

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

READ_THREADS = 2
PREFETCHED_BATCHES = 2

# Number of examples. Grain computes the number of batches in floating point, so that `sys.maxsize`
# examples are one batch of one too many for an index.
_ENDLESS = 2**62


def prepare(
    config: DataConfig,
    build_parts: BuildParts | None = None,
    check: Callable[[str], None] = lambda fingerprint: None,
) -> DataConfig:
    """Builds the dataset under `config.data_dir`, unless it exists.

    Args:
      config: The dataset.
      build_parts: Builds the parts of a large dataset. None uses this process.
      check: Called with the dataset's `fingerprint` before anything is built; may raise.

    Returns:
      A config that identifies the built dataset. Reading by it does not need the source.

    Raises:
      UserError: the dataset's source is missing or contains nothing usable.
    """
    return config.prepare(build_parts or build_locally(1), check)


def open_records(config: DataConfig) -> Sequence[Record]:
    """Returns the records of the split.

    Raises:
      UserError: the dataset has not been built, or has no such split.
    """
    return config.open_records()


def captions(config: DataConfig) -> list[str]:
    """Returns the captions of the records of the split."""
    return config.captions()


def caption_warnings(config: DataConfig, tokenizer: Tokenizer | None) -> list[str]:
    """Returns warnings about captions that a tokenizer truncates or has no tokens for.

    Args:
      config: The dataset.
      tokenizer: Tokenizer of the text encoder. None if there is none; nothing is checked then.
    """
    if tokenizer is None:
        return []
    return tokenizer.warnings(captions(config), f"config.data: captions of {config.name!r}")


def fingerprint(config: DataConfig) -> str:
    """Returns a name that changes with the content of the dataset's clips and captions."""
    return config.fingerprint()


def whole_examples(config: DataConfig, count: int, start: int = 0) -> tuple[np.ndarray, list[str]]:
    """Returns examples `start` to `start + count - 1` without crop and with captions.

    Returns:
      Clips `[count, T, H, W, 3]` float32 in [-1, 1], and their captions.
    """
    config = dataclasses.replace(config, crop=None, caption_dropout=0.0)
    source = open_records(config)
    examples = [_example(config, source, position) for position in range(start, start + count)]
    videos = [to_float(v) if (v := e["video"]).dtype == np.uint8 else v for e in examples]
    return np.stack(videos), [example["caption"] for example in examples]


def text_states_path(config: DataConfig) -> AnyPath:
    """Returns the folder of the cached text states of the split (`stunet.text_states`)."""
    return config.folder() / f"text_states_{config.split}"


def make_batches(
    config: DataConfig,
    tokenize: Tokenize,
    *,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[dict[str, np.ndarray], None, None]:
    """Returns an endless iterator over batches, prefetched by threads or worker processes.

    The batches do not depend on the number of threads or processes. Close the iterator after use,
    so that worker processes end.

    Args:
      config: The dataset and how to draw examples from it.
      tokenize: Maps N captions to token ids `[N, L]` int32 and a mask `[N, L]` bool. Not called
        if `config.text_states` is set.
      batch_size: Size of the global batch. Each process reads a contiguous slice of it.
      start_step: Number of the first batch. Resuming needs no other state.
      process_index: Index of this process, 0 to `process_count - 1`.
      process_count: Number of processes that share each global batch.

    Yields:
      `video` [B, T, H, W, 3], uint8 or float32 in [-1, 1]; `tokens` [B, L] int32 and `token_mask`
      [B, L] bool, or `text_states` [B, L, D] float16; `position` [B] int64, the global position
      of each example. B is `batch_size / process_count`.

    Raises:
      UserError: the dataset or its text states are missing, a batch could not fit in memory, or
        `batch_size` is not a multiple of `process_count`.
    """
    if batch_size % process_count:
        raise UserError(f"batch_size: {batch_size}, expected a multiple of {process_count}")
    local = batch_size // process_count
    first, side = start_step * batch_size + process_index * local, config.crop or config.resolution
    check_memory(
        f"batch_size: {local} clips of {config.num_frames} frames of {side}x{side} pixels",
        3 * local * config.num_frames * side * side * np.dtype(config.video_dtype).itemsize,
    )
    source = open_records(config)
    states = open_text_states(text_states_path(config)) if config.text_states else None

    def example(index: int) -> dict[str, Any]:
        step, row = divmod(index, local)
        return _example(config, source, first + step * batch_size + row)

    def collate(examples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
        batch = {
            "video": np.stack([example["video"] for example in examples]),
            "position": np.array([example["position"] for example in examples], np.int64),
        }
        texts = [example["caption"] for example in examples]
        if states is not None:
            return {**batch, "text_states": states.lookup(texts)}
        tokens, mask = tokenize(texts)
        return {**batch, "tokens": tokens, "token_mask": mask}

    # Batched before Grain divides the elements among processes: a process makes whole batches.
    batches = grain.MapDataset.range(_ENDLESS).map(example).batch(local, batch_fn=collate)
    workers = config.read_workers()
    if not workers:
        reading = grain.ReadOptions(READ_THREADS, prefetch_buffer_size=PREFETCHED_BATCHES)
        return (batch for batch in batches.to_iter_dataset(reading))
    if not flags.FLAGS.is_parsed():  # Grain reads its flags; this keeps their defaults
        flags.FLAGS.mark_as_parsed()
    quiet_resource_tracker()
    reading = grain.ReadOptions(1, prefetch_buffer_size=1)
    dataset = batches.to_iter_dataset(reading).mp_prefetch(
        grain.MultiprocessingOptions(workers), worker_init_fn=start_reader
    )
    return _from_workers(dataset)


def _from_workers(batches: grain.IterDataset) -> Generator[dict[str, np.ndarray], None, None]:
    """Yields the batches of worker processes.

    Raises:
      UserError: a process died.
    """
    with contextlib.closing(iter(batches)) as iterator:
        while True:
            try:
                batch = next(iterator)
            except RuntimeError as error:
                code = re.search(r"terminated unexpectedly with (exit code -?\d+)", str(error))
                if code is None:
                    raise
                raise UserError(
                    f"config.data.workers: a process that reads clips died ({code[1]}); fewer "
                    "workers need less memory, and a script that trains needs "
                    'if __name__ == "__main__" (or workers=0)'
                ) from error
            # Copied, because Grain's arrays in shared memory fail if they outlive its modules.
            yield {name: np.array(values) for name, values in batch.items()}


def _example(config: DataConfig, source: Sequence[Record], position: int) -> dict[str, Any]:
    epoch, rank = divmod(position, len(source))
    record = source[int(_order(config.seed, epoch, len(source))[rank])]
    rng = np.random.default_rng((config.seed, 1, position))
    dropped = rng.random() < config.caption_dropout
    video, caption = config.draw(record, rng)
    return {"video": video, "caption": "" if dropped else caption, "position": position}


@functools.lru_cache(maxsize=4)  # around the end of an epoch, threads read from two orders
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, epoch)).permutation(count)
