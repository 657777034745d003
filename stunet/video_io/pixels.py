"""Conversions of pixel values, and the layout of a contact sheet."""

import numpy as np


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
