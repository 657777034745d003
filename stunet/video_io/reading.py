"""Reading videos at the resolutions of a model."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from stunet.errors import UserError
from stunet.video_io.decoding import Margins, VideoSource, decode, source_name
from stunet.video_io.pixels import to_float


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
    """

    frames: dict[int | None, np.ndarray]
    fps: float
    size: tuple[int, int]
    margin_masks: dict[int | None, np.ndarray]


def read_video_sizes(
    source: VideoSource,
    fps: float | None = None,
    resolutions: Sequence[int | None] = (16, 64),
    max_frames: int | None = None,
    margins: Margins | None = None,
    multiple_of: int | None = None,
) -> VideoSizes:
    """Decodes a video once and returns it at several resolutions.

    An image (PNG, JPEG) is a video of one frame.

    Args:
      source: Path, or an open binary file.
      fps: Frame rate to resample to, by the frames' time stamps. None keeps all frames and
        reports their average rate.
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
    first_picture, aspect, rate = first

    def resize_all(picture: np.ndarray, margin_value: int) -> dict[int | None, np.ndarray]:
        padded = _pad(picture, margins or (0, 0, 0, 0), margin_value)
        return {side: _resize(padded, side, multiple_of, aspect) for side in resolutions}

    clips: dict[int | None, list[np.ndarray]] = {side: [] for side in resolutions}
    previous, resized = None, {}
    for picture, *_ in itertools.chain([first], decoded):
        if picture is not previous:  # resize a repeated frame once
            previous, resized = picture, resize_all(picture, 0)
        for side, frame in resized.items():
            clips[side].append(frame)
    masks = {} if margins is None else resize_all(np.zeros_like(first_picture), 255)
    return VideoSizes(
        frames={side: to_float(np.stack(clip)) for side, clip in clips.items()},
        fps=rate,
        size=_displayed_size(first_picture, aspect),
        margin_masks={side: to_float(mask)[None] for side, mask in masks.items()},
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


def decode_frames(source: VideoSource, fps: float, resolution: int) -> Iterator[np.ndarray]:
    """Yields the frames of `read_video` one at a time, as `[resolution, resolution, 3]` uint8."""
    previous, frame = None, None
    for picture, aspect, _ in decode(source, fps):
        if picture is not previous:  # resize a repeated frame once
            previous, frame = picture, _resize(picture, resolution, aspect=aspect)
        yield frame


def frame_size(source: VideoSource) -> tuple[int, int]:
    """Returns the displayed height and width of a video or an image, in pixels of its height."""
    picture, aspect, _ = next(decode(source, None))
    return _displayed_size(picture, aspect)


def _displayed_size(picture: np.ndarray, aspect: float) -> tuple[int, int]:
    height, width = picture.shape[:2]
    return height, round(width * aspect)


def _pad(picture: np.ndarray, margins: Margins, value: int) -> np.ndarray:
    """Adds margins of `value` to `[H, W, 3]`."""
    left, right, top, bottom = margins
    widths = ((top, bottom), (left, right), (0, 0))
    return np.pad(picture, widths, constant_values=value) if any(margins) else picture


def _resize(
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
