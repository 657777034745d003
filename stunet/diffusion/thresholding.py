"""Thresholding of the predicted x0, as a function from a denoiser to a denoiser.

The order of composition is guide -> (average windows) -> threshold once -> step: thresholding is
not linear, so it comes after everything that mixes predictions.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from stunet.diffusion.prediction import Denoiser, Prediction, eps_from_x0
from stunet.diffusion.schedule import Schedule
from stunet.errors import UserError

SCOPES = {"frame": (2, 3, 4), "clip": (1, 2, 3, 4)}


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Imagen's dynamic thresholding (2205.11487 section 2.3), capped as DeepFloyd IF does.

    x0 becomes clip(x0, -s, s) / s, where s = clip(`quantile` of |x0|, 1, max_value).

    Attributes:
      quantile: within 0..1; IF's is 0.95.
      max_value: cap on s, at least 1; IF's is 1.5 in stage I and 1.0 in stage II. 1 is the static
        clip to [-1, 1].
      over: `clip`, an s for each video; or `frame`, one for each frame, which keeps frames
        independent of each other (and an inflated network at its initialisation equal to the
        T2I), but flickers.

    Raises:
      UserError: a value is none of these.
    """

    quantile: float = 0.95
    max_value: float = 1.5
    over: str = "clip"

    def __post_init__(self):
        if not 0 <= self.quantile <= 1:
            raise UserError(f"threshold quantile is {self.quantile}; it must be within 0..1")
        if not self.max_value >= 1:
            raise UserError(f"threshold max_value is {self.max_value}; it must be at least 1")
        if self.over not in SCOPES:
            raise UserError(f"threshold over {self.over!r}; it must be one of {', '.join(SCOPES)}")

    def __call__(self, x0: jax.Array) -> jax.Array:
        """Bounds x0 [B, T, H, W, C]."""
        if self.max_value == 1:
            return jnp.clip(x0, -1.0, 1.0)
        s = jnp.quantile(jnp.abs(x0), self.quantile, axis=SCOPES[self.over], keepdims=True)
        s = jnp.clip(s, 1.0, self.max_value)
        return jnp.clip(x0, -s, s) / s


def thresholded_denoiser(
    denoiser: Denoiser, schedule: Schedule, threshold: Callable[[jax.Array], jax.Array]
) -> Denoiser:
    """The same denoiser with its x0 bounded (by a `Threshold`) and eps made to agree with it."""

    def bounded(x_t: jax.Array, t: jax.Array) -> Prediction:
        prediction = denoiser(x_t, t)
        x0 = threshold(prediction.x0)
        eps = eps_from_x0(x_t, x0, schedule.log_snr(t))
        return Prediction(x0, eps, prediction.variance)

    return bounded
