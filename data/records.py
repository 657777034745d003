"""Building TFDS datasets once, and reading their records back without TensorFlow."""

import contextlib
import io
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from stunet.errors import UserError

T = TypeVar("T")


def build(builder: tfds.core.DatasetBuilder) -> None:
    """Writes the builder's records unless they are there already.

    TFDS writes into a folder of another name and renames it at the end, so a build that
    was cut off leaves nothing that passes for a dataset, and of two processes that build the
    same one the first is kept.
    """
    if builder.data_path.exists():
        return
    start = time.monotonic()
    print(f"building {builder.info.full_name} ...", file=sys.stderr)
    tfds.disable_progress_bar()  # its bars for each stage drown ours
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            builder.download_and_prepare()
        except FileExistsError:
            if not builder.data_path.exists():  # it is something else that was in the way
                raise
    seconds = time.monotonic() - start
    print(f"built {builder.data_path} in {seconds:.0f} s", file=sys.stderr)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences TFDS's warning that a builder config is not one of a fixed list."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def read(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[dict[str, Any]]:
    """The records of one split, by index.

    Raises:
      UserError: the dataset was not built, or has no such split.
    """
    if not builder.data_path.exists():
        raise UserError(f"no dataset at {builder.data_path}: prepare it first")
    known = sorted(builder.info.splits)
    if split not in known:
        raise UserError(f"{builder.data_path} has no split '{split}'; it has {', '.join(known)}")
    return builder.as_data_source(split=split)


def progress(items: Iterable[T], label: str) -> Iterator[T]:
    """`items` behind one progress bar on stderr."""
    return iter(tqdm(items, desc=label, unit="", mininterval=1.0, leave=False))
