"""Conditioning on known pixels, and random masks to train it.

The network receives <J, C, M> (Lumiere, 2401.12945 section 4.2): the noisy video J, the known
pixels C (zero elsewhere) and the mask M (1 where C is known). Each application is a mask:

    image to video         the first frame is known
    interpolation          the first and the last frame are known
    inpainting, outpainting  the user's mask, frame by frame
    cinemagraph            the first frame, and in all others the pixels outside the moving region

Masks are [B, T, H, W, 1] float32, 1 = known; videos are [B, T, H, W, 3] in [-1, 1].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Real
from scipy import ndimage

from stunet.diffusion.prediction import Video
from stunet.errors import UserError
from stunet.schema import Range, check_fields

COND_CHANNELS = 4  # C and M

BRUSH_DABS = 12  # discs along the path of a random brush

Mask = Float[Array, "batch frames height width 1"]
_Weight = Annotated[float, Range(0)]
_Region = Bool[Array, "frames height width"]


@dataclass(frozen=True)
class MaskMixture:
    """Weights of the kinds of masks that training draws; they need not sum to 1.

    Attributes:
      first_frame: The first frame is known (image to video).
      first_and_last: The first and the last frame are known (interpolation).
      every_kth: Every k-th frame is known, with k from 2 to half of the clip.
      moving_box: All but a box that moves at constant velocity is known.
      static_box: All but a fixed box is known. In half of the masks the whole first frame is known
        (cinemagraph).
      brush: All but a brush stroke is known.
      half_plane: One side of a straight line is known (outpainting).
      none: Nothing is known.

    Raises:
      UserError: A weight is out of range, or all weights are 0.
    """

    first_frame: _Weight = 0.3
    first_and_last: _Weight = 0.1
    every_kth: _Weight = 0.05
    moving_box: _Weight = 0.1
    static_box: _Weight = 0.15
    brush: _Weight = 0.1
    half_plane: _Weight = 0.1
    none: _Weight = 0.1

    def __post_init__(self):
        check_fields(self, "conditioning.")
        if not any(getattr(self, field.name) for field in fields(self)):
            raise UserError("conditioning: all weights are 0, expected at least one above 0")

    @property
    def probabilities(self) -> Float[np.ndarray, " kinds"]:
        """Probabilities of the kinds in the order of the fields, float64."""
        weights = np.array([getattr(self, field.name) for field in fields(self)], np.float64)
        return weights / weights.sum()


def draw_mask(
    mixture: MaskMixture, key: PRNGKeyArray, shape: tuple[int, int, int]
) -> Float[Array, "frames height width 1"]:
    """Draws a mask [T, H, W, 1] of a random kind.

    Args:
      mixture: Weights of the kinds.
      key: Random key.
      shape: (T, H, W).
    """
    kind_key, key = jax.random.split(key)
    kinds = [_KINDS[field.name] for field in fields(mixture)]
    kind = jax.random.choice(kind_key, len(kinds), p=jnp.asarray(mixture.probabilities))
    grid = _PixelGrid(*shape)
    # Under vmap all kinds are computed; each costs a few comparisons per pixel.
    known = jax.lax.switch(kind, [lambda key, draw=draw: draw(key, grid) for draw in kinds], key)
    return known.astype(jnp.float32)[..., None]


def mask_conditioning(
    videos: Video, masks: Mask
) -> Float[Array, "batch frames height width conditioning"]:
    """Returns the network's conditioning channels [B, T, H, W, 4]: known pixels C and mask M."""
    return jnp.concatenate([videos * masks, masks], axis=-1)


def paste_known(
    generated: Float[np.ndarray, "batch frames height width channels"],
    known: Float[np.ndarray, "batch frames height width channels"],
    masks: Real[np.ndarray, "batch frames height width 1"],
    feather: float,
) -> Float[np.ndarray, "batch frames height width channels"]:
    """Replaces the known pixels of a generated video by their exact values.

    Next to the mask's edge, generated pixels are blended with the nearest known pixel of the frame.
    Its weight falls linearly to 0 over `feather` pixels, which hides small steps at the edge.

    Args:
      generated: Output of the model.
      known: Known pixels; used where the mask is 1.
      masks: [B, T, H, W, 1], 1 = known, else 0.
      feather: Width of the blend in pixels. 0 disables blending.
    """
    result = np.where(masks > 0.5, known, generated)
    if feather <= 0:
        return result
    for video, pixels, mask in zip(result, known, masks[..., 0] > 0.5, strict=True):
        for frame, source, inside in zip(video, pixels, mask, strict=True):
            if not inside.any() or inside.all():
                continue
            distance, (rows, columns) = ndimage.distance_transform_edt(~inside, return_indices=True)
            share = np.clip(1 - distance / (feather + 1), 0, 1)[..., None].astype(frame.dtype)
            share[inside] = 0
            frame += share * (source[rows, columns] - frame)
    return result


class _PixelGrid:
    """Coordinates of a clip's pixels, in units of the clip: t [T, 1, 1], y [1, H, 1], x [1, 1, W].

    Attributes:
      frames: Number of frames T.
      index: Frame numbers [T, 1, 1].
      t: Times from 0 (first frame) to 1 (last frame).
      y: Vertical pixel centres within 0 to 1.
      x: Horizontal pixel centres within 0 to 1.
      shape: (T, H, W).
    """

    def __init__(self, frames: int, height: int, width: int):
        self.frames = frames
        self.index = jnp.arange(frames)[:, None, None]
        self.t = self.index / max(1, frames - 1)
        self.y = (jnp.arange(height)[None, :, None] + 0.5) / height
        self.x = (jnp.arange(width)[None, None, :] + 0.5) / width
        self.shape = (frames, height, width)


def _first_frame(key: PRNGKeyArray, grid: _PixelGrid) -> _Region:
    return jnp.broadcast_to(grid.index == 0, grid.shape)


def _first_and_last(key: PRNGKeyArray, grid: _PixelGrid) -> _Region:
    ends = (grid.index == 0) | (grid.index == grid.frames - 1)
    return jnp.broadcast_to(ends, grid.shape)


def _every_kth(key: PRNGKeyArray, grid: _PixelGrid) -> _Region:
    k = jax.random.randint(key, (), 2, max(2, grid.frames // 2) + 1)
    return jnp.broadcast_to(grid.index % k == 0, grid.shape)


def _outside_box(
    grid: _PixelGrid, sides: Float[Array, "2"], start: Float[Array, "2"], end: Float[Array, "2"]
) -> _Region:
    """Returns the pixels outside a box (height, width) whose corner moves from start to end."""
    corner = start + (end - start) * grid.t[..., None]
    top, left = corner[..., 0], corner[..., 1]
    inside = (top <= grid.y) & (grid.y < top + sides[0])
    return ~(inside & (left <= grid.x) & (grid.x < left + sides[1]))


def _moving_box(key: PRNGKeyArray, grid: _PixelGrid) -> _Region:
    sides, start, end = _draw_box(key)
    return _outside_box(grid, sides, start, end)


def _static_box(key: PRNGKeyArray, grid: _PixelGrid) -> _Region:
    whole_frame_key, key = jax.random.split(key)
    sides, start, _ = _draw_box(key)
    whole_frame = jax.random.bernoulli(whole_frame_key) & (grid.index == 0)
    return whole_frame | _outside_box(grid, sides, start, start)


def _draw_box(
    key: PRNGKeyArray,
) -> tuple[Float[Array, "2"], Float[Array, "2"], Float[Array, "2"]]:
    """Returns (height, width) of a box and two positions (y, x) of its top left corner."""
    sides_key, start_key, end_key = jax.random.split(key, 3)
    sides = jax.random.uniform(sides_key, (2,), minval=0.25, maxval=0.75)
    start, end = (jax.random.uniform(k, (2,)) * (1 - sides) for k in (start_key, end_key))
    return sides, start, end


def _brush(key: PRNGKeyArray, grid: _PixelGrid) -> _Region:
    """Everything but a random brush stroke, the same in all frames."""
    start_key, walk_key, width_key = jax.random.split(key, 3)
    steps = 0.15 * jax.random.normal(walk_key, (BRUSH_DABS, 2))
    path = jax.random.uniform(start_key, (2,)) + jnp.cumsum(steps, axis=0)
    radius = jax.random.uniform(width_key, (), minval=0.05, maxval=0.2)
    path = path[:, :, None, None, None]
    distance = jnp.square(grid.y - path[:, 0]) + jnp.square(grid.x - path[:, 1])
    return jnp.broadcast_to(distance.min(0) > radius**2, grid.shape)


def _half_plane(key: PRNGKeyArray, grid: _PixelGrid) -> _Region:
    angle_key, offset_key = jax.random.split(key)
    angle = jax.random.uniform(angle_key, (), maxval=2 * math.pi)
    offset = jax.random.uniform(offset_key, (), minval=-0.3, maxval=0.3)
    along = (grid.x - 0.5) * jnp.cos(angle) + (grid.y - 0.5) * jnp.sin(angle)
    return jnp.broadcast_to(along < offset, grid.shape)


def _none(key: PRNGKeyArray, grid: _PixelGrid) -> _Region:
    return jnp.zeros(grid.shape, bool)


# (key, grid) -> known pixels [T, H, W]
_KINDS: dict[str, Callable[[PRNGKeyArray, _PixelGrid], _Region]] = {
    "first_frame": _first_frame,
    "first_and_last": _first_and_last,
    "every_kth": _every_kth,
    "moving_box": _moving_box,
    "static_box": _static_box,
    "brush": _brush,
    "half_plane": _half_plane,
    "none": _none,
}
