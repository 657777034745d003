"""Reading videos at the resolutions of a model."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from stunet.errors import UserError
from stunet.video_io.decoding import (
    Margins,
    Span,
    VideoSource,
    decode,
    displayed_size,
    retime,
    source_name,
)
from stunet.video_io.pixels import to_float

_STILL_FPS = 25.0  # reported for a still image
_MAX_RESAMPLED_FPS = 60.0
_MAX_RESAMPLED_FRAMES = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoSizes:
    """A video, decoded once, at several resolutions.

    Attributes:
      frames: Resolution -> `[T, H, W, 3]` float32 in [-1, 1]. The key None is the source's own
        size.
      fps: Frames per second.
      size: Height and width of the source as displayed, in pixels of its height, without margins.
      margin_masks: Resolution -> `[1, H, W, 3]` float32: 1 in the margins, -1 in the source.
        Empty if no margins were requested.
      warnings: Remarks for the user, such as a source with fewer frames per second than requested.
    """

    frames: dict[int | None, np.ndarray]
    fps: float
    size: tuple[int, int]
    margin_masks: dict[int | None, np.ndarray]
    warnings: tuple[str, ...] = ()


def read_video_sizes(
    source: VideoSource,
    fps: float | None = None,
    resolutions: Sequence[int | None] = (16, 64),
    max_frames: int | None = None,
    margins: Margins | None = None,
    multiple_of: int | None = None,
) -> VideoSizes:
    """Decodes a video once and returns it at several resolutions.

    A still image is a video of one frame.

    Args:
      source: Path, or an open binary file.
      fps: Frame rate to resample to, by the frames' time stamps. None keeps all frames and
        reports their average rate; unevenly timed frames are resampled to a suitable rate.
      resolutions: Sides in pixels. For each one the video is cropped to the centre square and
        resized with anti-aliasing. None keeps the source's size.
      max_frames: Maximum number of frames. None reads all.
      margins: Black pixels to add at the left, right, top and bottom of the source before
        cropping and resizing. None adds none and computes no masks.
      multiple_of: If set, resizes the uncropped picture: its shorter side becomes about the
        resolution, and both sides become multiples of this number.

    Raises:
      UserError: The file is absent or cannot be decoded.
    """
    decoded = itertools.islice(decode(source, fps), max_frames)
    first = next(decoded, None)
    if first is None:
        raise UserError(f"{source_name(source)}: contains no video frame")

    def resize_all(pixels: np.ndarray, margin_value: int) -> dict[int | None, np.ndarray]:
        padded = _pad(pixels, margins or (0, 0, 0, 0), margin_value)
        return {side: resize(padded, side, multiple_of, first.aspect) for side in resolutions}

    timed: list[tuple[float, dict[int | None, np.ndarray], float]] = []
    previous, resized, distinct = None, {}, 0
    for picture in itertools.chain([first], decoded):
        if picture.pixels is not previous:  # resize a repeated frame once
            previous, resized = picture.pixels, resize_all(picture.pixels, 0)
            distinct += 1
        timed.append((picture.start, resized, picture.seconds))
    rate, frames = fps or first.fps, [resized for _, resized, _ in timed]
    if fps is None and picture.seconds:
        rate, is_even = constant_rate([start for start, *_ in timed], picture.seconds, first.fps)
        if not is_even:
            frames = list(itertools.islice(retime(timed, rate), max_frames))
    masks = {} if margins is None else resize_all(np.zeros_like(first.pixels), 255)
    return VideoSizes(
        frames={
            side: to_float(np.stack([frame[side] for frame in frames])) for side in resolutions
        },
        fps=rate or _STILL_FPS,
        size=displayed_size(first.pixels, first.aspect),
        margin_masks={side: to_float(mask)[None] for side, mask in masks.items()},
        warnings=_rate_warnings(source, first.fps, fps, distinct / len(timed)),
    )


def read_video(
    source: VideoSource,
    fps: float | None = None,
    resolution: int | None = None,
    max_frames: int | None = None,
    multiple_of: int | None = None,
) -> tuple[np.ndarray, float]:
    """Reads a video at one resolution; see `read_video_sizes` for the arguments.

    Returns:
      `[T, H, W, 3]` float32 in [-1, 1], and the frames per second.

    Raises:
      UserError: The file is absent or cannot be decoded.
    """
    video = read_video_sizes(source, fps, (resolution,), max_frames, None, multiple_of)
    return video.frames[resolution], video.fps


def decode_frames(
    source: VideoSource, fps: float, resolution: int, span: Span | None = None
) -> Iterator[np.ndarray]:
    """Yields the frames of `read_video` one at a time, as `[resolution, resolution, 3]` uint8.

    Args:
      source: Path, or an open binary file.
      fps: Frame rate to resample to.
      resolution: Side in pixels.
      span: Start and end of the part to decode in seconds; see `decode`. None decodes all.

    Raises:
      UserError: The file is absent or cannot be decoded, or does not contain the span.
    """
    previous, frame = None, None
    for picture in decode(source, fps, span=span):
        if picture.pixels is not previous:  # resize a repeated frame once
            previous = picture.pixels
            frame = resize(picture.pixels, resolution, aspect=picture.aspect)
        yield frame


def frame_size(source: VideoSource) -> tuple[int, int]:
    """Returns the displayed height and width of a video or an image, in pixels of its height.

    Raises:
      UserError: The file is absent or cannot be decoded.
    """
    first = next(decode(source, None), None)
    if first is None:
        raise UserError(f"{source_name(source)}: contains no video frame")
    return displayed_size(first.pixels, first.aspect)


def constant_rate(
    starts: Sequence[float], last_seconds: float, average: float
) -> tuple[float, bool]:
    """Returns a frame rate at which a video's pictures are displayed at their times.

    Times may deviate by a tenth of a frame, and by 0.01 s (the unit of GIF).

    Args:
      starts: Times of the frames in seconds, from 0.
      last_seconds: How long the last frame is displayed.
      average: Average frame rate according to the container. Preferred if suitable.

    Returns:
      The frame rate, and whether the frames are evenly spaced at it. Otherwise they need to be
      resampled. Resampling then uses the lowest suitable one of the average rate, that of the
      median gap and multiples of that of the smallest gap. The highest one is 60 frames per second
      or 10,000 frames in total, but never less than the mean rate.
    """
    times = np.array([*starts, starts[-1] + last_seconds])
    count = len(starts)
    candidates = [average, count / times[-1]]
    if times[-2] > 0:
        candidates.append((count - 1) / times[-2])
    for rate in candidates:
        late = times - np.arange(count + 1) / rate
        # Containers that store no durations understate the last one.
        if max(np.abs(late[:-1]).max(), late[-1]) <= _tolerance(rate):
            return float(rate), True
    gaps = np.diff(times)
    gaps = gaps[gaps > 0]
    highest = max(min(_MAX_RESAMPLED_FPS, _MAX_RESAMPLED_FRAMES / times[-1]), count / times[-1])
    multiples = np.arange(1, 5) / gaps.min()
    for rate in sorted((average, 1 / np.median(gaps), *multiples)):
        rate = average if np.isclose(rate, average, 1e-3) else float(rate)
        frames = np.round(times * rate)
        is_near = np.abs(times - frames / rate).max() <= _tolerance(rate)
        if rate <= highest and is_near and (np.diff(frames) > 0).all():
            return rate, False
    return float(highest), False


def _tolerance(rate: float) -> float:
    return max(0.01, 0.1 / rate)


def _rate_warnings(
    source: VideoSource, average: float, requested: float | None, distinct: float
) -> tuple[str, ...]:
    """Warns if resampling repeats frames; not if the rates differ by less than 5 %.

    Args:
      source: The video.
      average: Average frame rate according to the container. 0 for a still image.
      requested: Frame rate to which the video was resampled. None if it was not.
      distinct: Share of the frames that are not repetitions.
    """
    if not average or requested is None:
        return ()
    is_slow = 1.05 * average < requested
    rate = average if is_slow else distinct * requested
    if 1.05 * rate >= requested:
        return ()
    return (
        f"{source_name(source)}: {rate:.4g} frames per second, read at {requested:.4g}: "
        "frames are repeated",
    )


def _pad(picture: np.ndarray, margins: Margins, value: int) -> np.ndarray:
    """Adds margins of `value` to `[H, W, 3]`."""
    left, right, top, bottom = margins
    widths = ((top, bottom), (left, right), (0, 0))
    return np.pad(picture, widths, constant_values=value) if any(margins) else picture


def resize(
    picture: np.ndarray,
    resolution: int | None,
    multiple_of: int | None = None,
    aspect: float = 1.0,
) -> np.ndarray:
    """Crops `[H, W, 3]` uint8 to the centre square and resizes it with anti-aliasing.

    None as `resolution` returns the picture. `multiple_of` resizes without cropping. `aspect` is
    the width of the picture's pixels over their height.
    """
    if resolution is None:
        return picture
    height, width = picture.shape[:2]
    side = min(height, width * aspect)  # of the square, in pixels of the picture's height
    if multiple_of is None:
        size, left, top = (resolution, resolution), (width - side / aspect) / 2, (height - side) / 2
    else:
        sides = (resolution * length / side for length in (width * aspect, height))
        size = tuple(max(1, round(length / multiple_of)) * multiple_of for length in sides)
        left = top = 0
    resized = Image.fromarray(picture).resize(
        size,
        Image.Resampling.BICUBIC,  # Pillow widens the filter when it reduces: anti-aliased
        box=(left, top, width - left, height - top),
    )
    return np.asarray(resized)
