"""How a clip changes over time, from its pixels alone.

Motion energy is the mean of `seams.frame_differences`: what consecutive frames differ by.
"""

import numpy as np

LUMA = (0.299, 0.587, 0.114)  # Rec. 601


def flicker(videos: np.ndarray) -> np.ndarray:
    """How far a frame's brightness is from the mean of its neighbours', `[N]`, in steps of 1/255.

    Of the whole frame, so that what moves within it, and what grows steadily brighter, counts for
    nothing.

    Args:
      videos: `[N, T, H, W, 3]` in [-1, 1], T from 3 on.

    Raises:
      ValueError: there are fewer than 3 frames.
    """
    if videos.shape[1] < 3:
        raise ValueError(f"flicker takes 3 frames, got {videos.shape[1]}")
    brightness = 127.5 * (videos.mean((2, 3)) @ np.array(LUMA))
    neighbours = (brightness[:, :-2] + brightness[:, 2:]) / 2
    return np.abs(brightness[:, 1:-1] - neighbours).mean(1)
