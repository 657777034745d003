"""X-T slices: one row of every frame, stacked over time (paper, the comparison of motion).

Regular motion draws regular stripes; seams, jumps and repeated frames show as breaks.
"""

import numpy as np


def xt_slice(video: np.ndarray, row: int | None = None) -> np.ndarray:
    """Row `row` of every frame, time running down.

    Args:
      video: `[T, H, W, 3]`.
      row: 0 to H - 1; by default the middle one.

    Returns:
      `[T, W, 3]`.

    Raises:
      ValueError: there is no such row.
    """
    height = video.shape[1]
    row = height // 2 if row is None else row
    if not 0 <= row < height:
        raise ValueError(f"row {row} is outside of 0..{height - 1}")
    return video[:, row]
