"""Seams of windowed sampling, and errors of super-resolution.

Videos are `[N, T, H, W, 3]` in [-1, 1].
"""

import numpy as np

from stunet.diffusion import Windows


def frame_differences(videos: np.ndarray) -> np.ndarray:
    """Returns the mean absolute difference of consecutive frames, `[N, T - 1]`, in 1/255."""
    return 127.5 * np.abs(np.diff(videos, axis=1)).mean((2, 3, 4))


def seam_mask(windows: Windows) -> np.ndarray:
    """Returns which transitions between frames are at an edge of a window, `[T - 1]` bool.

    At these transitions the weight of a window changes: without overlap, the boundaries; with
    overlap, the start and end of every window and, for ramp weights, all frames of an overlap.
    """
    return np.any(np.diff(windows.shares, axis=1) != 0, axis=0)


def seam_ratio(
    differences: np.ndarray, at_seam: np.ndarray, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Returns the mean difference of consecutive frames at seams, divided by that elsewhere.

    A ratio of 1 means that seams are invisible.

    Args:
      differences: `[N, T - 1]`, from `frame_differences`.
      at_seam: `[T - 1]`, from `seam_mask`.
      resamples: Number of bootstrap samples.
      seed: Seed of the bootstrap.

    Returns:
      The ratio of means over all clips, and its 95 % interval (low, high) by bootstrap over clips.

    Raises:
      ValueError: all or no transitions are seams.
    """
    if at_seam.all() or not at_seam.any():
        raise ValueError("at_seam: all equal, expected some True and some False")
    at, elsewhere = differences[:, at_seam].mean(1), differences[:, ~at_seam].mean(1)
    rows = np.random.default_rng(seed).integers(len(at), size=(resamples, len(at)))
    low, high = np.quantile(at[rows].mean(1) / elsewhere[rows].mean(1), [0.025, 0.975])
    return float(at.mean() / elsewhere.mean()), float(low), float(high)


def colour_shift(upscaled: np.ndarray, low_resolution: np.ndarray) -> np.ndarray:
    """Returns the signed change `[N, 3]` of each channel's mean over a clip, in 1/255.

    Args:
      upscaled: Upscaled videos.
      low_resolution: Their inputs.
    """
    return 127.5 * (upscaled.mean((1, 2, 3)) - low_resolution.mean((1, 2, 3)))


def psnr(videos: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns the peak signal-to-noise ratio `[N]` in dB, for a value range of 2."""
    error = np.square(videos - truth).mean((1, 2, 3, 4))
    return 10 * np.log10(4 / error)
