"""How a super-resolution model is shown the low-resolution clip.

The clip is resized bilinearly to the size wanted, noised to an augmentation level that the network
is told, and laid beside the noisy video along the channels (cascaded diffusion, 2106.15282 section
4.2; Imagen, 2205.11487 section 2.3; DeepFloyd IF's stage II). The augmentation teaches the network
not to trust the clip's artefacts: a base model's are others than a resized video's.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from stunet.diffusion.prediction import add_noise
from stunet.diffusion.schedule import Schedule
from stunet.errors import UserError

# Augmentation levels are timesteps of this, whatever the model's own schedule (as IF).
NOISE_LEVELS = Schedule(kind="cosine")
MAX_NOISE_LEVEL = 999.0


@dataclass(frozen=True)
class SuperResolution:
    """What a super-resolution model makes of a clip.

    Attributes:
      factor: how many times wider and higher the result is.
      max_noise_level: augmentation levels are trained uniformly from 0 to here, on IF's timestep
        scale 0..999.
      noise_level: the level to sample with; IF's own is 250.
      residual_scale: where not 0, what is diffused is not the frames but how they differ from the
        enlarged clip, in units of this: colours and all that is coarse are then the clip's, and
        the network has only detail to make. As it is for IF, 0 diffuses frames.
      align_corners: whether the outer pixels' centres, instead of their edges, stay in place as
        the clip is resized. IF's stage II was trained so; it does not go with crops, in which
        what lies where then differs from whole frames.
      steps: of the sampler, where it is told of none; None for the sampler's own number. Few steps
        come near to the mean of what the frames may have been, which has little grain.

    Raises:
      UserError: a factor below 2, levels out of order, a negative scale, or steps below 1.
    """

    factor: int = 4
    max_noise_level: float = MAX_NOISE_LEVEL
    noise_level: float = 250.0
    residual_scale: float = 0.0
    align_corners: bool = False
    steps: int | None = None

    def __post_init__(self):
        if self.factor < 2:
            raise UserError(f"super_resolution.factor is {self.factor}; it must be at least 2")
        if not 0 <= self.noise_level <= self.max_noise_level <= MAX_NOISE_LEVEL:
            raise UserError(
                f"super_resolution.noise_level is {self.noise_level}, max_noise_level "
                f"{self.max_noise_level}; expected 0 <= noise_level <= max_noise_level <= "
                f"{MAX_NOISE_LEVEL}"
            )
        if self.steps is not None and self.steps < 1:
            raise UserError(f"super_resolution.steps is {self.steps}; it must be at least 1")
        if not self.residual_scale >= 0:
            raise UserError(
                f"super_resolution.residual_scale is {self.residual_scale}; it must be at least 0"
            )

    def diffused(self, frames: jax.Array, large: jax.Array) -> jax.Array:
        """What is diffused for `frames`, of which `large` is the enlarged clip."""
        return (frames - large) / self.residual_scale if self.residual_scale else frames

    def frames(self, diffused: jax.Array, large: jax.Array) -> jax.Array:
        """The inverse of `diffused`."""
        return large + self.residual_scale * diffused if self.residual_scale else diffused


def downsample(video: jax.Array, factor: int) -> jax.Array:
    """`[B, T, H, W, C]` -> `[B, T, H / factor, W / factor, C]`, each pixel the mean of a square.

    The mean of a crop on the grid of `factor` is the crop of the mean, so that a model may be
    trained on crops.
    """
    b, t, h, w, c = video.shape
    squares = video.reshape(b, t, h // factor, factor, w // factor, factor, c)
    return squares.mean((3, 5))


def upsample(video: jax.Array, factor: int, align_corners: bool = False) -> jax.Array:
    """`[B, T, H, W, C]` -> `[B, T, H * factor, W * factor, C]`, bilinearly."""
    rows, columns = (_linear(size, factor, align_corners) for size in video.shape[2:4])
    return jnp.einsum("btyxc,Yy,Xx->btYXc", video, rows, columns, precision="highest")


def _linear(size: int, factor: int, align_corners: bool) -> np.ndarray:
    """Linear interpolation as a matrix `[size * factor, size]`."""
    number = np.arange(size * factor)
    if align_corners:
        place = number * (size - 1) / (size * factor - 1)
    else:
        place = np.clip((number + 0.5) / factor - 0.5, 0, size - 1)
    distance = np.abs(place[:, None] - np.arange(size))
    return np.maximum(1 - distance, 0).astype(np.float32)


def augment(video: jax.Array, eps: jax.Array, level: jax.Array) -> jax.Array:
    """The upsampled clip, noised to `level` `[B]` with the noise `eps`."""
    return add_noise(video, eps, NOISE_LEVELS.log_snr(jnp.asarray(level)))
