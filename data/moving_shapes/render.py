"""Renders clips of the moving-shapes world from their attributes.

`u` is the elapsed fraction of the clip. Linear and growing motions extend over the whole clip.
Periodic motions keep their rate per second in clips longer than `NOMINAL_SECONDS`, and are sped up
in shorter ones so that every clip shows at least as many cycles. Circling and spinning are
clockwise.
"""

from typing import NamedTuple

import numpy as np

from data.moving_shapes.backdrops import backdrop
from data.moving_shapes.silhouettes import EXTENTS, mark_distance, signed_distance
from data.moving_shapes.vocabulary import COLOURS, MARK_TONES, SIZES, Attributes

NOMINAL_SECONDS = 2.0
MARGIN = 0.01  # free space at the frame's border, in units of the frame

# Per clip of nominal length, by speed.
TRAVEL = {"slow": 0.75, "fast": 1.0}  # of the free range, for linear motions
CYCLES = {
    "bouncing": {"slow": 2.0, "fast": 3.0},
    "circling": {"slow": 1.0, "fast": 1.5},
    "swinging": {"slow": 1.0, "fast": 2.0},
    "spinning": {"slow": 1.0, "fast": 1.5},
}
SCALES = {
    "slow": (0.60, 1.15),
    "fast": (0.45, 1.25),
}  # smallest and largest scale of growing and shrinking
SWING = 0.9  # radians to each side
WAVES = 16  # number of waves in the background's texture
WAVE_CYCLES = (2.0, 24.0)  # range of their frequencies, in cycles per frame width
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


class Pose(NamedTuple):
    """Centre and radius in units of the frame, angle in radians (clockwise); each [T]."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray


def render(
    attributes: Attributes, seed: int, num_frames: int, resolution: int, fps: float
) -> np.ndarray:
    """Returns a clip, `[num_frames, resolution, resolution, 3]` float32 in [-1, 1]."""
    return render_at(
        attributes, seed, np.arange(num_frames) / num_frames, num_frames / fps, resolution
    )


def render_at(
    attributes: Attributes,
    seed: int,
    fractions: np.ndarray,
    seconds: float,
    resolution: int,
    texture: float = 0.0,
) -> np.ndarray:
    """Renders the frames of a clip at given times.

    Args:
      attributes: Content of the clip.
      seed: Seed of position, phase and texture.
      fractions: Times `[T]` in [0, 1), as fractions of the clip.
      seconds: Length of the clip.
      resolution: Height and width of a frame in pixels.
      texture: Standard deviation of the background's texture, for values in 0 to 1. It is static
        and differs per clip, as detail for super-resolution to generate.

    Returns:
      `[T, resolution, resolution, 3]` float32 in [-1, 1].
    """
    pose = trajectory(attributes, seed, np.asarray(fractions, np.float64), seconds)
    centres = (np.arange(resolution, dtype=np.float32) + 0.5) / resolution
    radius = pose.radius[:, None, None].astype(np.float32)
    x = (centres[None, None, :] - pose.x[:, None, None].astype(np.float32)) / radius
    y = (centres[None, :, None] - pose.y[:, None, None].astype(np.float32)) / radius
    if np.any(pose.angle):
        cos = np.cos(pose.angle)[:, None, None].astype(np.float32)
        sin = np.sin(pose.angle)[:, None, None].astype(np.float32)
        x, y = cos * x + sin * y, cos * y - sin * x
    # Anti-aliasing: the covered share of a pixel is, to first order, linear in the distance.
    per_pixel = radius * resolution
    body = np.clip(0.5 - signed_distance(attributes.shape, x, y) * per_pixel, 0, 1)
    mark = np.clip(0.5 - mark_distance(attributes.shape, x, y) * per_pixel, 0, 1)
    colour = np.array(COLOURS[attributes.colour], np.float32)
    paint = colour + mark[..., None] * (
        np.array(MARK_TONES[attributes.colour], np.float32) - colour
    )
    ground = backdrop(attributes.background, resolution)
    if texture:
        ground = np.clip(ground + texture * _texture(seed, resolution)[..., None], 0, 1)
    frames = ground + body[..., None] * (paint - ground)
    return 2 * frames - 1


def _texture(seed: int, resolution: int) -> np.ndarray:
    """Returns a sum of random waves, `[resolution, resolution]` float32 of unit variance."""
    rng = np.random.default_rng((seed, 2))
    cycles = np.exp(rng.uniform(*np.log(WAVE_CYCLES), WAVES))
    turn, phase = rng.uniform(0, 2 * np.pi, (2, WAVES))
    place = (np.arange(resolution) + 0.5) / resolution
    along_x = np.exp(2j * np.pi * np.cos(turn)[:, None] * cycles[:, None] * place)
    along_y = np.exp(1j * (2 * np.pi * np.sin(turn) * cycles * place[:, None] + phase)).T
    waves = np.einsum("ky,kx->yx", along_y, along_x).real
    return (np.sqrt(2 / WAVES) * waves).astype(np.float32)


def trajectory(attributes: Attributes, seed: int, u: np.ndarray, seconds: float) -> Pose:
    """Returns the object's pose at the fractions `u` [T] of a clip of `seconds`."""
    rng = np.random.default_rng((seed, 0))
    offset_x, offset_y = rng.uniform(-1, 1, 2)
    phase = rng.uniform()
    motion, speed = attributes.motion, attributes.speed
    radius = SIZES[attributes.size] / 2
    lowest, highest = SCALES[speed] if motion in ("growing", "shrinking") else (1.0, 1.0)
    free = 0.5 - MARGIN - EXTENTS[attributes.shape] * radius * highest
    cycles = CYCLES.get(motion, {speed: 0.0})[speed] * max(1.0, seconds / NOMINAL_SECONDS)
    turns = cycles * u + phase
    still = np.zeros_like(u)
    # In units of the free range, within which the whole object is inside the frame.
    x, y = 0.6 * offset_x + still, 0.6 * offset_y + still
    scale, angle = 1 + still, still
    if motion in DIRECTIONS:
        dx, dy = DIRECTIONS[motion]
        along = TRAVEL[speed] * (2 * u - 1)
        x, y = (along * dx, y) if dx else (x, along * dy)
    elif motion == "bouncing":
        arc = turns % 1
        y = 1 - 2 * 4 * arc * (1 - arc)
    elif motion == "circling":
        x = 0.9 * np.cos(2 * np.pi * turns) + 0.1 * offset_x
        y = 0.9 * np.sin(2 * np.pi * turns) + 0.1 * offset_y
    elif motion == "swinging":
        tilt = SWING * np.sin(2 * np.pi * turns)
        x = np.sin(tilt) / np.sin(SWING)
        y = (np.cos(tilt) - (1 + np.cos(SWING)) / 2) / np.sin(SWING) + 0.4 * offset_y
        angle = -tilt
    elif motion == "spinning":
        angle = 2 * np.pi * turns
    else:
        way = u if motion == "growing" else 1 - u
        scale = lowest * (highest / lowest) ** way
    return Pose(0.5 + free * x, 0.5 + free * y, radius * scale, angle)
