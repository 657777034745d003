"""Builds TFDS datasets and reads their records without TensorFlow.

A dataset in a bucket is built on disk and uploaded, because TFDS renames folders and ArrayRecord
does not write to buckets. It is read directly from the bucket.
"""

import contextlib
import functools
import io
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from stunet.checksums import check_files, report_unchecked, write_checksums
from stunet.errors import UserError, writing
from stunet.files import read_json
from stunet.paths import AnyPath, is_complete, is_remote, upload_file, user_path

_INFO, _FEATURES = "dataset_info.json", "features.json"
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # the last one of older versions

T = TypeVar("T")


def build(make_builder: Callable[[str], tfds.core.DatasetBuilder], data_dir: AnyPath) -> None:
    """Writes the records of a builder, unless they exist.

    An interrupted build leaves no folder under the final name on disk, and no `dataset_info.json`
    in a bucket. Of two concurrent builds the first one is used; in a bucket both write the same
    records.

    Args:
      make_builder: Returns the builder for a folder of datasets.
      data_dir: Folder of datasets, on disk or in a bucket.

    Raises:
      UserError: the disk is full or read-only, or the bucket cannot be written.
    """
    builder = make_builder(str(data_dir))
    if is_built(builder):
        return
    start = time.monotonic()
    print(f"building {builder.info.full_name} ...", file=sys.stderr)
    if is_remote(data_dir):
        with tempfile.TemporaryDirectory(prefix="stunet-") as folder:
            local = make_builder(folder)
            _build(local)
            write_checksums(Path(local.data_path))
            upload_files(Path(local.data_path), user_path(builder.data_path), last=_INFO)
    else:
        _build(builder)
        write_checksums(Path(builder.data_path))
    seconds = time.monotonic() - start
    print(f"built {builder.data_path} in {seconds:.0f} s", file=sys.stderr)


def is_built(builder: tfds.core.DatasetBuilder) -> bool:
    """Returns whether a builder's records exist and are complete."""
    return is_complete(user_path(builder.data_path), last=_INFO)


def upload_files(source: Path, target: AnyPath, last: str) -> None:
    """Uploads the files in a local folder; one of them, which makes the others valid, at the end.

    Raises:
      UserError: the bucket cannot be written.
    """
    names = sorted(
        path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()
    )
    for name in (*(name for name in names if name != last), last):
        upload_file(source / name, target / name)


def _build(builder: tfds.core.DatasetBuilder) -> None:
    tfds.disable_progress_bar()  # its bar per stage would hide ours
    with writing(builder.data_path), contextlib.redirect_stdout(io.StringIO()):
        try:
            builder.download_and_prepare()
        except FileExistsError:
            if not builder.data_path.exists():  # not from a concurrent build
                raise


def make_builder(
    kind: type[tfds.core.DatasetBuilder], config: tfds.core.BuilderConfig, data_dir: str
) -> tfds.core.DatasetBuilder:
    """Returns a TFDS builder. A built dataset is compared with its checksums before.

    Args:
      kind: Class of the builder.
      config: Its config.
      data_dir: Folder of datasets, on disk or in a bucket.

    Raises:
      UserError: the dataset is damaged.
    """
    root = user_path(data_dir)
    folder = root / kind.name / config.name / str(kind.VERSION)
    if is_remote(folder) or folder.is_dir():
        check_dataset(folder)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of configs that are not in BUILDER_CONFIGS
    try:
        with reporting_damage(folder):  # the constructor reads the description of the dataset
            return kind(config=config, data_dir=str(root), file_format="array_record")
    finally:
        logging.set_verbosity(verbosity)


def check_dataset(folder: AnyPath) -> bool:
    """Compares the files of a TFDS dataset with their checksums, once in a process.

    Of records only the size is compared: ArrayRecord compares their hashes when it reads them.

    Returns:
      Whether the dataset has checksums.

    Raises:
      UserError: a file or the folder is missing or damaged.
    """
    try:
        version = None if is_remote(folder) else folder.stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}), expected records") from error
    return _check_dataset(folder, version)


@functools.lru_cache(maxsize=2**12)
def _check_dataset(folder: AnyPath, version: int | None) -> bool:
    return check_files(folder, size_only=lambda name: ".array_record" in name)


def check_features(folder: AnyPath) -> None:
    """Checks the description of a dataset's features before TFDS imports the classes it names.

    Raises:
      UserError: it names a class outside of TFDS, or cannot be read.
    """
    path = folder / _FEATURES
    for name in _class_names(read_json(path)):
        if not name.startswith("tensorflow_datasets.core.features."):
            raise UserError(f"{path}: class {name!r}, expected one of tensorflow_datasets")


def _class_names(value: Any) -> Iterator[str]:
    """Yields the names of classes in a description of features. TFDS imports their modules."""
    if isinstance(value, dict):
        yield from (value[key] for key in _CLASS_KEYS if isinstance(value.get(key), str))
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            yield from _class_names(item)


@contextlib.contextmanager
def reporting_damage(folder: AnyPath) -> Iterator[None]:
    """Reports errors of ArrayRecord in the block as a `UserError` with the folder's name."""
    try:
        yield
    except (MemoryError, UserError):
        raise
    except Exception as error:  # of many types
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
        reason = textwrap.shorten(str(error) or repr(error), 120, placeholder=" ...")
        raise UserError(
            f"{folder}: damaged records ({reason}); delete the dataset and prepare it again"
        ) from error


class CheckedRecords(Sequence):
    """Records of a TFDS dataset; damaged ones raise a `UserError` with the folder's name.

    Args:
      records: The records.
      folder: Folder of the dataset.
    """

    def __init__(self, records: Sequence[Any], folder: AnyPath):
        self._records, self._folder = records, user_path(folder)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        with reporting_damage(self._folder):
            return self._records[index]

    def __reduce__(self):
        return CheckedRecords, (self._records, self._folder)


def read(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[dict[str, Any]]:
    """Returns the records of a split, with random access.

    Raises:
      UserError: the dataset has not been built, or has no such split.
    """
    if not is_built(builder):
        raise UserError(f"{builder.data_path}: no such dataset, expected a prepared one")
    known = sorted(builder.info.splits)
    if split not in known:
        raise UserError(f"{builder.data_path}: no split {split!r}, expected {' or '.join(known)}")
    folder = user_path(builder.data_path)
    if not check_dataset(folder):
        report_unchecked(folder)
    with reporting_damage(folder):
        return CheckedRecords(builder.as_data_source(split=split), folder)


def progress(items: Iterable[T], label: str) -> Iterator[T]:
    """Iterates over `items` with a progress bar on stderr."""
    return iter(tqdm(items, desc=label, unit="", mininterval=1.0, leave=False))
