"""What a conditional model is given: known pixels, and a mask that says which they are.

The network sees <J, C, M> (Lumiere, 2401.12945, section 4.2): the noisy video J, the known pixels
C, zero where nothing is known, and the mask M, 1 where C is known. A task is a mask:

    image to video     the first frame
    interpolation      the first and the last frame
    in-, outpainting   the user's mask, frame by frame
    cinemagraph        the first frame, and of all others what does not move

Masks are `[B, T, H, W, 1]` float32, 1 = known; videos `[B, T, H, W, 3]` in [-1, 1].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from stunet.errors import UserError

COND_CHANNELS = 4  # C and M

BRUSH_DABS = 12  # discs along the path of a random brush


@dataclass(frozen=True)
class MaskMixture:
    """How often each kind of mask is drawn in training; weights, of any sum.

    Attributes:
      first_frame: the first frame is known (image to video).
      first_and_last: the first and the last (interpolation).
      every_kth: every k-th frame, k from 2 to half of the clip.
      moving_box: all but a box that moves evenly.
      static_box: all but a box that stays; half of the time the whole first frame is known, too
        (cinemagraph).
      brush: all but what a brush has gone over.
      half_plane: what lies on one side of a straight line (outpainting).
      none: nothing.

    Raises:
      UserError: a weight is negative, or none is positive.
    """

    first_frame: float = 0.3
    first_and_last: float = 0.1
    every_kth: float = 0.05
    moving_box: float = 0.1
    static_box: float = 0.15
    brush: float = 0.1
    half_plane: float = 0.1
    none: float = 0.1

    def __post_init__(self):
        weights = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, weight in weights.items():
            if not weight >= 0:
                raise UserError(f"conditioning.{name} is {weight}; a weight is at least 0")
        if not sum(weights.values()):
            raise UserError("all weights of conditioning are 0; one must be positive")

    @property
    def probabilities(self) -> np.ndarray:
        """Of the kinds, in the order of the fields."""
        weights = np.array([getattr(self, field.name) for field in fields(self)], np.float64)
        return weights / weights.sum()


def draw_mask(mixture: MaskMixture, key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """A mask `[T, H, W, 1]` of a kind drawn from the mixture; `shape` is (T, H, W)."""
    kind_key, key = jax.random.split(key)
    kinds = [_KINDS[field.name] for field in fields(mixture)]
    kind = jax.random.choice(kind_key, len(kinds), p=jnp.asarray(mixture.probabilities))
    place = _Place(*shape)
    # Under vmap every kind is drawn; a few comparisons a pixel.
    known = jax.lax.switch(kind, [lambda key, f=f: f(key, place) for f in kinds], key)
    return known.astype(jnp.float32)[..., None]


def mask_conditioning(videos: jax.Array, masks: jax.Array) -> jax.Array:
    """What the network is shown, `[B, T, H, W, 4]`: C and M."""
    return jnp.concatenate([videos * masks, masks], axis=-1)


def paste_known(
    made: np.ndarray, known: np.ndarray, masks: np.ndarray, feather: float
) -> np.ndarray:
    """Puts the known pixels back into a video that was made around them.

    They come back to the bit. In what was filled in, the nearest known pixel of the frame fades
    out over `feather` pixels from the edge, so that a small step there is spread.

    Args:
      made: `[B, T, H, W, 3]` what the model made.
      known: `[B, T, H, W, 3]`; counts where the mask is 1.
      masks: `[B, T, H, W, 1]` of 0 and 1.
      feather: in pixels; 0 for none.
    """
    result = np.where(masks > 0.5, known, made)
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


class _Place:
    """The coordinates of a clip's pixels, each from 0 to 1: `t` [T, 1, 1], `y` and `x`."""

    def __init__(self, frames: int, height: int, width: int):
        self.frames = frames
        self.index = jnp.arange(frames)[:, None, None]
        self.t = self.index / max(1, frames - 1)
        self.y = (jnp.arange(height)[None, :, None] + 0.5) / height
        self.x = (jnp.arange(width)[None, None, :] + 0.5) / width
        self.shape = (frames, height, width)


def _first_frame(key, place: _Place) -> jax.Array:
    return jnp.broadcast_to(place.index == 0, place.shape)


def _first_and_last(key, place: _Place) -> jax.Array:
    ends = (place.index == 0) | (place.index == place.frames - 1)
    return jnp.broadcast_to(ends, place.shape)


def _every_kth(key, place: _Place) -> jax.Array:
    k = jax.random.randint(key, (), 2, max(2, place.frames // 2) + 1)
    return jnp.broadcast_to(place.index % k == 0, place.shape)


def _outside_box(place: _Place, sides, start, end) -> jax.Array:
    """Where a box is not whose corner moves from `start` to `end`; all in units of the frame."""
    corner = start + (end - start) * place.t[..., None]
    top, left = corner[..., 0], corner[..., 1]
    inside = (top <= place.y) & (place.y < top + sides[0])
    return ~(inside & (left <= place.x) & (place.x < left + sides[1]))


def _moving_box(key, place: _Place) -> jax.Array:
    sides, start, end = _box(key)
    return _outside_box(place, sides, start, end)


def _static_box(key, place: _Place) -> jax.Array:
    whole_key, key = jax.random.split(key)
    sides, start, _ = _box(key)
    whole = jax.random.bernoulli(whole_key) & (place.index == 0)
    return whole | _outside_box(place, sides, start, start)


def _box(key) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Height and width of a box, and two places for its top left corner."""
    sides_key, start_key, end_key = jax.random.split(key, 3)
    sides = jax.random.uniform(sides_key, (2,), minval=0.25, maxval=0.75)
    start, end = (jax.random.uniform(k, (2,)) * (1 - sides) for k in (start_key, end_key))
    return sides, start, end


def _brush(key, place: _Place) -> jax.Array:
    """A brush that wanders once over the frame; its mark is the same in every frame."""
    start_key, walk_key, width_key = jax.random.split(key, 3)
    steps = 0.15 * jax.random.normal(walk_key, (BRUSH_DABS, 2))
    path = jax.random.uniform(start_key, (2,)) + jnp.cumsum(steps, axis=0)
    radius = jax.random.uniform(width_key, (), minval=0.05, maxval=0.2)
    path = path[:, :, None, None, None]
    distance = jnp.square(place.y - path[:, 0]) + jnp.square(place.x - path[:, 1])
    return jnp.broadcast_to(distance.min(0) > radius**2, place.shape)


def _half_plane(key, place: _Place) -> jax.Array:
    turn_key, offset_key = jax.random.split(key)
    angle = jax.random.uniform(turn_key, (), maxval=2 * math.pi)
    offset = jax.random.uniform(offset_key, (), minval=-0.3, maxval=0.3)
    along = (place.x - 0.5) * jnp.cos(angle) + (place.y - 0.5) * jnp.sin(angle)
    return jnp.broadcast_to(along < offset, place.shape)


def _none(key, place: _Place) -> jax.Array:
    return jnp.zeros(place.shape, bool)


# (key, place) -> what is known, [T, H, W] bool
_KINDS: dict[str, Callable[[jax.Array, _Place], jax.Array]] = {
    "first_frame": _first_frame,
    "first_and_last": _first_and_last,
    "every_kth": _every_kth,
    "moving_box": _moving_box,
    "static_box": _static_box,
    "brush": _brush,
    "half_plane": _half_plane,
    "none": _none,
}
