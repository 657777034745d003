"""What windows over time leave behind in a video, and what super-resolution does to its input.

Videos are `[N, T, H, W, 3]` in [-1, 1].
"""

import numpy as np

from stunet.diffusion import Windows


def frame_differences(videos: np.ndarray) -> np.ndarray:
    """Mean absolute difference of consecutive frames, `[N, T - 1]`, in steps of 1/255."""
    return 127.5 * np.abs(np.diff(videos, axis=1)).mean((2, 3, 4))


def seams(windows: Windows) -> np.ndarray:
    """Which transitions from a frame to the next, `[T - 1]` bool, lie at a window's edge.

    Those where a window has another share in the one frame than in the other: with no overlap the
    joints; with overlap where one begins and ends and, of ramp weights, all between.
    """
    return np.any(np.diff(windows.shares, axis=1) != 0, axis=0)


def seam_ratio(
    differences: np.ndarray, at_seam: np.ndarray, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference of consecutive frames at seams over that elsewhere; 1 is seamless.

    Args:
      differences: `[N, T - 1]`, from `frame_differences`.
      at_seam: `[T - 1]`, from `seams`.
      resamples: of the clips, for the interval.
      seed: of the resampling.

    Returns:
      The ratio of means over all clips, and its 95 % interval by bootstrap over clips.

    Raises:
      ValueError: there is no seam, or nothing else.
    """
    if at_seam.all() or not at_seam.any():
        raise ValueError("a ratio takes transitions at seams and others")
    at, elsewhere = differences[:, at_seam].mean(1), differences[:, ~at_seam].mean(1)
    rows = np.random.default_rng(seed).integers(len(at), size=(resamples, len(at)))
    low, high = np.quantile(at[rows].mean(1) / elsewhere[rows].mean(1), [0.025, 0.975])
    return float(at.mean() / elsewhere.mean()), float(low), float(high)


def colour_shift(result: np.ndarray, given: np.ndarray) -> np.ndarray:
    """How far `[N, 3]` a channel's mean over a clip moved, in steps of 1/255, signed.

    Args:
      result: the enlarged videos.
      given: the low-resolution ones.
    """
    return 127.5 * (result.mean((1, 2, 3)) - given.mean((1, 2, 3)))


def psnr(videos: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio `[N]` in dB of clips in [-1, 1], the peak being 2."""
    error = np.square(videos - truth).mean((1, 2, 3, 4))
    return 10 * np.log10(4 / error)
