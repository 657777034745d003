"""Conversions of pixel values, and the layout of a contact sheet."""

import numpy as np

BACKGROUND = 255  # level of the background under transparent pixels of pictures and videos: white


def blend(picture: np.ndarray, alpha: np.ndarray, background: int = BACKGROUND) -> np.ndarray:
    """Blends `[..., 3]` uint8 over a uniform background; alpha is `[..., 1]` uint8."""
    weight = alpha.astype(np.uint16)
    blended = picture * weight + np.uint16(background) * (255 - weight)
    return ((blended + 127) // 255).astype(np.uint8)


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Converts [-1, 1] to 0..255, clipping values outside."""
    return np.clip(np.round((np.asarray(video, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def to_float(frames: np.ndarray) -> np.ndarray:
    """Converts 0..255 to float32 in [-1, 1]."""
    return frames.astype(np.float32) / np.float32(127.5) - 1


def contact_sheet(video: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Arranges all frames in one image, row by row, `[H', W', 3]` in [-1, 1].

    Args:
      video: `[T, H, W, 3]` in [-1, 1].
      columns: Frames per row. None uses up to 8.
    """
    count, height, width, channels = video.shape
    columns = columns or min(count, 8)
    rows = -(-count // columns)
    gap = max(1, height // 32)
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, channels))
    for index, frame in enumerate(video):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    return sheet.astype(np.float32)
