"""Base of the datasets of real videos: decoded once, stored as uint8 frames."""

import abc
import contextlib
import functools
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from data.data_config import DataConfig, Record
from data.records import progress, silence_config_warning
from stunet.errors import UserError
from stunet.files import user_path
from stunet.video_io import decode_frames, probe, to_float
from stunet.video_io.folders import printable_name

# Videos are stored in segments of this many frames up to twice as many: long enough for a random
# start, short enough to read quickly.
SEGMENT = 16

_SAMPLE = 2**16  # bytes at each end of a video that identify its content
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
_SLOWER = 0.95  # of `fps`; a video with fewer frames per second is reported


class SourceVideo(NamedTuple):
    """A video of the source.

    Attributes:
      name: Path relative to the source.
      open: Returns the path or the content of the file.
      captions: Empty if the source has none for it; the video is then skipped.
      problem: Why the video is skipped, None if nothing is known.
    """

    name: str
    open: Callable[[], str | Path | BinaryIO]
    captions: tuple[str, ...]
    problem: str | None = None


class Source(NamedTuple):
    """The videos of a source.

    Attributes:
      videos: All videos, sorted by name.
      skipped: A line for each file that is not among them, with the reason.
    """

    videos: list[SourceVideo]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StoredClipsConfig(DataConfig):
    """Base of the configs of datasets that are built from video files.

    Attributes:
      source: Folder or archive of the videos. Empty is accepted in config files, but not by
        `make_builder`.
    """

    builder_class: ClassVar[type["StoredClips"]]

    source: str

    @abc.abstractmethod
    def source_files(self) -> Mapping[str, Path]:
        """Returns the files that the records depend on, by their names within the source.

        Raises:
          UserError: the source does not exist or contains no video.
        """

    def make_builder(self) -> "StoredClips":
        """Returns the TFDS builder; its name changes with the fields and the source's content."""
        if not self.source:  # Path("") would be the current folder
            raise UserError(f"config.data.source: empty, expected the videos of {self.name!r}")
        builder_config = StoredClipsBuilderConfig(name=self._builder_name(), data_config=self)
        with silence_config_warning():
            return self.builder_class(
                config=builder_config,
                data_dir=str(user_path(self.data_dir)),
                file_format="array_record",
            )

    def captions(self, records: Sequence[Record]) -> list[tuple[str, ...]]:
        """Returns the captions of every record, from a file that is written once.

        The records also contain the frames, which would take long to read.
        """
        path = Path(self.make_builder().data_path) / f"captions_{self.split}.json"
        if path.exists():
            return [tuple(texts) for texts in json.loads(path.read_text())]
        captions = super().captions(records)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # a read-only or full disk
            new.write_text(json.dumps(captions))
            new.replace(path)
        return captions

    def decode(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        """Returns a random window of `num_frames` of a stored segment."""
        frames = record["frames"]
        start = int(rng.integers(len(frames) - self.num_frames + 1))
        return to_float(frames[start : start + self.num_frames])

    def _builder_name(self) -> str:
        digest = blake2b(digest_size=5)
        for name, path in sorted(self.source_files().items()):
            digest.update(f"{name}\0{_content_digest(path)}\n".encode(errors="surrogateescape"))
        size = f"{self.resolution}px-{self.fps:g}fps-{self.num_frames}f"
        return f"{digest.hexdigest()}-{size}".replace(".", "_")


@dataclass(kw_only=True)
class StoredClipsBuilderConfig(tfds.core.BuilderConfig):
    """Passes the data config to the builder."""

    data_config: StoredClipsConfig


class StoredClips(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Records of `frames` [T, H, W, 3] uint8, `caption`, and the name of the source `file`.

    Several captions of a video are lines of `caption`.

    Each video is re-timed to `fps`, centre-cropped, downsampled to `resolution` with
    anti-aliasing, and cut into segments of `num_frames` or more. Videos that cannot be decoded,
    are too short or have no caption are skipped, and listed with the reason at the end.

    Raises (from `download_and_prepare`):
      UserError: every video was skipped.
    """

    VERSION = tfds.core.Version("1.1.0")  # 1.1: several captions per video, one per line

    @abc.abstractmethod
    def read_source(self) -> Source:
        """Lists the videos of the source.

        Raises:
          UserError: the source does not exist or contains no video.
        """

    @property
    def data_config(self) -> Any:
        """The data config that the builder was made from."""
        return self.builder_config.data_config

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.data_config.resolution
        frames = tfds.features.Tensor(
            shape=(None, side, side, 3), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        )
        texts = {name: tfds.features.Text() for name in ("caption", "file")}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"frames": frames, **texts})
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        (videos, unread), skipped, slow = self.read_source(), [], {}
        for video in progress(videos, "videos"):
            name = printable_name(video.name)
            try:
                segments, rate = _read_segments(video, self.data_config)
            except Exception as error:  # one damaged file must not end the build
                reason = str(error).rpartition(f"{video.name}: ")[2] or repr(error)
                skipped.append(f"{name}: {' '.join(reason.split())}")
                continue
            if 0 < rate < _SLOWER * self.data_config.fps:
                slow[name] = rate
            for index, frames in enumerate(segments):
                caption = "\n".join(video.captions)
                yield (
                    f"{video.name}#{index}",
                    {"frames": frames, "caption": caption, "file": video.name},
                )
        _report(len(videos), skipped, unread, slow, self.data_config.fps)
        if len(skipped) == len(videos):
            raise UserError(
                f"{self.data_config.source}: none of {len(videos)} videos is usable ({skipped[0]})"
            )


def _report(
    total: int, skipped: list[str], unread: Sequence[str], slow: dict[str, float], fps: float
) -> None:
    """Prints what was skipped, and which videos have fewer frames than requested."""
    lines = []
    if skipped:
        lines += [f"skipped {len(skipped)} of {total} videos:", *(f"  {line}" for line in skipped)]
    if unread:
        lines += ["other remarks on the source:", *(f"  {line}" for line in unread)]
    if slow:
        name = min(slow, key=slow.__getitem__)
        lines.append(
            f"config.data.fps: {fps:g}, but {len(slow)} of {total} videos have fewer frames per "
            f"second (the slowest {slow[name]:g}: {name}); their frames are repeated"
        )
    print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)


def cut(frames: Iterable[np.ndarray], minimum: int, length: int) -> Iterator[np.ndarray]:
    """Cuts a stream of frames into consecutive segments `[T, H, W, 3]`.

    Every segment has `length` frames, except the last one, which includes the remainder and has
    fewer than `2 * length`. A video of fewer than `minimum` frames yields no segment.
    """
    pending: list[np.ndarray] = []
    for frame in frames:
        pending.append(frame)
        if len(pending) == 2 * length:
            yield np.stack(pending[:length])
            del pending[:length]
    if len(pending) >= minimum:
        yield np.stack(pending)


def _read_segments(video: SourceVideo, config: StoredClipsConfig) -> tuple[list[np.ndarray], float]:
    """Returns the segments of a video and its frames per second (0 for a still image)."""
    if video.problem or not video.captions:
        raise UserError(video.problem or "no caption")
    rate = probe(video.open()).fps
    frames = decode_frames(video.open(), config.fps, config.resolution)
    count = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal count
        for frame in frames:
            count += 1
            yield frame

    # A list, so that a file that fails to decode half-way yields no records.
    segments = list(cut(counted(), config.num_frames, max(SEGMENT, config.num_frames)))
    if not segments:
        raise UserError(
            f"too short: {count} frames at {config.fps:g} fps, expected {config.num_frames}"
        )
    return segments, rate


def _content_digest(path: Path) -> str:
    """Identifies the content of a file; "" if it cannot be read.

    Uses all of a small file or a table of captions, the checksums in an archive, and the size and
    both ends of another file.
    """
    try:
        state = path.stat()
        return _cached_digest(path, state.st_size, state.st_mtime_ns)
    except OSError:
        return ""


@functools.lru_cache(maxsize=2**20)
def _cached_digest(path: Path, size: int, modified: int) -> str:
    del modified  # a changed file is read again
    suffix = path.suffix.lower()
    if suffix == ".zip":
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            members = [(m.filename, m.file_size, m.CRC) for m in archive.infolist()]
            return blake2b(repr(members).encode(), digest_size=16).hexdigest()
    with path.open("rb") as file:
        digest = blake2b(file.read(_SAMPLE), digest_size=16)
        if suffix not in _TEXT_SUFFIXES:
            file.seek(max(_SAMPLE, size - _SAMPLE))
        digest.update(file.read())
    return f"{size} {digest.hexdigest()}"
