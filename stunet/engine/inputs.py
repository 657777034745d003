"""Reads the inputs of a request: images, videos and masks, from files or arrays.

Each file is decoded once, at all resolutions that the models of a job need. Masks become 1 = known
here, which is the only convention inside the package (2401.12945 section 4.2); in files white marks
the region to generate.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from stunet.engine.request import Margins, Source
from stunet.errors import UserError
from stunet.memory import check_memory
from stunet.paths import AnyPath
from stunet.video_io import read_video_sizes, to_float, to_uint8
from stunet.video_io.masks import read_mask_frames

NO_MARGINS: Margins = (0, 0, 0, 0)
_ROUNDING = 0.01  # tolerance of value ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """An image or a video at the resolutions of a job.

    Attributes:
      name: The file's path, or the field's name for an array.
      frames: Resolution -> `[N, T, R, R, 3]` float32 in [-1, 1]; N is 1 for a file.
      size: Height and width of the source in pixels.
      source_mask: Resolution -> `[1, 1, R, R, 1]`, 1 in the source and 0 in added margins. Empty
        without margins.
      warnings: Remarks for the user.
    """

    name: str
    frames: dict[int, np.ndarray]
    size: tuple[int, int]
    source_mask: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class KnownPixels:
    """Pixels that a conditional model completes.

    Attributes:
      videos: `[N, T, H, W, 3]` in [-1, 1]; only known pixels matter.
      mask: `[N, T, H, W, 1]` float32, 1 = known.
    """

    videos: np.ndarray
    mask: np.ndarray


def read_image(field: str, source: Source, resolutions: Sequence[int]) -> Picture:
    """Reads the first frame of a file, or an array `[H, W, 3]` or `[N, H, W, 3]`.

    Raises:
      UserError: The source is missing, unreadable or has another shape.
    """
    if isinstance(source, str | AnyPath):
        return _read_file(source, resolutions, max_frames=1)
    images = _as_pixels(field, source, (3, 4))
    images = (images[None] if images.ndim == 3 else images)[:, None]
    picture = _resize_array(field, images, resolutions)
    return dataclasses.replace(picture, warnings=_range_warnings(field, images))


def read_clip(
    field: str,
    source: Source,
    resolutions: Sequence[int],
    fps: float | None,
    margins: Margins | None = None,
) -> Picture:
    """Reads a video file at `fps`, or an array `[T, H, W, 3]` or `[N, T, H, W, 3]`.

    Args:
      field: The request's field, for error messages.
      source: Path or array.
      resolutions: Sides of the square frames in pixels.
      fps: Frame rate to resample a file to.
      margins: Black pixels to add around the video; `Picture.source_mask` excludes them.

    Raises:
      UserError: The source is missing, unreadable or has another shape.
    """
    if isinstance(source, str | AnyPath):
        return _read_file(source, resolutions, fps=fps, margins=margins)
    videos = _as_pixels(field, source, (4, 5))
    videos = videos[None] if videos.ndim == 4 else videos
    warnings = _range_warnings(field, videos)
    if margins is None:
        picture = _resize_array(field, videos, resolutions)
        return dataclasses.replace(picture, warnings=warnings)
    left, right, top, bottom = margins
    n, t, height, width, _ = videos.shape
    pixels = (height + top + bottom) * (width + left + right)
    check_memory(f"outpaint: {n} videos of {t} frames with margins {margins}", 12 * n * t * pixels)
    sides = ((0, 0), (0, 0), (top, bottom), (left, right), (0, 0))
    inside = np.pad(np.ones_like(videos[:1, :1]), sides, constant_values=-1)
    padded = _resize_array(field, np.pad(videos, sides, constant_values=-1), resolutions)
    inside = _resize_array(field, inside, resolutions).frames
    return dataclasses.replace(
        padded,
        size=videos.shape[2:4],
        source_mask={side: _threshold(mask) for side, mask in inside.items()},
        warnings=warnings,
    )


def read_mask(
    source: Source,
    picture: Picture,
    resolutions: Sequence[int],
    fps: float | None = None,
    still: bool = False,
) -> dict[int, np.ndarray]:
    """Reads the mask of a picture.

    Args:
      source: An image or a video file, white where pixels are generated (see
        `stunet.video_io.masks`); or an array of 1 = known and 0 = generated: `[H, W, 1]`,
        `[T, H, W, 1]` or `[N, T, H, W, 1]`, for stills `[N, H, W, 1]`. Values above 0.5 are known.
      picture: What the mask belongs to; T must be 1 or the picture's.
      resolutions: Sides in pixels.
      fps: Frame rate to resample a file to.
      still: Whether the picture is a still, of which a file's first frame is the mask.

    Returns:
      Resolution -> `[N or 1, T or 1, R, R, 1]` float32, 1 = known.

    Raises:
      UserError: The mask differs from the picture in size or length, it is uniform or ambiguous,
        or values of an array are outside [0, 1].
    """
    if isinstance(source, str | AnyPath):
        name, mask = str(source), read_mask_frames(source, fps, resolutions, 1 if still else None)
        known = {side: 1 - generated[None] for side, generated in mask.frames.items()}
    else:
        name, array = "mask", _as_array("mask", source, (3, 4, 5), 1)
        _check_range("mask", array, 0, "0 (generate) to 1 (known)")
        array = array[:, None] if still and array.ndim == 4 else array
        array = array.reshape((1,) * (5 - array.ndim) + array.shape)
        mask = _resize_array("mask", np.repeat(2 * array - 1, 3, axis=-1), resolutions)
        known = {side: _threshold(frames) for side, frames in mask.frames.items()}
    if mask.size != picture.size:
        ours, theirs = (f"{width}x{height}" for height, width in (mask.size, picture.size))
        raise UserError(f"{name}: size {ours}, expected {theirs}, the size of {picture.name}")
    length = picture.frames[resolutions[0]].shape[1]
    check_mask(name, known[resolutions[0]], length, f"{picture.name} at {fps} fps")
    return known


def check_mask(name: str, known: np.ndarray, num_frames: int, of: str) -> None:
    """Raises a `UserError` if a mask is uniform, or neither one frame nor `num_frames` long."""
    if known.shape[1] not in (1, num_frames):
        raise UserError(f"{name}: {known.shape[1]} frames, expected 1 or {num_frames} ({of})")
    if known.min() == known.max():
        state = "everything is known" if known.max() else "nothing is known"
        raise UserError(f"{name}: uniform mask ({state}), expected known and unknown pixels")


def crop_warning(picture: Picture, margins: Margins = NO_MARGINS) -> str | None:
    """Returns a warning if a picture is centre-cropped to a square, else None."""
    height, width = picture.size
    width, height = width + margins[0] + margins[1], height + margins[2] + margins[3]
    if width == height:
        return None
    side = min(width, height)
    return f"{picture.name}: cropped from {width}x{height} to the central {side}x{side}"


def _read_file(
    path: str | AnyPath,
    resolutions: Sequence[int],
    fps: float | None = None,
    max_frames: int | None = None,
    margins: Margins | None = None,
) -> Picture:
    sizes = read_video_sizes(path, fps, tuple(resolutions), max_frames, margins)
    return Picture(
        name=str(path),
        frames={side: frames[None] for side, frames in sizes.frames.items()},
        size=sizes.size,
        source_mask={side: 1 - _threshold(mask[None]) for side, mask in sizes.margin_masks.items()},
        warnings=sizes.warnings,
    )


def _as_array(field: str, source: Source, ndims: tuple[int, ...], channels: int) -> np.ndarray:
    if source is None:
        raise UserError(f"{field}: missing, expected a file's path or an array")
    try:
        array = np.asarray(source)
        array = array if array.dtype == np.float32 else array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{field}: not numbers ({error}), expected a path or an array") from error
    if array.ndim not in ndims or array.shape[-1] != channels:
        expected = " or ".join(str(ndim) for ndim in ndims)
        raise UserError(
            f"{field}: shape {array.shape}, expected {expected} axes of which the last has "
            f"{channels} channels"
        )
    return array


def _as_pixels(field: str, source: Source, ndims: tuple[int, ...]) -> np.ndarray:
    """Returns pictures `[..., 3]` float32 in [-1, 1]."""
    array = _as_array(field, source, ndims, 3)
    expected = "floats from -1 (black) to 1 (white)"
    dtype = np.asarray(source).dtype
    if dtype.kind in "ub":
        raise UserError(f"{field}: {dtype} values, expected {expected}: x / 127.5 - 1")
    _check_range(field, array, -1, expected)
    return array


def _check_range(field: str, array: np.ndarray, lowest: float, expected: str) -> None:
    """Raises `UserError` if values are not within `lowest` to 1, apart from rounding."""
    low, high = (float(array.min()), float(array.max())) if array.size else (np.nan, np.nan)
    if not (lowest - _ROUNDING <= low and high <= 1 + _ROUNDING):  # also if NaN
        raise UserError(f"{field}: values from {low:g} to {high:g}, expected {expected}")


def _range_warnings(field: str, pixels: np.ndarray) -> tuple[str, ...]:
    """Warns if pictures are probably in [0, 1] instead of [-1, 1]."""
    low, high = pixels.min(), pixels.max()
    if not 0 <= low < high:
        return ()
    return (f"{field}: values from {low:g} to {high:g}, expected -1 (black) to 1 (white)",)


def _resize_array(field: str, videos: np.ndarray, resolutions: Sequence[int]) -> Picture:
    """`[N, T, H, W, 3]` at each resolution; unchanged where it has that size already."""
    size = videos.shape[2:4]
    frames = {
        side: videos if size == (side, side) else _resize_frames(videos, side)
        for side in resolutions
    }
    return Picture(name=field, frames=frames, size=size)


def _resize_frames(videos: np.ndarray, side: int) -> np.ndarray:
    """Centre-crops to a square and resizes with anti-aliasing, as for files."""
    height, width = videos.shape[2:4]
    square = min(height, width)
    left, top = (width - square) / 2, (height - square) / 2
    box = (left, top, left + square, top + square)
    frames = [
        Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC, box=box)
        for frame in to_uint8(videos).reshape(-1, height, width, 3)
    ]
    return to_float(np.stack(frames)).reshape(*videos.shape[:2], side, side, 3)


def _threshold(frames: np.ndarray) -> np.ndarray:
    """White of black and white pictures `[..., 3]` in [-1, 1]: `[..., 1]` of 1 and 0."""
    return (frames.mean(-1, keepdims=True) > 0).astype(np.float32)
