"""What the builders of real videos share: clips decoded once, kept as uint8 frames."""

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from data.records import progress
from stunet.errors import UserError
from stunet.video_io import decode_frames

# A video is stored in segments of at least this many frames where it has them, of less
# than twice as many: long enough for a random start, short enough to read quickly.
SEGMENT = 16


class Clip(NamedTuple):
    """A video of the source: its name there, how to open it, and its caption if it has one."""

    name: str
    open: Callable[[], str | Path | BinaryIO]
    caption: str | None


@dataclass(kw_only=True)
class StoredClipsConfig(tfds.core.BuilderConfig):
    """Where the videos come from and how they are stored."""

    source: str
    resolution: int
    fps: float
    num_frames: int  # the shortest clip of use
    prompts: str | None = None  # ucf101: a TSV of class and caption


class StoredClips(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Records of `frames` [T, H, W, 3] uint8, `caption` and the `file` they are from.

    Each video is re-timed to `fps`, centre-cropped, anti-aliased down to `resolution`
    and cut into segments of `num_frames` or more. A file that cannot be decoded, is too
    short or has no caption is skipped; what was skipped, and why, is listed at the end.

    Raises (from `download_and_prepare`):
      UserError: no video is left.
    """

    VERSION = tfds.core.Version("1.0.0")

    @abstractmethod
    def clips(self) -> list[Clip]:
        """The videos of `builder_config.source`; raises `UserError` where it is none."""

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.builder_config.resolution
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
        config = self.builder_config
        clips, skipped = self.clips(), []
        for clip in progress(clips, "videos"):
            try:
                segments = _read_segments(clip, config)
            except UserError as error:
                reason = str(error).rpartition(f"{clip.name}: ")[2]
                skipped.append(f"  {clip.name}: {reason}")
                continue
            for index, frames in enumerate(segments):
                record = {"frames": frames, "caption": clip.caption, "file": clip.name}
                yield f"{clip.name}#{index}", record
        if skipped:
            print(f"skipped {len(skipped)} of {len(clips)} videos:", file=sys.stderr)
            print("\n".join(skipped), file=sys.stderr)
        if len(skipped) == len(clips):
            first = skipped[0].strip()
            raise UserError(f"{config.source}: none of its {len(clips)} videos is usable ({first})")


def stored_config(files: Iterable[Path], **fields: Any) -> StoredClipsConfig:
    """The config, under a name that changes with its fields and with the source's files.

    Args:
      files: what the records are made from; their names, sizes and dates count.
      **fields: those of `StoredClipsConfig`.
    """
    digest = blake2b(digest_size=5)
    for path in sorted(files):
        state = path.stat()
        digest.update(f"{path.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    form = "{resolution}px-{fps:g}fps-{num_frames}f".format(**fields)
    name = f"{digest.hexdigest()}-{form}".replace(".", "_")
    return StoredClipsConfig(name=name, **fields)


def cut(frames: Iterable[np.ndarray], minimum: int, length: int) -> Iterator[np.ndarray]:
    """Cuts a stream of frames into consecutive segments `[T, H, W, 3]`.

    All have `length` frames but the last, which takes the remainder with it: it has
    fewer than `2 * length`, and is left out when the video has not even `minimum`.
    """
    held: list[np.ndarray] = []
    for frame in frames:
        held.append(frame)
        if len(held) == 2 * length:
            yield np.stack(held[:length])
            del held[:length]
    if len(held) >= minimum:
        yield np.stack(held)


def _read_segments(clip: Clip, config: StoredClipsConfig) -> list[np.ndarray]:
    if not clip.caption:
        raise UserError("no caption")
    frames = decode_frames(clip.open(), config.fps, config.resolution)
    count = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal count
        for frame in frames:
            count += 1
            yield frame

    # A list, so that a file that breaks off in its middle leaves nothing behind.
    segments = list(cut(counted(), config.num_frames, max(SEGMENT, config.num_frames)))
    if not segments:
        raise UserError(
            f"too short: {count} frames at {config.fps:g} fps, {config.num_frames} needed"
        )
    return segments
