"""What people send: files within limits, numbers within bounds, painted masks."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from stunet.errors import UserError
from stunet.video_io import frame_size, probe, read_video, to_uint8

T = TypeVar("T")

CANVAS = 448  # pixels of the longer side of what a mask is painted on


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an uploaded file may be at most; the defaults keep a job in memory and in minutes.

    Attributes:
      bytes: of the file.
      pixels: of a frame.
      seconds: of a video.
      frames: of a video.
      total: pixels of all frames of a video.
    """

    bytes: int = 64 * 2**20
    pixels: int = 4096 * 4096
    seconds: float = 20.0
    frames: int = 1200
    total: float = 2.5e9  # 1200 frames of 1920x1080

    def __str__(self) -> str:
        return (
            f"{self.bytes / 2**20:g} MiB, {self.pixels / 1e6:.3g} megapixels, "
            f"{self.seconds:g} seconds, {self.frames} frames, "
            f"{self.total / 1e9:.3g} gigapixels in all frames"
        )


def received(sent: Any, folder: Path) -> Path:
    """The file that a browser says it has uploaded.

    Raises:
      UserError: it is not in `folder`, where uploads lie: a request may name any file.
    """
    path = sent.get("path") if isinstance(sent, dict) else None
    if not isinstance(path, str) or not Path(path).resolve().is_relative_to(folder.resolve()):
        raise UserError("this is no uploaded file; upload it again")
    return Path(path)


def check_upload(path: str | Path, limits: Limits) -> None:
    """Refuses a file that is no picture or video, or beyond the limits, before it is decoded whole.

    Raises:
      UserError: says what it is and what it may be; names the file without its folder.
    """
    path = Path(path)
    with named([path]):
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise UserError(f"{path}: is not here any more; upload it again") from error
        if size > limits.bytes:
            is_large, at_most = size / 2**20, limits.bytes / 2**20
            raise UserError(f"{path}: is {is_large:.3g} MiB large; at most {at_most:.3g} are taken")
        # FFmpeg would decode a picture to find out how large it is; Pillow reads its header.
        width, height = _size_in_header(path) or (0, 0)
        _check_pixels(path, width, height, limits)
        found = _readable(probe, path)
        _check_pixels(path, found.width, found.height, limits)
        if found.seconds > limits.seconds:
            raise UserError(
                f"{path}: lasts {found.seconds:.1f} seconds; at most {limits.seconds:g} are taken"
            )
        if found.num_frames > limits.frames:
            raise UserError(f"{path}: has {found.num_frames} frames; at most {limits.frames} are taken")
        total = found.width * found.height * found.num_frames
        if total > limits.total:
            raise UserError(
                f"{path}: has {total / 1e9:.3g} gigapixels in its {found.num_frames} frames; "
                f"at most {limits.total / 1e9:.3g} are taken"
            )
        _readable(frame_size, path)


@contextlib.contextmanager
def named(paths: Iterable[Path]) -> Iterator[None]:
    """Takes folders, which are the server's, out of `UserError`s about these files."""
    try:
        yield
    except UserError as error:
        raise UserError(without_folders(str(error), paths)) from error


def without_folders(message: str, paths: Iterable[Path]) -> str:
    """The message with these files' names in place of their paths."""
    for path in paths:
        message = message.replace(str(path), path.name)
    return message


def canvas(path: str | Path) -> Image.Image:
    """The first frame of a picture or video, as large as a mask is painted well on."""
    frame = to_uint8(read_video(path, max_frames=1)[0][0])
    height, width = frame_size(path)
    scale = CANVAS / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    return Image.fromarray(frame).resize(size, resample)


def painted_mask(layers: Sequence[Image.Image], picture: str | Path, path: Path) -> None:
    """Writes what was painted as a mask of a picture's own size, white on black.

    Args:
      layers: of the editor, RGBA, transparent where nothing was painted.
      picture: what the mask is of.
      path: of the mask, a PNG.

    Raises:
      UserError: nothing was painted.
    """
    alphas = [np.asarray(layer.convert("RGBA"))[..., 3] for layer in layers]
    covered = np.max(alphas, axis=0) > 0 if alphas else np.zeros((1, 1), bool)
    if not covered.any():
        raise UserError("nothing is painted; paint over what is to be made")
    height, width = frame_size(picture)
    mask = Image.fromarray(covered.astype(np.uint8) * 255)
    mask.resize((width, height), Image.Resampling.NEAREST).save(path)


def whole_number(name: str, value: float | None, low: int, high: int) -> int:
    """A whole number within bounds.

    Raises:
      UserError: it is another, or none.
    """
    value = real_number(name, value, low, high)
    if value != int(value):
        raise UserError(f"{name} is {value:g}; it must be a whole number")
    return int(value)


def real_number(name: str, value: float | None, low: float, high: float) -> float:
    """A number within bounds.

    Raises:
      UserError: it is another, or none.
    """
    good = isinstance(value, int | float) and math.isfinite(value) and low <= value <= high
    if not good:
        shown = "none" if value is None else value
        raise UserError(f"{name} is {shown}; it must be within {low} to {high}")
    return value


def _readable(read: Callable[[Path], T], path: Path) -> T:
    try:
        return read(path)
    except UserError as error:
        raise UserError(f"{path}: is no picture or video that can be read") from error


def _check_pixels(path: Path, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise UserError(
            f"{path}: is {width}x{height} pixels large; "
            f"at most {limits.pixels / 1e6:.3g} megapixels are taken"
        )


def _size_in_header(path: Path) -> tuple[int, int] | None:
    """Width and height of a picture that Pillow knows, which need not decode."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{path}: is far too large a picture") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return None
