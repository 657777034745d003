"""Decoding: containers, time stamps, orientation. Frames keep the source's size."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import av
import numpy as np

from stunet.errors import UserError

T = TypeVar("T")

Margins = tuple[int, int, int, int]  # pixels at the left, right, top and bottom
VideoSource = str | Path | BinaryIO


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Extent of a video.

    Attributes:
      height: Height in pixels, as stored (before rotation).
      width: Width in pixels, as stored.
      num_frames: Number of frames.
      seconds: Duration. 0 for an image.
    """

    height: int
    width: int
    num_frames: int
    seconds: float


def probe(path: str | Path) -> VideoInfo:
    """Reads the extent of a video from its packets, without decoding them.

    Raises:
      UserError: The file is absent or not a video.
    """
    with _open_container(path) as container:
        stream = container.streams.video[0]
        count, first, end = 0, None, 0.0
        for packet in container.demux(stream):
            if not packet.size:  # the last packet only flushes the decoder
                continue
            count += 1
            if packet.pts is not None:
                start = float(packet.pts * packet.time_base)
                first = start if first is None else min(first, start)
                end = max(end, start + float((packet.duration or 0) * packet.time_base))
        seconds = 0.0 if first is None or _is_image(container) else end - first
        context = stream.codec_context
        return VideoInfo(context.height, context.width, count, seconds)


def read_comment(path: str | Path) -> str | None:
    """Returns the comment that `write_video` stored in an MP4. None if the file has none.

    Raises:
      UserError: The file is absent or not a video.
    """
    with _open_container(path) as container:
        return container.metadata.get("comment")


def decode(source: VideoSource, fps: float | None) -> Iterator[tuple[np.ndarray, float, float]]:
    """Yields (frame, pixel aspect ratio, frame rate) for every frame of a video.

    A frame that resampling repeats is the same array object each time.

    Args:
      source: Path, or an open binary file.
      fps: Frame rate to resample to. None keeps all frames.

    Yields:
      The upright frame `[H, W, 3]` uint8, the width of its pixels over their height, and the
      frames per second: `fps`, else the source's average.

    Raises:
      UserError: The file is absent, cannot be decoded or is truncated.
    """
    name = source_name(source)
    with _open_container(source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or 0) or 25.0
        timed = _with_times(_check_complete(container.decode(stream), stream.frames, name), rate)
        # An image lasts no time: the duration in its container would round to 0 or 2 frames.
        keep_all = fps is None or _is_image(container)
        selected = (frame for _, frame, _ in timed) if keep_all else retime(timed, fps)
        aspect = float(stream.sample_aspect_ratio or 1)
        previous, picture = None, None
        for frame in selected:
            if frame is not previous:  # convert a repeated frame once
                previous, picture = frame, _upright(frame, aspect)
            yield *picture, float(fps or rate)


def retime(timed: Iterable[tuple[float, T, float]], fps: float) -> Iterator[T]:
    """Yields, for every output instant i / fps, the frame displayed at that instant.

    A frame starts up to half its predecessor's duration, and up to half an output period, before
    its time stamp. This selects the nearest frame if the input is at least as fast as the output,
    and tolerates rounded time stamps.

    Args:
      timed: (start, frame, duration) in seconds; starts begin at 0 and do not decrease.
      fps: Frames per second of the output. The output is as long as the input: its last instant
        is the last one at which the last frame is displayed for another tenth of a period.
    """
    index, start, frame, duration = 0, 0.0, None, 0.0
    for next_start, next_frame, next_duration in timed:
        change = next_start - min(next_start - start, 1 / fps) / 2
        while frame is not None and index / fps < change:
            yield frame
            index += 1
        start, frame, duration = next_start, next_frame, next_duration
    while frame is not None and (index + 0.1) / fps < start + duration:
        yield frame
        index += 1


def source_name(source: VideoSource) -> str:
    """Returns the name of a video for error messages."""
    return str(source if isinstance(source, str | Path) else getattr(source, "name", "video"))


@contextlib.contextmanager
def _open_container(source: VideoSource) -> Iterator[av.container.InputContainer]:
    """Opens a container that has a video stream; FFmpeg's errors become `UserError`s.

    Disables FFmpeg's protocols, so that a playlist cannot make it read other files.
    """
    name, options = source_name(source), {"protocol_whitelist": "none"}
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(source, str | Path):
                source = stack.enter_context(open(source, "rb"))
            container = stack.enter_context(av.open(source, options=options))
            if not container.streams.video:
                raise UserError(f"{name}: contains no video stream")
            yield container
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file") from error
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(f"{name}: not a readable video ({error.strerror})") from error


def _is_image(container: av.container.InputContainer) -> bool:
    return container.format.name.endswith(("_pipe", "image2"))


def _check_complete(
    frames: Iterable[av.VideoFrame], expected: int, name: str
) -> Iterator[av.VideoFrame]:
    """Passes frames through, and raises `UserError` at the end if clearly too few were decoded.

    FFmpeg decodes a truncated file without an error.

    Args:
      frames: Decoded frames.
      expected: Frame count in the container's header. 0, if unknown, disables the check. An edit
        list may hide a few of them.
      name: Name of the file, for the error.
    """
    count = 0
    for frame in frames:
        count += 1
        yield frame
    if count < 0.9 * expected:
        raise UserError(f"{name}: truncated after {count} frames, expected {expected}")


def _with_times(
    frames: Iterable[av.VideoFrame], rate: float
) -> Iterator[tuple[float, av.VideoFrame, float]]:
    """Yields (start, frame, duration) in seconds; the first frame starts at 0."""
    first, last = None, -1.0 / rate
    for frame in frames:
        time = frame.time if frame.time is not None else (first or 0.0) + last + 1 / rate
        first = time if first is None else first
        last = max(time - first, last)
        ticks = frame.duration if frame.time_base else 0
        yield last, frame, float(ticks * frame.time_base) if ticks else 1 / rate


def _upright(frame: av.VideoFrame, aspect: float) -> tuple[np.ndarray, float]:
    """Applies a frame's rotation; returns `[H, W, 3]` uint8 and the pixel aspect ratio."""
    picture = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # phones store upright videos rotated
    turned = np.ascontiguousarray(np.rot90(picture, turns))
    return turned, 1 / aspect if turns % 2 else aspect
