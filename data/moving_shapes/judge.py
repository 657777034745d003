"""Reads colour, shape, motion and background of a moving-shapes clip back out of pixels.

Classical vision, nothing learned, so that the judge of a generated clip is independent
of what generated it: the background from the frame's sides, the colour by vote, the
silhouette by unmixing each pixel into background, colour and mark, then recognition
(`shape_matching`) and the law of its path (`motion_reading`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import ndimage

from data.moving_shapes.backdrops import backdrop
from data.moving_shapes.motion_reading import read_motion
from data.moving_shapes.shape_matching import match
from data.moving_shapes.vocabulary import BACKGROUNDS, COLOURS, MARK_TONES, Prompt

NOTHING = "none"
MIN_DISTANCE = 0.25  # RGB distance from the background of a pixel that shows something
MIN_AREA = 0.008  # of the frame, that the object must cover on average
VOTE_WIDTH = 0.2  # RGB distance
RIDGE = 0.02  # against splitting noise where mark and background look alike


def judge(video: np.ndarray) -> dict[str, str]:
    """What a clip shows.

    Args:
      video: `[T, H, W, 3]` in [-1, 1], square.

    Returns:
      `colour`, `shape`, `motion`, `background`: words of `moving_shapes`' vocabulary.
      `motion` is "still" where nothing moves; `colour`, `shape` and `motion` are "none"
      where no object is seen.
    """
    frames = np.clip((np.asarray(video, np.float32) + 1) / 2, 0, 1)
    background, ground = _read_background(frames)
    difference = frames - ground
    distance = np.linalg.norm(difference, axis=-1)
    if (distance > MIN_DISTANCE).mean() < MIN_AREA:
        return {"colour": NOTHING, "shape": NOTHING, "motion": NOTHING, "background": background}
    colour = _read_colour(frames, distance)
    silhouettes = _main_part(_unmix(difference, ground, colour))
    found = match(silhouettes)
    motion = read_motion(found.x, found.y, found.radius, found.angle, found.weight)
    return {"colour": colour, "shape": found.shape, "motion": motion, "background": background}


def agreement(seen: Iterable[Mapping[str, str]], prompts: Sequence[Prompt]) -> dict[str, float]:
    """The share of clips that show what their prompts name: colour, shape, motion, and all.

    `seen` is what `judge` says of each clip, here and below.
    """
    names = ("colour", "shape", "motion")
    hits = np.array(
        [
            [one[name] == getattr(prompt, name) for name in names]
            for one, prompt in zip(seen, prompts, strict=True)
        ]
    )
    shares = dict(zip(names, hits.mean(0).tolist(), strict=True))
    return {**shares, "all": float(hits.all(1).mean())}


def confusion(
    seen: Iterable[Mapping[str, str]], prompts: Sequence[Prompt], attribute: str
) -> dict[str, dict[str, int]]:
    """How often clips that were asked for one value of an attribute show each: asked -> seen."""
    table: dict[str, Counter] = defaultdict(Counter)
    for one, prompt in zip(seen, prompts, strict=True):
        table[getattr(prompt, attribute)][one[attribute]] += 1
    return {asked: dict(counts.most_common()) for asked, counts in sorted(table.items())}


def shapes_by_motion(
    seen: Iterable[Mapping[str, str]], prompts: Sequence[Prompt]
) -> dict[str, dict[str, int]]:
    """How many clips there are of each motion asked for, and of how many the shape is right.

    Swinging and spinning turn a shape, which is harder to draw than one that stays upright.
    """
    table: dict[str, Counter] = defaultdict(Counter)
    for one, prompt in zip(seen, prompts, strict=True):
        table[prompt.motion].update(clips=1, right=int(one["shape"] == prompt.shape))
    return {motion: dict(counts) for motion, counts in sorted(table.items())}


def _read_background(frames: np.ndarray) -> tuple[str, np.ndarray]:
    """Its name, and its picture `[H, 1, 3]`; every background depends on the row alone."""
    resolution = frames.shape[1]
    side = max(2, resolution // 16)
    sides = np.concatenate([frames[:, :, :side], frames[:, :, -side:]], 2)
    seen = np.median(sides.transpose(1, 0, 2, 3).reshape(resolution, -1, 3), 1)
    ideals = {name: backdrop(name, resolution)[:, 0] for name in BACKGROUNDS}
    # By the median over rows: an object at the side spoils some of them.
    off = {n: np.median(np.linalg.norm(seen - p, axis=-1)) for n, p in ideals.items()}
    name = min(off, key=off.get)
    ground = ideals[name] + np.clip(seen - ideals[name], -0.1, 0.1)
    return name, ground[:, None].astype(np.float32)


def _read_colour(frames: np.ndarray, distance: np.ndarray) -> str:
    """By vote of the pixels that the object covers wholly."""
    typical = np.median(distance[distance > MIN_DISTANCE])
    pixels = frames[distance > 0.8 * typical]
    off = np.linalg.norm(pixels[:, None] - np.array(list(COLOURS.values())), axis=-1)
    # A pixel's vote fades with its distance from the pure tone, so mixtures count little.
    votes = np.exp(-((off / VOTE_WIDTH) ** 2)).sum(0)
    return tuple(COLOURS)[int(votes.argmax())]


def _unmix(difference: np.ndarray, ground: np.ndarray, colour: str) -> np.ndarray:
    """How much of each pixel is the object's colour, [T, H, W] in [0, 1].

    Least squares for pixel = ground + a (colour - ground) + b (mark - ground), a, b >= 0.
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


def _main_part(silhouettes: np.ndarray) -> np.ndarray:
    """Each frame's largest connected part; specks elsewhere go."""
    clean = np.clip((silhouettes - 0.1) / 0.8, 0, 1)
    across = ndimage.generate_binary_structure(2, 2)[None]
    wide = ndimage.binary_dilation(clean > 0.3, across)
    apart = np.zeros((3, 3, 3), bool)
    apart[1] = across[0]
    labels, count = ndimage.label(wide, apart)
    sizes = ndimage.sum_labels(clean, labels, np.arange(1, count + 1))
    kept = np.zeros_like(wide)
    for index, frame in enumerate(labels):
        parts = np.unique(frame[frame > 0])
        if len(parts):
            kept[index] = frame == parts[sizes[parts - 1].argmax()]
    return clean * kept
