"""Scene cuts and static clips, found in the frames as they are stored."""

import collections
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from stunet.errors import UserError

if TYPE_CHECKING:
    from scenedetect.detectors import AdaptiveDetector

# Measured with PySceneDetect 0.7.2 on four real clips, re-timed to 16 frames per second, at 64, 128
# and 256 pixels. The ratio is the change of a frame over the mean change of the 4 frames around it.
# The 5 cuts of bikes.mp4 have 2.6 to 9.3; other frames of bikes, bigbuckbunny and realshort reach
# 2.0. The default of 3.0 misses the cut between two fast shots. Two turns of the handheld camera
# in cockatoo (2.6 to 2.8) are taken for cuts, too: neither PySceneDetect's content, histogram nor
# hash detector separates them from that cut. At 24 frames per second, the cuts have at least 3.2;
# at 8, the cut between the fast shots has 1.8 and is missed.
_MIN_RATIO = 2.3
_MIN_CHANGE = 15.0  # of hue, saturation and value, in levels: PySceneDetect's default
_WINDOW = 2  # frames on either side that a frame is compared with: PySceneDetect's default

_BLOCKS = 8  # rows and columns of blocks whose means `motion` compares
_MOVING_SHARE = 0.1  # of the blocks, which `motion` averages

STATIC_MOTION = 2.0
"""Recommended threshold in levels: clips with less `motion` are static.

Measured on clips of 80 frames at 64 and 128 pixels. Static: stills 0, with noise of 10 levels
(standard deviation) 1.1, with flicker of 2 levels 1.5. Moving: a pan of 1.6 pixels in all 2.1 to
4.1, 17 almost still frames of bigbuckbunny 5.5, other scenes of the four real clips at least 9.
"""


def split_scenes(frames: Iterable[np.ndarray], fps: float) -> Iterator[tuple[bool, np.ndarray]]:
    """Marks the frames that start a new scene, with PySceneDetect's `AdaptiveDetector`.

    Finds cuts, but no fades and dissolves. The first and the last frame count as displayed for
    longer, so that cuts next to them are found: clips that were cut at rounded times often contain
    a frame of the next scene. Holds three frames in memory.

    Args:
      frames: `[H, W, 3]` uint8, RGB, re-timed and resized.
      fps: Frames per second. 16 or more: at lower rates, cuts between fast shots are missed.

    Returns:
      Iterator over whether a frame starts a scene (true for the first one), and the frame.

    Raises:
      UserError: PySceneDetect is not installed.
    """
    return _split(frames, fps, _detector())


def check_installed() -> None:
    """Raises `UserError` if `split_scenes` cannot run because PySceneDetect is not installed."""
    _detector()


def motion(frames: np.ndarray) -> float:
    """Measures how much a clip moves, to drop static ones (see `STATIC_MOTION`).

    Averages 8x8 blocks, takes the mean absolute deviation of each block from its mean over time,
    and returns the mean over the tenth of the blocks that deviates most. Unlike the difference of
    consecutive frames, this is small for noise, and large for slow motion and small objects.

    Args:
      frames: `[T, H, W, 3]` uint8.

    Returns:
      Motion in levels of 0 to 255. 0 for identical frames and for a single frame.
    """
    count, height, width, channels = frames.shape
    rows, columns = min(_BLOCKS, height), min(_BLOCKS, width)
    cropped = frames[:, : height // rows * rows, : width // columns * columns]
    blocks = cropped.reshape(count, rows, height // rows, columns, width // columns, channels)
    means = blocks.mean((2, 4), dtype=np.float32)
    deviations = np.sort(np.abs(means - means.mean(0)).mean((0, 3)), axis=None)
    return float(deviations[-max(1, round(_MOVING_SHARE * deviations.size)) :].mean())


def _detector() -> "AdaptiveDetector":
    try:
        from scenedetect.detectors import AdaptiveDetector
    except ImportError as error:
        raise UserError(
            f"scene cuts: {error.name or 'scenedetect'} is not installed, "
            'expected `pip install -e ".[scenes]"`'
        ) from error
    return AdaptiveDetector(
        adaptive_threshold=_MIN_RATIO,
        min_content_val=_MIN_CHANGE,
        window_width=_WINDOW,
        min_scene_len=1,  # a minimum would hide the cut at the end of a short scene
    )


def _split(
    frames: Iterable[np.ndarray], fps: float, detector: "AdaptiveDetector"
) -> Iterator[tuple[bool, np.ndarray]]:
    from scenedetect import FrameTimecode

    recent: collections.deque[np.ndarray] = collections.deque(maxlen=_WINDOW + 1)
    for index, frame in enumerate(_repeat_ends(frames)):
        recent.append(frame)
        bgr = np.ascontiguousarray(frame[..., ::-1])
        # The detector decides on the frame before the last `_WINDOW` ones.
        is_cut = bool(detector.process_frame(FrameTimecode(index, fps=float(fps)), bgr))
        if index >= 2 * _WINDOW:
            yield is_cut or index == 2 * _WINDOW, recent[0]


def _repeat_ends(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the first and the last frame `_WINDOW` more times."""
    frame = None
    for index, frame in enumerate(frames):
        yield from [frame] * (1 if index else 1 + _WINDOW)
    if frame is not None:
        yield from [frame] * _WINDOW
