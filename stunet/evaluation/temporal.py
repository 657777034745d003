"""Temporal statistics of clips: flicker and periodicity."""

import numpy as np

LUMA = (0.299, 0.587, 0.114)  # Rec. 601
MIN_FLICKER_FRAMES = 3
MIN_PERIODIC_FRAMES = 8
HARMONICS = 2  # of a period; a bounce is not a sine wave


def flicker(videos: np.ndarray) -> np.ndarray:
    """Returns the mean deviation of a frame's brightness from that of its neighbours, in 1/255.

    Brightness is the mean over the frame, so that neither motion within the frame nor a steady
    change of brightness counts.

    Args:
      videos: `[N, T, H, W, 3]` in [-1, 1], T >= 3.

    Returns:
      One value per clip, `[N]`.

    Raises:
      ValueError: there are fewer than 3 frames.
    """
    if videos.shape[1] < MIN_FLICKER_FRAMES:
        raise ValueError(f"videos: {videos.shape[1]} frames, expected {MIN_FLICKER_FRAMES} or more")
    brightness = 127.5 * (videos.mean((2, 3)) @ np.array(LUMA))
    neighbours = (brightness[:, :-2] + brightness[:, 2:]) / 2
    return np.abs(brightness[:, 1:-1] - neighbours).mean(1)


def periodicity(videos: np.ndarray) -> np.ndarray:
    """Returns the share of a clip's temporal variance that its best period explains.

    A period is fitted with `HARMONICS` harmonics. It lasts at least 4 frames, and fits at least
    1.5 times into the clip. Pure noise scores a few times HARMONICS * 2 / T.

    Args:
      videos: `[N, T, H, W, 3]`, T >= 8.

    Returns:
      One value in [0, 1] per clip, `[N]`.

    Raises:
      ValueError: there are fewer than 8 frames.
    """
    count, frames = videos.shape[:2]
    if frames < MIN_PERIODIC_FRAMES:
        raise ValueError(f"videos: {frames} frames, expected {MIN_PERIODIC_FRAMES} or more")
    series = videos.reshape(count, frames, -1).astype(np.float64)
    series = series - series.mean(1, keepdims=True)
    products = series @ series.swapaxes(1, 2)  # inner products of frames
    total = np.maximum(np.trace(products, axis1=1, axis2=2), 1e-12)
    shares = []
    for cycles in np.arange(1.5, frames / 4 + 1e-9, 0.125):
        angles = 2 * np.pi * cycles * np.arange(frames) / frames
        waves = [f(k * angles) for k in range(1, HARMONICS + 1) for f in (np.cos, np.sin)]
        basis = np.stack(waves, axis=1)
        basis, _ = np.linalg.qr(basis - basis.mean(0))
        shares.append(np.einsum("tk,nts,sk->n", basis, products, basis) / total)
    return np.max(shares, axis=0)
