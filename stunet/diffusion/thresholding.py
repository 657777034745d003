"""Thresholding of the predicted x0, as a function from a denoiser to a denoiser.

Thresholding is not linear, so it follows everything that averages predictions: guide -> average
over windows -> threshold once -> step.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from stunet.diffusion.prediction import Denoiser, PerExample, Prediction, Video, eps_from_x0
from stunet.diffusion.schedule import Schedule
from stunet.errors import UserError
from stunet.schema import Range, check_fields

# Axes of [B, T, H, W, C] that share a bound.
SCOPES = {"frame": (2, 3, 4), "clip": (1, 2, 3, 4)}


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Dynamic thresholding of Imagen (2205.11487 section 2.3), capped as in DeepFloyd IF.

    x0 becomes clip(x0, -s, s) / s with s = clip(quantile of |x0|, 1, max_value).

    Attributes:
      quantile: Quantile of |x0|, within 0 to 1. IF uses 0.95.
      max_value: Cap on s, at least 1. 1 clips x0 to [-1, 1]. IF uses 1.5 in stage I and 1.0 in
        stage II.
      over: `clip` computes one s per video. `frame` computes one s per frame: frames stay
        independent (an inflated network at initialisation equals the T2I network), but the result
        flickers.

    Raises:
      UserError: A value is out of range or unknown.
    """

    quantile: Annotated[float, Range(0, 1)] = 0.95
    max_value: Annotated[float, Range(1)] = 1.5
    over: str = "clip"

    def __post_init__(self):
        check_fields(self, "threshold.")
        if self.over not in SCOPES:
            raise UserError(
                f"threshold.over: unknown value {self.over!r}, expected one of {', '.join(SCOPES)}"
            )

    def __call__(self, x0: Video) -> Video:
        """Returns x0 with all values within [-1, 1]."""
        if self.max_value == 1:
            return jnp.clip(x0, -1.0, 1.0)
        s = magnitude_quantile(x0, self.quantile, SCOPES[self.over])
        s = jnp.clip(s, 1.0, self.max_value)
        return jnp.clip(x0, -s, s) / s


def magnitude_quantile(x: jax.Array, quantile: float, axes: tuple[int, ...]) -> jax.Array:
    """Returns a quantile of |x|; `jnp.quantile` with linear interpolation, without sorting.

    Finds the order statistic by bisection on the bits of a float32, which are ordered like
    non-negative numbers: 31 counts, each a reduction. A clip of 80x1024x1024 has 250 million
    values.

    Args:
      x: Array of any shape.
      quantile: Within 0 to 1.
      axes: Axes to reduce, which are kept with size 1.
    """
    magnitude = jnp.abs(x).astype(jnp.float32)
    count = math.prod(x.shape[axis] for axis in axes)
    # In float32, as `jnp.quantile` computes it.
    position = np.float32(quantile) * np.float32(count - 1)
    low, high = int(np.floor(position)), int(np.ceil(position))

    def number(selected: jax.Array) -> jax.Array:
        return jnp.sum(selected, axes, dtype=jnp.int32, keepdims=True)

    def as_float(bits: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    def refine(index: jax.Array, bits: jax.Array) -> jax.Array:
        candidate = bits | (1 << (30 - index))
        # Bits above those of infinity are NaN, which no magnitude reaches.
        num_below = number(~(magnitude >= as_float(candidate)))
        return jnp.where(num_below <= low, candidate, bits)

    zeros = jnp.zeros([1 if axis in axes else n for axis, n in enumerate(x.shape)], jnp.int32)
    first = as_float(jax.lax.fori_loop(0, 31, refine, zeros))
    above = jnp.min(jnp.where(magnitude > first, magnitude, jnp.inf), axes, keepdims=True)
    second = jnp.where(number(magnitude <= first) > high, first, above)
    weight = position - np.floor(position)
    return first * (1 - weight) + second * weight


def thresholded_denoiser(
    denoiser: Denoiser, schedule: Schedule, threshold: Callable[[Video], Video]
) -> Denoiser:
    """Returns the denoiser with its x0 thresholded and its eps recomputed from x0.

    Args:
      denoiser: Denoiser of videos.
      schedule: Maps timesteps to log-SNR.
      threshold: A `Threshold`, or another function from x0 to x0.
    """

    def apply(x_t: Video, t: PerExample) -> Prediction:
        prediction = denoiser(x_t, t)
        x0 = threshold(prediction.x0)
        eps = eps_from_x0(x_t, x0, schedule.log_snr(t))
        return Prediction(x0, eps, prediction.variance)

    return apply
