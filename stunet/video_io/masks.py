"""Reading masks from files: white marks the pixels to generate.

Transparent pixels are not painted, so they count as black. A mask in one colour on black, with
levels 0 and 1, or with soft edges is unambiguous; anything else is refused with a description of
what it contains.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stunet.errors import UserError
from stunet.video_io.decoding import VideoSource, decode, displayed_size, source_name
from stunet.video_io.images import image_format
from stunet.video_io.pixels import BACKGROUND
from stunet.video_io.reading import resize

_EXPECTED = "expected white where pixels are generated and black elsewhere, or one colour on black"
_NOISE = 16  # levels below which a video or a JPEG image may differ from black
_BRIGHT = 191  # a mask whose brightest level is below is scaled
_LOSSLESS = ("PNG", "GIF", "TIFF", "BMP", "PPM")
_STEP = 8  # width of the bins of the histogram of colours
_BINS = 256 // _STEP


@dataclasses.dataclass(frozen=True)
class MaskSizes:
    """A mask at several resolutions.

    Attributes:
      frames: Resolution -> `[T, R, R, 1]` float32, 1 where pixels are generated, else 0.
      size: Height and width of the file's pictures as displayed.
    """

    frames: dict[int, np.ndarray]
    size: tuple[int, int]


def read_mask_frames(
    source: VideoSource,
    fps: float | None,
    resolutions: Sequence[int],
    max_frames: int | None = None,
) -> MaskSizes:
    """Reads a mask from an image or a video.

    Args:
      source: Path, or an open binary file.
      fps: Frame rate to resample a video to. None keeps all frames.
      resolutions: Sides in pixels. The mask is cropped to the centre square and resized.
      max_frames: Maximum number of frames. None reads all.

    Raises:
      UserError: The file is absent or unreadable, or it is ambiguous which pixels are marked.
    """

    name = source_name(source)
    mask, histograms = _read(source, fps, resolutions, max_frames, 1.0)
    white = _white_level(histograms)
    if isinstance(white, int) and 0 < white < _NOISE and image_format(source) not in _LOSSLESS:
        white = f"levels 0 and {white} of 255 after lossy compression"
    if isinstance(white, str):
        alpha = _alpha(source, fps, max_frames)
        raise UserError(f"{name}: ambiguous mask ({white}{alpha and '; ' + alpha}), {_EXPECTED}")
    if white == 0 and (alpha := _alpha(source, fps, max_frames)):
        raise UserError(f"{name}: ambiguous mask (all black; {alpha}), {_EXPECTED}")
    if 0 < white < _BRIGHT:
        mask, _ = _read(source, fps, resolutions, max_frames, 255 / white)
    return mask


class _Histograms(NamedTuple):
    """Numbers of pixels.

    Attributes:
      levels: Per level of the brightest channel, `[256]`.
      colors: Per colour, `[32 * 32 * 32]`.
    """

    levels: np.ndarray
    colors: np.ndarray

    def add(self, pixels: np.ndarray) -> None:
        """Counts the pixels of `[H, W, 3]` uint8."""
        self.levels[:] += np.bincount(pixels.max(-1).ravel(), minlength=256)
        bins = (pixels // _STEP).astype(np.int32) @ np.array([_BINS**2, _BINS, 1], np.int32)
        self.colors[:] += np.bincount(bins.ravel(), minlength=_BINS**3)


def _read(
    source: VideoSource,
    fps: float | None,
    resolutions: Sequence[int],
    max_frames: int | None,
    scale: float,
) -> tuple[MaskSizes, _Histograms]:
    """Marks pixels whose brightest channel, times a factor, is at least half of white."""
    frames: dict[int, list[np.ndarray]] = {side: [] for side in resolutions}
    histograms = _Histograms(np.zeros(256, np.int64), np.zeros(_BINS**3, np.int64))
    previous, levels = None, None
    for picture in itertools.islice(decode(source, fps, background=0), max_frames):
        if picture.pixels is not previous:
            previous, levels = picture.pixels, picture.pixels.max(-1)
            histograms.add(picture.pixels)
            if scale != 1:
                levels = np.round(levels * scale).astype(np.uint8)
            marks = {
                side: resize(levels, side, aspect=picture.aspect) > 127 for side in resolutions
            }
        for side, clip in frames.items():
            clip.append(marks[side])
    if levels is None:
        raise UserError(f"{source_name(source)}: contains no video frame")
    stacked = {side: np.stack(clip)[..., None].astype(np.float32) for side, clip in frames.items()}
    return MaskSizes(stacked, displayed_size(levels, picture.aspect)), histograms


def _white_level(histograms: _Histograms) -> int | str:
    """Returns the level that stands for white, or a description of an ambiguous mask."""
    levels, colors = histograms
    present = np.flatnonzero(levels)
    lowest, white = int(present[0]), int(present[-1])
    if len(present) == 1:
        return white if white in (0, 255) else f"level {white} of 255 everywhere"
    if len(present) == 2 and lowest == 0 and white < _NOISE:
        return white  # such as levels 0 and 1
    contents = f"{len(present)} levels from {lowest} to {white} of 255"
    if white < _NOISE:
        return contents
    scaled = np.arange(256) * (255 / (white if white < _BRIGHT else 255))
    shares = levels / levels.sum()
    middle = shares[(scaled > 64) & (scaled < 191)].sum()
    extreme = shares[(scaled <= _NOISE) | (scaled >= 255 - _NOISE)].sum()
    hues = _hues(colors)
    frequent = _frequent_colors(colors)
    if middle > 0.25 or extreme < 0.5:
        return f"not black and white: {contents}{frequent}"
    if hues > 0.05:
        return f"several colours: {contents}{frequent}"
    return white


def _hues(colors: np.ndarray) -> float:
    """Returns the share of bright pixels whose hue differs from that of most bright pixels."""
    centers = (np.indices((_BINS,) * 3).reshape(3, -1) + 0.5) / _BINS
    brightest = centers.max(0)
    used = (colors > 0) & (brightest > 0.5 * brightest[colors > 0].max())
    hues, counts = (centers / brightest)[:, used], colors[used]
    main = hues[:, counts.argmax()]
    return float(counts[np.abs(hues - main[:, None]).max(0) > 0.25].sum() / counts.sum())


def _frequent_colors(colors: np.ndarray) -> str:
    """Lists up to three frequent colours, with a comma in front. Empty for a photograph."""
    shares, texts = colors / colors.sum(), [""]
    for index in np.argsort(-shares)[:3]:
        if shares[index] >= 0.05:
            bins = np.unravel_index(index, (_BINS,) * 3)
            levels = ",".join(str(channel * 255 // (_BINS - 1)) for channel in bins)
            texts.append(f"RGB {levels} in {shares[index]:.0%}")
    return ", ".join(texts)


def _alpha(source: VideoSource, fps: float | None, max_frames: int | None) -> str:
    """Describes the transparency of a file. Empty if all pixels are opaque.

    Over white, a transparent pixel is brighter than over black, by 255 minus its alpha.
    """
    counts = np.zeros(256, np.int64)
    over_white = itertools.islice(decode(source, fps, background=BACKGROUND), max_frames)
    over_black = itertools.islice(decode(source, fps, background=0), max_frames)
    for white, black in zip(over_white, over_black, strict=True):
        alpha = 255 - (white.pixels - black.pixels).max(-1)
        counts += np.bincount(alpha.ravel(), minlength=256)
    if counts[255] == counts.sum():
        return ""
    present = np.flatnonzero(counts)
    if len(present) > 3:
        return f"alpha from {present[0]} to {present[-1]}"
    shares = (f"{level} in {counts[level] / counts.sum():.0%}" for level in present)
    return f"alpha {' and '.join(shares)} of the pixels"
