"""Recognises colour, shape, motion and background of a moving-shapes clip.

Uses classical computer vision, so that the judge is independent of learned models: background from
the sides of the frame, colour by votes of pixels, silhouette by unmixing each pixel into
background, colour and mark, then template matching (`shape_matching`) and a fit of the path
(`motion_fitting`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import ndimage

from data.moving_shapes.backdrops import backdrop
from data.moving_shapes.motion_fitting import classify_motion
from data.moving_shapes.shape_matching import match_shape
from data.moving_shapes.vocabulary import BACKGROUNDS, COLOURS, MARK_TONES, Prompt

NOTHING = "none"
MIN_DISTANCE = 0.25  # RGB distance of an object's pixels from the background
MIN_AREA = 0.008  # mean share of the frame that an object covers
VOTE_WIDTH = 0.2  # RGB distance
RIDGE = 0.02  # regularises unmixing if mark and background are similar


def judge(video: np.ndarray) -> dict[str, str]:
    """Recognises the attributes of a clip.

    Args:
      video: `[T, H, W, 3]` in [-1, 1], with H = W.

    Returns:
      `colour`, `shape`, `motion` and `background`, as words of `vocabulary`. `motion` is "still" if
      nothing moves. `colour`, `shape` and `motion` are "none" if there is no object.
    """
    frames = np.clip((np.asarray(video, np.float32) + 1) / 2, 0, 1)
    background, ground = _classify_background(frames)
    difference = frames - ground
    distance = np.linalg.norm(difference, axis=-1)
    if (distance > MIN_DISTANCE).mean() < MIN_AREA:
        return {"colour": NOTHING, "shape": NOTHING, "motion": NOTHING, "background": background}
    colour = _classify_colour(frames, distance)
    silhouettes = _largest_part(_unmix(difference, ground, colour))
    match = match_shape(silhouettes)
    motion = classify_motion(match.x, match.y, match.radius, match.angle, match.weight)
    return {"colour": colour, "shape": match.shape, "motion": motion, "background": background}


def agreement(verdicts: Iterable[Mapping[str, str]], prompts: Sequence[Prompt]) -> dict[str, float]:
    """Returns the share of clips whose attributes match their prompts.

    Args:
      verdicts: Results of `judge`, one per clip.
      prompts: One per clip.

    Returns:
      Shares for `colour`, `shape` and `motion`, and for `all` three at the same time.
    """
    names = ("colour", "shape", "motion")
    hits = np.array(
        [
            [verdict[name] == getattr(prompt, name) for name in names]
            for verdict, prompt in zip(verdicts, prompts, strict=True)
        ]
    )
    shares = dict(zip(names, hits.mean(0).tolist(), strict=True))
    return {**shares, "all": float(hits.all(1).mean())}


def confusion(
    verdicts: Iterable[Mapping[str, str]], prompts: Sequence[Prompt], attribute: str
) -> dict[str, dict[str, int]]:
    """Returns the confusion matrix of an attribute: prompted value -> recognised value -> clips.

    Args:
      verdicts: Results of `judge`, one per clip.
      prompts: One per clip.
      attribute: "shape", "colour" or "motion".
    """
    matrix: dict[str, Counter] = defaultdict(Counter)
    for verdict, prompt in zip(verdicts, prompts, strict=True):
        matrix[getattr(prompt, attribute)][verdict[attribute]] += 1
    return {prompted: dict(counts.most_common()) for prompted, counts in sorted(matrix.items())}


def shapes_by_motion(
    verdicts: Iterable[Mapping[str, str]], prompts: Sequence[Prompt]
) -> dict[str, dict[str, int]]:
    """Counts clips, and clips of the right shape, by prompted motion.

    Swinging and spinning rotate the shape, which is harder to draw than an upright one.

    Args:
      verdicts: Results of `judge`, one per clip.
      prompts: One per clip.
    """
    counts_by_motion: dict[str, Counter] = defaultdict(Counter)
    for verdict, prompt in zip(verdicts, prompts, strict=True):
        counts_by_motion[prompt.motion].update(clips=1, right=int(verdict["shape"] == prompt.shape))
    return {motion: dict(counts) for motion, counts in sorted(counts_by_motion.items())}


def _classify_background(frames: np.ndarray) -> tuple[str, np.ndarray]:
    """Returns the background's name and one column `[H, 1, 3]`; all columns are equal."""
    resolution = frames.shape[1]
    side = max(2, resolution // 16)
    sides = np.concatenate([frames[:, :, :side], frames[:, :, -side:]], 2)
    column = np.median(sides.transpose(1, 0, 2, 3).reshape(resolution, -1, 3), 1)
    ideals = {name: backdrop(name, resolution)[:, 0] for name in BACKGROUNDS}
    # The median over rows is robust to an object at the side.
    off = {n: np.median(np.linalg.norm(column - p, axis=-1)) for n, p in ideals.items()}
    name = min(off, key=off.get)
    ground = ideals[name] + np.clip(column - ideals[name], -0.1, 0.1)
    return name, ground[:, None].astype(np.float32)


def _classify_colour(frames: np.ndarray, distance: np.ndarray) -> str:
    """Returns the colour with most votes of pixels that the object covers completely."""
    typical = np.median(distance[distance > MIN_DISTANCE])
    pixels = frames[distance > 0.8 * typical]
    off = np.linalg.norm(pixels[:, None] - np.array(list(COLOURS.values())), axis=-1)
    # Votes decrease with the distance from the pure tone, so that mixtures count little.
    votes = np.exp(-((off / VOTE_WIDTH) ** 2)).sum(0)
    return tuple(COLOURS)[int(votes.argmax())]


def _unmix(difference: np.ndarray, ground: np.ndarray, colour: str) -> np.ndarray:
    """Returns the share of the object's colour in each pixel, `[T, H, W]` in [0, 1].

    Solves pixel = ground + a (colour - ground) + b (mark - ground), a, b >= 0, by least squares.
    """
    to_colour = np.array(COLOURS[colour], np.float32) - ground
    to_mark = np.array(MARK_TONES[colour], np.float32) - ground
    cc, mm = (to_colour**2).sum(-1), (to_mark**2).sum(-1) + RIDGE
    cm = (to_colour * to_mark).sum(-1)
    dc, dm = (difference * to_colour).sum(-1), (difference * to_mark).sum(-1)
    determinant = np.maximum(cc * mm - cm**2, 1e-4)
    share = (dc * mm - dm * cm) / determinant
    mark = (dm * cc - dc * cm) / determinant
    share = np.where(mark < 0, dc / cc, share)
    return np.clip(share, 0, 1)


def _largest_part(silhouettes: np.ndarray) -> np.ndarray:
    """Sets all but the largest connected part of each frame to 0."""
    clean = np.clip((silhouettes - 0.1) / 0.8, 0, 1)
    across = ndimage.generate_binary_structure(2, 2)[None]
    wide = ndimage.binary_dilation(clean > 0.3, across)
    apart = np.zeros((3, 3, 3), bool)
    apart[1] = across[0]
    labels, count = ndimage.label(wide, apart)
    sizes = ndimage.sum_labels(clean, labels, np.arange(1, count + 1))
    largest = np.zeros_like(wide)
    for index, frame in enumerate(labels):
        parts = np.unique(frame[frame > 0])
        if len(parts):
            largest[index] = frame == parts[sizes[parts - 1].argmax()]
    return clean * largest
