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


HARMONICS = 2  # of a period; a bounce is no sine


def periodicity(videos: np.ndarray) -> np.ndarray:
    """How far a clip repeats itself, `[N]`: the share of what changes in it that its best period
    explains, with as many harmonics as `HARMONICS`.

    Periods are those that fit at least 1.5 times into the clip and last at least 4 frames. Noise
    alone reaches a few times HARMONICS * 2 / T.

    Args:
      videos: `[N, T, H, W, 3]`, T from 8 on.

    Raises:
      ValueError: there are fewer than 8 frames.
    """
    count, frames = videos.shape[:2]
    if frames < 8:
        raise ValueError(f"periodicity takes 8 frames, got {frames}")
    series = videos.reshape(count, frames, -1).astype(np.float64)
    series = series - series.mean(1, keepdims=True)
    products = series @ series.swapaxes(1, 2)  # what two frames have in common
    total = np.maximum(np.trace(products, axis1=1, axis2=2), 1e-12)
    shares = []
    for cycles in np.arange(1.5, frames / 4 + 1e-9, 0.125):
        angles = 2 * np.pi * cycles * np.arange(frames) / frames
        waves = [f(k * angles) for k in range(1, HARMONICS + 1) for f in (np.cos, np.sin)]
        basis = np.stack(waves, axis=1)
        basis, _ = np.linalg.qr(basis - basis.mean(0))
        shares.append(np.einsum("tk,nts,sk->n", basis, products, basis) / total)
    return np.max(shares, axis=0)
