"""Builds TFDS datasets and reads their records without TensorFlow."""

import contextlib
import io
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from stunet.errors import UserError, writing

T = TypeVar("T")


def build(builder: tfds.core.DatasetBuilder) -> None:
    """Writes the builder's records, unless they exist.

    TFDS writes to a temporary folder and renames it at the end. An interrupted build therefore
    leaves no folder under the final name, and of two concurrent builds the first one is used.

    Raises:
      UserError: the disk is full or read-only.
    """
    if builder.data_path.exists():
        return
    start = time.monotonic()
    print(f"building {builder.info.full_name} ...", file=sys.stderr)
    tfds.disable_progress_bar()  # its bar per stage would hide ours
    with writing(builder.data_path), contextlib.redirect_stdout(io.StringIO()):
        try:
            builder.download_and_prepare()
        except FileExistsError:
            if not builder.data_path.exists():  # not from a concurrent build
                raise
    seconds = time.monotonic() - start
    print(f"built {builder.data_path} in {seconds:.0f} s", file=sys.stderr)


@contextlib.contextmanager
def silence_config_warning() -> Iterator[None]:
    """Silences the warning of TFDS about builder configs that are not in `BUILDER_CONFIGS`."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def read(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[dict[str, Any]]:
    """Returns the records of a split, with random access.

    Raises:
      UserError: the dataset has not been built, or has no such split.
    """
    if not builder.data_path.exists():
        raise UserError(f"{builder.data_path}: no such dataset, expected a prepared one")
    known = sorted(builder.info.splits)
    if split not in known:
        raise UserError(f"{builder.data_path}: no split {split!r}, expected {' or '.join(known)}")
    return builder.as_data_source(split=split)


def progress(items: Iterable[T], label: str) -> Iterator[T]:
    """Iterates over `items` with a progress bar on stderr."""
    return iter(tqdm(items, desc=label, unit="", mininterval=1.0, leave=False))
