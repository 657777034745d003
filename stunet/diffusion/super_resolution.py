"""Conditioning of a super-resolution model on the low-resolution clip.

The clip is upsampled bilinearly, noised to an augmentation level that is an input of the network,
and concatenated with the noisy video along the channels (cascaded diffusion, 2106.15282 section
3.3; Imagen, 2205.11487 section 2.4; DeepFloyd IF's stage II). The
augmentation makes the network robust to artefacts of the clip, because those of a base model differ
from those of a downsampled video.
"""

from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from stunet.diffusion.prediction import Video, add_noise
from stunet.diffusion.schedule import Schedule
from stunet.errors import UserError
from stunet.schema import Range, check_fields

# Schedule of the augmentation levels, independent of the model's own schedule (as in IF).
NOISE_LEVELS = Schedule(kind="cosine")
MAX_NOISE_LEVEL = 999.0
NoiseLevel = Annotated[float, Range(0, MAX_NOISE_LEVEL)]


@dataclass(frozen=True)
class SuperResolution:
    """Settings of a super-resolution model.

    Attributes:
      factor: Ratio of output height and width to input height and width.
      max_noise_level: Augmentation levels are drawn uniformly from 0 to this in training, on IF's
        timestep scale 0..999.
      noise_level: Augmentation level of sampling. IF uses 250.
      residual_scale: If positive, the model diffuses (frames - upsampled clip) / residual_scale:
        colours and coarse structure come from the clip and the network adds detail only. 0
        diffuses frames, as in IF.
      align_corners: Whether resizing keeps the centres of the outer pixels in place instead of
        their edges. IF's stage II was trained with True. Not usable with training on crops, which
        would be resized differently from whole frames.

    Raises:
      UserError: A field has the wrong type or is out of range, or noise levels are out of order.
    """

    factor: Annotated[int, Range(2, 64)] = 4
    max_noise_level: NoiseLevel = MAX_NOISE_LEVEL
    noise_level: NoiseLevel = 250.0
    residual_scale: Annotated[float, Range(0)] = 0.0
    align_corners: bool = False

    def __post_init__(self):
        check_fields(self, "super_resolution.")
        if self.noise_level > self.max_noise_level:
            raise UserError(
                f"super_resolution.noise_level, max_noise_level: invalid values "
                f"{self.noise_level}, {self.max_noise_level}, expected 0 <= noise_level <= "
                f"max_noise_level <= {MAX_NOISE_LEVEL}"
            )

    def from_frames(self, frames: Video, upsampled: Video) -> Video:
        """Returns the variable to diffuse for `frames`, given the upsampled clip."""
        return (frames - upsampled) / self.residual_scale if self.residual_scale else frames

    def to_frames(self, diffused: Video, upsampled: Video) -> Video:
        """Inverse of `from_frames`."""
        return upsampled + self.residual_scale * diffused if self.residual_scale else diffused


def downsample(
    video: Float[ArrayLike, "batch frames height width channels"], factor: int
) -> Float[ArrayLike, "batch frames small_height small_width channels"]:
    """Averages squares of `factor` x `factor` pixels.

    Cropping on multiples of `factor` commutes with downsampling, so a model can be trained on
    crops.

    Args:
      video: [B, T, H, W, C] with H and W multiples of `factor`. A NumPy array gives a NumPy array.
      factor: Side of the squares in pixels.
    """
    b, t, h, w, c = video.shape
    squares = video.reshape(b, t, h // factor, factor, w // factor, factor, c)
    return squares.mean((3, 5))


def upsample(
    video: Float[ArrayLike, "batch frames height width channels"],
    factor: int,
    align_corners: bool = False,
) -> Float[Array, "batch frames large_height large_width channels"]:
    """Enlarges height and width by `factor` with bilinear interpolation.

    Args:
      video: [B, T, H, W, C].
      factor: Scale of height and width.
      align_corners: See `SuperResolution`.
    """
    rows, columns = (_interpolation(size, factor, align_corners) for size in video.shape[2:4])
    return jnp.einsum("btyxc,Yy,Xx->btYXc", video, rows, columns, precision="highest")


def _interpolation(
    size: int, factor: int, align_corners: bool
) -> Float[np.ndarray, "outputs inputs"]:
    """Returns the matrix [size * factor, size] of linear interpolation."""
    output = np.arange(size * factor)
    if align_corners:
        position = output * (size - 1) / (size * factor - 1)
    else:
        position = np.clip((output + 0.5) / factor - 0.5, 0, size - 1)
    distance = np.abs(position[:, None] - np.arange(size))
    return np.maximum(1 - distance, 0).astype(np.float32)


def augment(video: Video, eps: Video, level: Float[ArrayLike, " batch"]) -> Video:
    """Noises the upsampled clip with `eps` to the augmentation levels `level` [B]."""
    return add_noise(video, eps, NOISE_LEVELS.log_snr(jnp.asarray(level)))
