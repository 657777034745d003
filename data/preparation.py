"""Turns one clip of a source into segments: cut at scenes, re-timed, resized, encoded.

`map_clips` distributes this work over processes; their number does not change the result.
"""

import collections
import contextlib
import errno
import functools
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Literal, NamedTuple, TypeVar

import av
import numpy as np

from data.encoding import encode_segment
from data.scenes import motion, split_scenes
from data.sources import MediaFile, SourceClip, file_version
from stunet.errors import BucketError, UserError
from stunet.video_io import decode_frames, probe

# Clips are stored in segments of this many frames up to twice as many: long enough for a random
# start, short enough to read quickly.
SEGMENT = 16

_TEMPORARY = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT)

T = TypeVar("T")
R = TypeVar("R")


class ClipSettings(NamedTuple):
    """How clips are stored.

    Attributes:
      num_frames: Minimum number of frames of a segment.
      resolution: Height and width of a frame in pixels.
      fps: Frames per second.
      storage: "encoded" (H.264, `data.encoding`) or "raw" (uint8 frames).
      scene_cuts: Whether segments end where a new scene begins.
      min_motion: Segments with less motion (`data.scenes.motion`) are dropped. 0 keeps all.
    """

    num_frames: int
    resolution: int
    fps: float
    storage: Literal["encoded", "raw"]
    scene_cuts: bool
    min_motion: float


class PreparedClip(NamedTuple):
    """The segments of a clip.

    Attributes:
      segments: Number of frames of each segment, and its content: H.264, or uint8
        `[T, resolution, resolution, 3]`.
      fps: Frames per second of the source. 0 for a still image.
      static: Number of segments that were dropped for lack of motion.
      problem: Why the clip has no segments. None if it has.
    """

    segments: tuple[tuple[int, bytes | np.ndarray], ...] = ()
    fps: float = 0.0
    static: int = 0
    problem: str | None = None


def prepare_clip(settings: ClipSettings, clip: SourceClip) -> PreparedClip:
    """Decodes a clip and cuts it into segments.

    Besides the result, at most two segments are in memory uncompressed. A damaged file gives a
    result with a `problem`.

    Raises:
      UserError: the clip failed for a reason that may pass (no memory, an I/O error, an error of
        the bucket, a missing package, a changed or vanished file). The dataset would otherwise lack
        it forever.
    """
    try:
        return _prepare_clip(settings, clip)
    except Exception as error:
        name = clip.file.member or clip.file.path.name
        reason = " ".join((str(error).rpartition(f"{name}: ")[2] or repr(error)).split())
        if _is_temporary(error):
            raise UserError(
                f"{clip.name}: {reason}; the same command continues after the finished parts"
            ) from error
        if clip.content is not None and clip.file.digest() != clip.content:
            raise UserError(
                f"{clip.name}: changed while the dataset was prepared ({reason}), expected an "
                "unchanged source"
            ) from error
        return PreparedClip(problem=reason)


def _is_temporary(error: BaseException | None) -> bool:
    """Returns whether an error says nothing about the clip."""
    while error is not None:
        is_temporary = isinstance(error, BucketError | ImportError | MemoryError) or (
            isinstance(error, OSError) and error.errno in _TEMPORARY
        )
        if is_temporary and not isinstance(error, av.FFmpegError):  # FFmpeg's are about the file
            return True
        error = error.__cause__
    return False


def _prepare_clip(settings: ClipSettings, clip: SourceClip) -> PreparedClip:
    if clip.problem or not clip.captions:
        raise UserError(clip.problem or "no caption")
    rate = _frame_rate(clip.file, file_version(clip.file.path))
    with clip.file.open() as file:
        frames = decode_frames(file, settings.fps, settings.resolution, clip.span)
        return _cut_segments(settings, frames, rate)


def _cut_segments(
    settings: ClipSettings, frames: Iterator[np.ndarray], rate: float
) -> PreparedClip:
    """Cuts the frames of a clip, whose file has `rate` frames per second, into segments."""
    count, static, longest = 0, 0, 0
    segments = []
    scenes = _scenes(frames, settings.fps) if settings.scene_cuts else [frames]
    for scene in scenes:
        length = 0

        def count_frames(scene: Iterator[np.ndarray] = scene) -> Iterator[np.ndarray]:
            nonlocal length
            for frame in scene:
                length += 1
                yield frame

        minimum = settings.num_frames
        for segment in cut(count_frames(), minimum, max(SEGMENT, minimum)):
            if settings.min_motion and motion(segment) < settings.min_motion:
                static += 1
            else:
                stored = segment
                if settings.storage == "encoded":
                    stored = encode_segment(segment, settings.fps)
                segments.append((len(segment), stored))
        count, longest = count + length, max(longest, length)
    if not segments and static:
        raise UserError(f"static: motion below {settings.min_motion:g} in {static} segments")
    if not segments:
        in_scene = f", {longest} in one scene" if settings.scene_cuts else ""
        raise UserError(
            f"too short: {count} frames at {settings.fps:g} fps{in_scene}, expected "
            f"{settings.num_frames}"
        )
    return PreparedClip(tuple(segments), rate, static)


@functools.lru_cache(maxsize=16)  # a table may cut many clips from one video
def _frame_rate(file: MediaFile, version: str) -> float:
    """Returns the frames per second; `version` invalidates the cache."""
    del version
    with file.open() as content:
        return probe(content).fps


def _scenes(frames: Iterable[np.ndarray], fps: float) -> Iterator[Iterator[np.ndarray]]:
    """Splits a stream of frames into the streams of its scenes."""
    starts, pictures = itertools.tee(split_scenes(frames, fps))
    numbers = itertools.accumulate(start for start, _ in starts)
    numbered = zip(numbers, (picture for _, picture in pictures), strict=True)
    for _, scene in itertools.groupby(numbered, key=lambda item: item[0]):
        yield (picture for _, picture in scene)


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


def available_cores() -> int:
    """Returns the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def map_clips(workers: int) -> Iterator[Callable[[Callable[[T], R], Iterable[T]], Iterator[R]]]:
    """Returns a function like `map` that uses worker processes and keeps the order.

    Args:
      workers: Number of processes. 1 uses none.

    Raises:
      UserError: a worker process died, for example for lack of memory.
    """
    if workers == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # threads of JAX or Grain may be running
    quiet_resource_tracker()
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, context, initializer=end_with_parent)
    try:
        yield functools.partial(_ordered_map, pool, 2 * workers)
    except BaseException:  # otherwise the pool waits for clips that nobody needs
        for process in multiprocessing.active_children():
            if process not in others:
                process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _ordered_map(
    pool: ProcessPoolExecutor, window: int, function: Callable[[T], R], items: Iterable[T]
) -> Iterator[R]:
    """Maps `items`; at most `window` results wait to be used."""
    pending: collections.deque = collections.deque()
    items = iter(items)
    try:
        while True:
            for item in itertools.islice(items, window - len(pending)):
                pending.append(pool.submit(function, item))
            if not pending:
                return
            yield pending.popleft().result()
    except (BrokenProcessPool, OSError) as error:  # OSError: submitted while the pool breaks
        raise UserError(
            "a worker process died (out of memory?), expected it to finish; the same command "
            "continues after the finished parts, --workers=1 needs the least memory"
        ) from error
    finally:
        for future in pending:
            future.cancel()


def quiet_resource_tracker() -> None:
    """Keeps Python's resource tracker from warnings, if it has not started.

    It removes semaphores and shared memory of processes that were killed. An error of this program
    explains the reason; the tracker would add several lines.
    """
    option = "ignore:resource_tracker:UserWarning"
    if option not in sys.warnoptions:  # the tracker's process inherits these options
        sys.warnoptions.append(option)


def start_reader(index: int, count: int) -> None:
    """Initialises a process that reads batches until its parent closes it.

    Ignores all signals that stop training, which a scheduler or a terminal may send to all
    processes: training reads further batches until it has saved.
    """
    del index, count
    for number in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Ends this process if its parent is killed; Ctrl-C is left to the parent.

    For worker processes, which would otherwise wait for work forever.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
