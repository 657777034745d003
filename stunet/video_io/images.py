"""Reading images and animated images with Pillow."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pillow_heif
from PIL import Image

from stunet.errors import UserError

pillow_heif.register_heif_opener()


def is_image(source: str | Path | BinaryIO) -> bool:
    """Returns whether the content is an image or an animated image. The position is restored."""
    return False


def decode_images(
    source: str | Path | BinaryIO,
) -> Iterator[tuple[float, np.ndarray, float]]:
    """Yields (start, picture, duration) for every frame of an image.

    Starts and durations are in seconds; the duration of a still is 0. Pictures are upright sRGB,
    `[H, W, 3]` uint8, blended over `BACKGROUND`.
    """
    raise UserError(f"{source}: not implemented")
    yield


def image_info(source: str | Path | BinaryIO) -> tuple[int, int, int, float]:
    """Returns (height, width, number of frames, seconds) as displayed. A still lasts 0 seconds."""
    raise UserError(f"{source}: not implemented")


_ = Image
