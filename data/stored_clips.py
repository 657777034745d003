"""Base of the datasets of real videos: their config, preparation and reading."""

import abc
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from data import parts
from data.data_config import DataConfig, Record
from data.encoding import decode_window
from data.preparation import ClipSettings, available_cores
from data.sources import MediaFile, Source
from stunet.errors import UserError
from stunet.paths import AnyPath, user_path
from stunet.schema import Range
from stunet.video_io.folders import printable_name

_SLOWER = 0.95  # of `fps`; a video with fewer frames per second is reported
_SHOWN = 100  # skipped clips that are listed
_MAX_WORKERS = 8  # that decode by default; few are needed (docs/scaling.md)
_READ_BATCH = 1000  # files
_READ_THREADS = 16  # for digests of files, which may be on a network file system


@dataclass(frozen=True, kw_only=True)
class StoredClipsConfig(DataConfig):
    """Base of the configs of datasets that are built from video files.

    Each video is re-timed to `fps`, centre-cropped, downsampled to `resolution` with
    anti-aliasing, and cut into segments of `num_frames` or more. Videos that cannot be decoded,
    are too short or have no caption are skipped, and listed with the reason.

    Attributes:
      source: Folder or archive of the videos, on disk or in a bucket (gs://). Not needed once
        `dataset` is built.
      dataset: Name of a built dataset in `data_dir`, as `experiments.prepare` prints it. None
        derives it from the content of `source` and the settings below.
      storage: "encoded" stores H.264 (`data.encoding`), "raw" uncompressed uint8 frames.
      scene_cuts: Whether clips are cut where a new scene begins (`data.scenes`).
      min_motion: Segments with less motion are dropped (`data.scenes.motion`). 0 keeps all.
      part_size: Clips of a part of the dataset. An interrupted build keeps finished parts.
    """

    source: str = ""
    dataset: str | None = None
    storage: Literal["encoded", "raw"] = "encoded"
    scene_cuts: bool = False
    min_motion: Annotated[float, Range(0)] = 0.0
    part_size: int = 1000

    video_dtype: ClassVar[str] = "uint8"

    @abc.abstractmethod
    def read_source(self) -> Source:
        """Lists the clips of `source`.

        Raises:
          UserError: the source does not exist or contains no video.
        """

    def prepare(
        self, build_parts: parts.BuildParts, check: Callable[[str], None]
    ) -> "StoredClipsConfig":
        """Builds the dataset from `source`, unless it exists; see `DataConfig.prepare`."""
        if self.dataset and parts.read_manifest(self.folder()) is not None:
            check(self.fingerprint())
            return self._matching_manifest()
        plan = self._plan()
        if self.dataset and self.dataset != plan.dataset:
            raise UserError(
                f"config.data.dataset: {self.dataset!r} is not in {self._datasets_folder()}, and "
                f"config.data.source has the content of {plan.dataset!r}"
            )
        ready = replace(self, dataset=plan.dataset)
        check(ready.fingerprint())
        if parts.read_manifest(ready.folder()) is None:
            with parts.building(ready.folder()):
                if parts.read_manifest(ready.folder()) is None:  # not built while this one waited
                    self._build(plan, build_parts)
        return ready

    def folder(self) -> AnyPath:
        """Returns the folder of the dataset. Lists the source if `dataset` is None."""
        return self._datasets_folder() / (self.dataset or self._plan().dataset)

    def fingerprint(self) -> str:
        """Returns the kind and the name of the dataset. Lists the source if `dataset` is None."""
        return f"{self.name}/{self.folder().name}"

    def open_records(self) -> Sequence[Record]:
        """Returns the records of all parts."""
        if self.split != "train":
            raise UserError(f"{self.folder()}: no split {self.split!r}, expected train")
        return parts.Records(self.folder(), self._manifest()["records"])

    def captions(self) -> list[str]:
        """Returns the captions of each clip, as often as it has records. Reads no frames."""
        return [
            text
            for part in range(len(self._manifest()["records"]))
            for result in parts.read_results(self.folder(), part)
            for _ in range(result.segments)
            for text in result.captions
        ]

    def decode(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        """Returns a random window of `num_frames` of a stored segment, uint8."""
        return self._decode(record, rng, (0, 0, self.resolution, self.resolution))

    def decode_crop(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        """Returns a random window of a segment, cropped before its conversion to RGB."""
        return self._decode(record, rng, None)

    def read_workers(self) -> int:
        """Returns `workers`; None means one per core, up to 8, for encoded clips, none for raw."""
        if self.workers is not None:
            return self.workers
        is_encoded = self._manifest()["settings"]["storage"] == "encoded"
        return min(available_cores(), _MAX_WORKERS) if is_encoded else 0

    def _decode(
        self, record: Record, rng: np.random.Generator, box: tuple[int, int, int, int] | None
    ) -> np.ndarray:
        """Decodes a random window; `box` None draws the crop after the first frame."""
        is_raw = "frames" in record
        length = len(record["frames"]) if is_raw else int(record["num_frames"])
        start = int(rng.integers(length - self.num_frames + 1))
        top, left, height, width = box = box or self.draw_crop(rng)
        if not is_raw:
            try:
                return decode_window(record["video"], start, self.num_frames, box)
            except ValueError as error:
                raise UserError(
                    f"{self.folder()}: damaged record of {record['file'].decode()} ({error}); "
                    "delete the dataset and prepare it again"
                ) from error
        window = record["frames"][start : start + self.num_frames]
        return window[:, top : top + height, left : left + width]

    def _datasets_folder(self) -> AnyPath:
        return user_path(self.data_dir) / self.name.rpartition(":")[2]

    def _manifest(self) -> dict[str, Any]:
        manifest = parts.read_manifest(self.folder())
        if manifest is None:
            raise UserError(f"{self.folder()}: no such dataset, expected a prepared one")
        return manifest

    def _matching_manifest(self) -> "StoredClipsConfig":
        """Returns this config; raises a `UserError` if the dataset was prepared otherwise."""
        manifest = self._manifest()
        settings = manifest["settings"]
        for field, fits in (
            ("resolution", self.resolution == settings["resolution"]),
            ("fps", self.fps == settings["fps"]),
            ("num_frames", self.num_frames <= settings["num_frames"]),
        ):
            if not fits:
                at_most = "at most " if field == "num_frames" else ""
                raise UserError(
                    f"config.data.{field}: {getattr(self, field)}, expected {at_most}"
                    f"{settings[field]}, as dataset {self.dataset!r} was prepared"
                )
        for field, value in self._preparation().items():
            stored = manifest["preparation"].get(field)
            if value != stored and value != type(self).__dataclass_fields__[field].default:
                raise UserError(
                    f"config.data.{field}: {value!r}, expected {stored!r}, as dataset "
                    f"{self.dataset!r} was prepared (or none)"
                )
        return self

    def _preparation(self) -> dict[str, Any]:
        """Returns the fields that select and prepare clips, besides `ClipSettings`' common ones."""
        common = {field.name for field in fields(DataConfig)} | {"source", "dataset"}
        own = [field.name for field in fields(self) if field.name not in common]
        return {name: getattr(self, name) for name in own}

    def _plan(self) -> "_Plan":
        """Lists the source and derives the name of the dataset from it."""
        if not self.source:  # Path("") would be the current folder
            known = sorted(path.parent.name for path in self._datasets_folder().glob("*/manifest*"))
            ready = f", or config.data.dataset: {' or '.join(known)}" if known else ""
            raise UserError(
                f"config.data.source: empty, expected the videos of {self.name!r}{ready}"
            )
        source = _with_content(self.read_source())
        settings = ClipSettings(
            self.num_frames,
            self.resolution,
            self.fps,
            self.storage,
            self.scene_cuts,
            self.min_motion,
        )
        digest = blake2b(digest_size=8)
        digest.update(json.dumps([*settings, self.part_size, parts.FORMAT_VERSION]).encode())
        for clip in source.clips:
            line = json.dumps([clip.name, clip.span, clip.captions, clip.content])
            digest.update(line.encode())
        size = f"{self.resolution}px-{self.fps:g}fps-{self.num_frames}f"
        dataset = f"{digest.hexdigest()}-{size}".replace(".", "_")
        return _Plan(dataset, source, settings)

    def _build(self, plan: "_Plan", build_parts: parts.BuildParts) -> None:
        folder, clips = self._datasets_folder() / plan.dataset, plan.source.clips
        if plan.source.summary:
            print(plan.source.summary, file=sys.stderr)
        starts = range(0, len(clips), self.part_size)
        tasks = [
            parts.PartTask(
                folder / parts.part_name(number),
                clips[start : start + self.part_size],
                plan.settings,
            )
            for number, start in enumerate(starts)
        ]
        missing = [task for task in tasks if not parts.is_finished(task.folder)]
        finished = len(tasks) - len(missing)
        resumed = f", {finished} of {len(tasks)} parts are finished" if finished else ""
        print(f"building {folder} from {len(clips)} clips{resumed}", file=sys.stderr)
        start = time.monotonic()
        build_parts(missing)
        results = (r for part in range(len(tasks)) for r in parts.read_results(folder, part))
        lines, skipped = _remarks(results, plan.source.skipped, self.fps)
        if len(skipped) == len(clips):
            parts.delete_folder(folder)
            raise UserError(f"{self.source}: none of {len(clips)} videos is usable ({skipped[0]})")
        content = {
            "dataset": plan.dataset,
            "settings": plan.settings._asdict(),
            "preparation": self._preparation(),
        }
        parts.write_manifest(folder, content, len(tasks))
        lines.append(f"built {folder} in {time.monotonic() - start:.0f} s")
        print(*lines, sep="\n", file=sys.stderr)


class _Plan(NamedTuple):
    """A dataset to build: its name, clips with their `content`, and settings."""

    dataset: str
    source: Source
    settings: ClipSettings


def _with_content(source: Source) -> Source:
    """Returns the source with the digest of each clip's file."""
    files = list(dict.fromkeys(clip.file for clip in source.clips))
    digests: dict[MediaFile, str] = {}
    bar = tqdm(total=len(files), desc="source files", unit=" files", delay=1.0, leave=False)
    with bar, ThreadPoolExecutor(_READ_THREADS) as pool:
        for start in range(0, len(files), _READ_BATCH):
            batch = files[start : start + _READ_BATCH]
            digests.update(zip(batch, pool.map(MediaFile.digest, batch), strict=True))
            bar.update(len(batch))
    return source._replace(
        clips=[clip._replace(content=digests[clip.file]) for clip in source.clips]
    )


def _remarks(
    results: Iterable[parts.ClipResult], unread: Sequence[str], fps: float
) -> tuple[list[str], list[str]]:
    """Returns lines for the user, and the names of skipped clips with the reasons."""
    skipped, slow, static, total = [], {}, 0, 0
    for result in results:
        name = printable_name(result.name)
        total, static = total + 1, static + result.static
        if result.problem is not None:
            span = "" if result.span is None else " ({:g} to {:g} s)".format(*result.span)
            skipped.append(f"{name}{span}: {result.problem}")
        elif 0 < result.fps < _SLOWER * fps:
            slow[name] = result.fps
    lines = []
    if skipped:
        more = [f"... and {len(skipped) - _SHOWN} others"] * (len(skipped) > _SHOWN)
        shown = [f"  {line}" for line in (*skipped[:_SHOWN], *more)]
        lines += [f"skipped {len(skipped)} of {total} videos:", *shown]
    if unread:
        lines += ["other remarks on the source:", *(f"  {line}" for line in unread)]
    if static:
        lines.append(f"{static} segments dropped for lack of motion")
    if slow:
        name = min(slow, key=slow.__getitem__)
        lines.append(
            f"config.data.fps: {fps:g}, but {len(slow)} of {total} videos have fewer frames per "
            f"second (the slowest {slow[name]:g}: {name}); their frames are repeated"
        )
    return lines, skipped
