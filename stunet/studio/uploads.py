"""Uploaded files: limits, confinement to the upload folder, and painted masks."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stunet.errors import UserError
from stunet.video_io import frame_size, probe, read_video, to_uint8

EDITOR_SIDE = 448  # pixels of the longer side of the picture under a mask's painting


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of an uploaded file, and of all files. The defaults bound a job's memory and time.

    Attributes:
      bytes: Size of the file.
      pixels: Pixels per frame.
      seconds: Duration of a video.
      frames: Frames of a video.
      total: Pixels of all frames of a video.
      storage: Bytes of all uploads and results together.
    """

    bytes: int = 64 * 2**20
    pixels: int = 4096 * 4096
    seconds: float = 20.0
    frames: int = 1200
    total: float = 2.5e9  # 1200 frames of 1920x1080
    storage: int = 4 * 2**30

    def __str__(self) -> str:
        return (
            f"{self.bytes / 2**20:g} MiB, {self.pixels / 1e6:.3g} megapixels per frame, "
            f"{self.seconds:g} seconds, {self.frames} frames, "
            f"{self.total / 1e9:.3g} gigapixels in all frames"
        )


def uploaded_path(value: Any, folder: Path) -> Path:
    """Returns the path of an uploaded file.

    Args:
      value: What the browser sent for a file component, a dict with a "path".
      folder: Folder of uploads.

    Raises:
      UserError: The path is outside the folder: a request may contain any path.
    """
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str) or not Path(path).resolve().is_relative_to(folder.resolve()):
        raise UserError("upload: not an uploaded file, expected a new upload")
    return Path(path)


def check_upload(path: str | Path, limits: Limits) -> None:
    """Checks a file against the limits by its header and packets, and decodes its first frame.

    Raises:
      UserError: The file is no image or video, or exceeds a limit. Names the file without its
        folder.
    """
    path = Path(path)
    with hide_folders([path]):
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise UserError(f"{path}: no longer on the server, expected a new upload") from error
        if size > limits.bytes:
            found, expected = size / 2**20, limits.bytes / 2**20
            raise UserError(f"{path}: {found:.3g} MiB, expected at most {expected:.3g} MiB")
        info = probe(path)
        if info.width * info.height > limits.pixels:
            raise UserError(
                f"{path}: {info.width}x{info.height} pixels, expected at most "
                f"{limits.pixels / 1e6:.3g} megapixels"
            )
        if info.seconds > limits.seconds:
            raise UserError(
                f"{path}: {info.seconds:.1f} seconds, expected at most {limits.seconds:g} seconds"
            )
        if info.num_frames > limits.frames:
            raise UserError(
                f"{path}: {info.num_frames} frames, expected at most {limits.frames} frames"
            )
        total = info.width * info.height * info.num_frames
        if total > limits.total:
            raise UserError(
                f"{path}: {total / 1e9:.3g} gigapixels in {info.num_frames} frames, "
                f"expected at most {limits.total / 1e9:.3g} gigapixels"
            )
        frame_size(path)


@contextlib.contextmanager
def hide_folders(paths: Iterable[Path]) -> Iterator[None]:
    """Strips the server's folders from `UserError`s about these files."""
    try:
        yield
    except UserError as error:
        raise UserError(strip_folders(str(error), paths)) from error


def strip_folders(message: str, paths: Iterable[Path]) -> str:
    """Returns the message with these files' names in place of their paths."""
    for path in paths:
        message = message.replace(str(path), path.name)
    return message


def editor_background(path: str | Path) -> Image.Image:
    """Returns the first frame of an image or video, resized for the mask editor."""
    frame = to_uint8(read_video(path, max_frames=1)[0][0])
    height, width = frame_size(path)
    scale = EDITOR_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    return Image.fromarray(frame).resize(size, resample)


def write_painted_mask(layers: Sequence[Image.Image], picture: str | Path, path: Path) -> None:
    """Writes the painted region as a mask file: white where painted, else black.

    Args:
      layers: Layers of the editor, RGBA, transparent where nothing is painted.
      picture: Image or video under the painting; the mask gets its size.
      path: PNG to write.

    Raises:
      UserError: Nothing is painted.
    """
    alphas = [np.asarray(layer.convert("RGBA"))[..., 3] for layer in layers]
    painted = np.max(alphas, axis=0) > 0 if alphas else np.zeros((1, 1), bool)
    if not painted.any():
        raise UserError("mask: empty, expected strokes on the picture")
    height, width = frame_size(picture)
    mask = Image.fromarray(painted.astype(np.uint8) * 255)
    mask.resize((width, height), Image.Resampling.NEAREST).save(path)
