"""X-T slices: one row of pixels of every frame, stacked over time, as in 2401.12945.

Regular motion appears as regular stripes; seams, jumps and repeated frames as discontinuities.
"""

import numpy as np


def xt_slice(video: np.ndarray, row: int | None = None) -> np.ndarray:
    """Returns one row of pixels of every frame, with time as the vertical axis.

    Args:
      video: `[T, H, W, 3]`.
      row: 0 to H - 1. None uses the middle row.

    Returns:
      `[T, W, 3]`.

    Raises:
      ValueError: there is no such row.
    """
    height = video.shape[1]
    row = height // 2 if row is None else row
    if not 0 <= row < height:
        raise ValueError(f"row: {row}, expected 0 to {height - 1}")
    return video[:, row]
