"""Stored datasets of real clips: parts of TFDS records, and a manifest that identifies them.

    DATA_DIR/NAME/DATASET/
      manifest.json             settings and number of records of each part; written last
      checksums.json            checksum of the manifest
      part-00000/               a TFDS dataset (ArrayRecord)
        clips.jsonl             source, captions and result of each clip of the part
        checksums.json          checksums of the part's files
      part-00001/ ...

On disk, a part is written under a temporary name and renamed. In a bucket, it is built in a local
temporary folder and uploaded, `clips.jsonl` last. A killed build thus keeps its finished parts. The
same clips and settings give the same records, whatever builds them.
"""

import bisect
import contextlib
import fcntl
import functools
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.core.hashing import Hasher
from tqdm import tqdm

from data.preparation import ClipSettings, PreparedClip, map_clips, prepare_clip
from data.records import (
    CheckedRecords,
    check_dataset,
    check_features,
    reporting_damage,
    upload_files,
)
from data.scenes import check_installed
from data.sources import SourceClip
from stunet.checksums import check_files, report_unchecked, write_checksums
from stunet.errors import UserError, writing
from stunet.files import read_json, read_text, split_lines
from stunet.paths import AnyPath, is_complete, is_remote, remove_folder, user_path, write_text

FORMAT_VERSION = 1
VERSION = "2.0.0"  # of the records
_MANIFEST = "manifest.json"
_CLIPS = "clips.jsonl"
_SEGMENTS = "segments"  # while a part is built
_SHARD_BYTES = 2**30
_RECORDS = "clips-train.array_record"
_OPEN_PARTS = 256  # each has an open file or two

MapClips = Callable[[Callable[[SourceClip], PreparedClip], Iterable[SourceClip]], Iterator]


class PartTask(NamedTuple):
    """A part to build, by any process that has access to the same files.

    Attributes:
      folder: Folder of the part.
      clips: Clips of the part, with their `content`.
      settings: How to store them.
    """

    folder: AnyPath
    clips: Sequence[SourceClip]
    settings: ClipSettings


# Builds parts that do not exist.
BuildParts = Callable[[Sequence[PartTask]], None]


class ClipResult(NamedTuple):
    """A line of `clips.jsonl`.

    Attributes:
      name: Name of the clip in the source.
      span: Start and end in seconds. None for a whole file.
      content: Digest of the file (`data.sources.MediaFile.digest`).
      captions: Captions of the clip.
      segments: Number of records of the clip.
      fps: Frames per second of the source. 0 for a still image.
      static: Number of segments that were dropped for lack of motion.
      problem: Why the clip has no records. None if it has.
    """

    name: str
    span: tuple[float, float] | None
    content: str
    captions: tuple[str, ...]
    segments: int
    fps: float
    static: int
    problem: str | None


class Records(Sequence):
    """The records of all parts, in order. Parts are opened when they are read.

    Args:
      folder: Folder of the dataset.
      counts: Number of records of each part.
    """

    def __init__(self, folder: AnyPath, counts: Sequence[int]):
        self._folder = user_path(folder)  # prepares a worker process for the use of buckets
        self._ends = list(itertools.accumulate(counts))
        self._open_part = functools.lru_cache(_OPEN_PARTS)(self._part)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect.bisect_right(self._ends, index)
        first = self._ends[part - 1] if part else 0
        return self._features.deserialize_example_np(self._open_part(part)[index - first])

    def __reduce__(self):
        return Records, (self._folder, np.diff(self._ends, prepend=0).tolist())

    @functools.cached_property
    def _features(self) -> tfds.features.FeatureConnector:
        """The features, which all parts with records share."""
        part = next(index for index, end in enumerate(self._ends) if end)
        check_dataset(self._folder / part_name(part))
        check_features(self._folder / part_name(part))
        return tfds.features.FeatureConnector.from_config(self._folder / part_name(part))

    def _part(self, part: int) -> CheckedRecords:
        folder = self._folder / part_name(part)
        check_dataset(folder)
        paths = sorted(map(str, folder.glob(f"{_RECORDS}-*")))
        if not paths:
            raise UserError(f"{folder}: no records, expected {_RECORDS}-00000; delete the dataset")
        with reporting_damage(folder):
            return CheckedRecords(ArrayRecordDataSource(paths), folder)


def part_name(index: int) -> str:
    """Returns the name of a part's folder."""
    return f"part-{index:05d}"


def build_part(task: PartTask, map_clips: MapClips = map) -> None:
    """Writes a part, unless it exists.

    Args:
      task: The part.
      map_clips: Function like `map` that prepares the clips, in order.

    Raises:
      UserError: the disk is full or read-only, the bucket cannot be written, a worker died, a
        package is missing, or a clip failed for a reason that may pass. Leaves no partial part on
        disk.
    """
    folder = task.folder
    if task.settings.scene_cuts:
        check_installed()
    if is_finished(folder):
        return
    if is_remote(folder):
        with tempfile.TemporaryDirectory(prefix="stunet-") as name:
            with writing(name):
                _write_part(Path(name), task, map_clips)
            upload_files(Path(name), folder, last=_CLIPS)
        return
    temporary = folder.with_name(f".{folder.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        with writing(folder):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            _write_part(temporary, task, map_clips)
            _rename_new(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_part(folder: Path, task: PartTask, map_clips: MapClips) -> None:
    """Writes the files of a part to an empty folder on disk."""
    with (folder / _SEGMENTS).open("w+b") as file:
        results, segments = _prepare(task, map_clips, file)
        _write_records(folder, task, segments, file)
    (folder / _SEGMENTS).unlink()
    lines = [json.dumps(result._asdict()) + "\n" for result in results]
    (folder / _CLIPS).write_text("".join(lines), encoding="utf-8")
    write_checksums(folder)


def is_finished(folder: AnyPath) -> bool:
    """Returns whether a part exists and is complete."""
    return is_complete(folder, last=_CLIPS)


def delete_folder(folder: AnyPath) -> None:
    """Deletes a folder on disk or in a bucket, if there is one."""
    if is_remote(folder):
        remove_folder(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def build_locally(workers: int) -> BuildParts:
    """Returns a function that builds parts in order, by processes of this machine.

    Args:
      workers: Number of processes that prepare clips. 1 uses this process.
    """

    def build(tasks: Sequence[PartTask]) -> None:
        total = sum(len(task.clips) for task in tasks)
        bar = tqdm(total=total, desc="clips", unit=" clips", mininterval=1.0, leave=False)
        with bar, map_clips(workers) as map_function:

            def advance(result: PreparedClip) -> PreparedClip:
                bar.update()
                return result

            def map_with_progress(function: Callable, clips: Iterable[SourceClip]) -> Iterator:
                return map(advance, map_function(function, clips))

            for task in tasks:
                build_part(task, map_with_progress)

    return build


def write_manifest(folder: AnyPath, content: dict[str, Any], num_parts: int) -> None:
    """Completes a dataset whose parts are finished.

    Args:
      folder: Folder of the dataset.
      content: Values to store: "settings" and others.
      num_parts: Number of parts.

    Raises:
      UserError: the disk is full or read-only.
    """
    counts = [
        sum(result.segments for result in read_results(folder, part)) for part in range(num_parts)
    ]
    values = {"format_version": FORMAT_VERSION, **content, "records": counts}
    write_text(folder / _MANIFEST, json.dumps(values, indent=2) + "\n")
    write_checksums(folder, lambda name: name == _MANIFEST)


def read_manifest(folder: AnyPath) -> dict[str, Any] | None:
    """Returns the manifest of a dataset, or None if the dataset is absent or incomplete.

    Raises:
      UserError: the manifest cannot be read or was written by a newer version.
    """
    path = folder / _MANIFEST
    if not path.exists():
        return None
    if not check_files(folder, [_MANIFEST]):
        report_unchecked(folder)
    values = read_json(path)
    if values.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version {values.get('format_version')!r}, expected {FORMAT_VERSION}; "
            "prepare the dataset again or install a newer stunet"
        )
    return values


def read_results(folder: AnyPath, part: int) -> Iterator[ClipResult]:
    """Yields source, captions and result of each clip of a finished part. Reads no frames.

    Raises:
      UserError: the part is missing or damaged.
    """
    path = folder / part_name(part) / _CLIPS
    check_files(path.parent, [_CLIPS])
    for number, line in enumerate(split_lines(read_text(path)), 1):
        try:
            result = ClipResult(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path}: line {number} is damaged ({error}), expected a clip; delete the folder "
                "and prepare the dataset again"
            ) from error
        span = None if result.span is None else tuple(result.span)
        yield result._replace(captions=tuple(result.captions), span=span)


@contextlib.contextmanager
def building(folder: AnyPath) -> Iterator[None]:
    """Waits for other builds of this dataset, and deletes leftovers of killed ones.

    On a file system without locks and in a bucket, builds do not wait for each other, and leftovers
    stay until the same dataset is built: both write the same records.

    Raises:
      UserError: the folder cannot be created.
    """
    if is_remote(folder):
        yield
        return
    handle, is_locked = _lock(folder)
    try:
        if is_locked:
            _delete_leftovers(folder)
        yield
        if is_locked:  # of workers on other machines
            _delete_leftovers(folder)
    finally:
        # Before the lock is released: another build must not lock a folder that is deleted.
        with contextlib.suppress(OSError):  # deletes the folder only if it is empty
            folder.rmdir()
        os.close(handle)


def _lock(folder: Path) -> tuple[int, bool]:
    """Creates and locks a folder; returns its handle, and whether the file system has locks."""
    while True:
        try:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # deleted by another build
            continue
        except OSError as error:
            raise UserError(f"{folder}: cannot be created ({error.strerror})") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            return handle, False
        # The build that held the lock may have deleted the folder.
        if _is_open(folder, handle):
            return handle, True
        os.close(handle)


def _is_open(folder: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(folder))
    except FileNotFoundError:
        return False


def _delete_leftovers(folder: Path) -> None:
    for path in (*folder.glob(".part-*"), *folder.glob(".tasks")):
        shutil.rmtree(path, ignore_errors=True)


class _Segment(NamedTuple):
    """A segment in the file of segments.

    Attributes:
      key: Hash that orders the records.
      clip: Index of the clip.
      num_frames: Number of frames.
      offset: Position in the file in bytes.
      size: Size in bytes.
    """

    key: int
    clip: int
    num_frames: int
    offset: int
    size: int


def _prepare(
    task: PartTask, map_clips: MapClips, file: BinaryIO
) -> tuple[list[ClipResult], list[_Segment]]:
    """Prepares the clips of a part, and appends their segments to a file."""
    results, segments = [], []
    prepared = map_clips(functools.partial(prepare_clip, task.settings), task.clips)
    # The order of the records is that of TFDS's builders, which also hash the name of the split.
    hasher = Hasher("train")
    for index, clip in enumerate(task.clips):
        found = next(prepared)
        results.append(
            ClipResult(
                clip.name,
                clip.span,
                clip.content,
                clip.captions,
                len(found.segments),
                found.fps,
                found.static,
                found.problem,
            )
        )
        span = "" if clip.span is None else "@{:.3f}-{:.3f}".format(*clip.span)
        for number, (num_frames, content) in enumerate(found.segments):
            key = hasher.hash_key(f"{clip.name}{span}#{number}")
            offset, view = file.tell(), memoryview(content).cast("B")
            file.write(view)
            segments.append(_Segment(key, index, num_frames, offset, len(view)))
    return results, segments


def _write_records(
    folder: Path, task: PartTask, segments: Sequence[_Segment], file: BinaryIO
) -> None:
    """Writes segments as records, sorted by their keys. Holds one of them in memory.

    Records of encoded clips have `video` (bytes) and `num_frames`; those of raw clips have `frames`
    `[T, H, W, 3]` uint8. All have the name of the source `file` and `caption`, whose lines are the
    captions of the clip. (A TFDS builder would need TensorFlow to sort more than 1 GB.)
    """
    if not segments:
        return
    side, is_raw = task.settings.resolution, task.settings.storage == "raw"
    features = {name: tfds.features.Text() for name in ("caption", "file")}
    if is_raw:
        encoding = tfds.features.Encoding.BYTES
        features["frames"] = tfds.features.Tensor(
            shape=(None, side, side, 3), dtype=np.uint8, encoding=encoding
        )
    else:
        features |= {"video": tfds.features.Text(), "num_frames": np.int64}
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="clips", version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    mean_size = max(1, sum(segment.size for segment in segments) // len(segments))
    writer = tfds.core.SequentialWriter(
        info, max(1, _SHARD_BYTES // mean_size), file_format="array_record"
    )
    writer.initialize_splits(["train"])
    for segment in sorted(segments):
        file.seek(segment.offset)
        content, clip = file.read(segment.size), task.clips[segment.clip]
        record: dict[str, Any] = {"caption": "\n".join(clip.captions), "file": clip.name}
        if is_raw:
            frames = np.frombuffer(content, np.uint8)
            record["frames"] = frames.reshape(segment.num_frames, side, side, 3)
        else:
            record |= {"video": content, "num_frames": segment.num_frames}
        writer.add_examples({"train": [record]})
    writer.close_all()


def _rename_new(path: Path, folder: Path) -> None:
    """Renames a folder, unless another process has built the same part."""
    try:
        path.rename(folder)
    except OSError:
        if not folder.exists():
            raise
