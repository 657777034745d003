"""Thresholding of the predicted x0, as a function from a denoiser to a denoiser.

Thresholding is not linear, so it follows everything that averages predictions: guide -> average
over windows -> threshold once -> step.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from stunet.diffusion.prediction import Denoiser, PerExample, Prediction, Video, eps_from_x0
from stunet.diffusion.schedule import Schedule
from stunet.errors import UserError

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

    quantile: float = 0.95
    max_value: float = 1.5
    over: str = "clip"

    def __post_init__(self):
        if not 0 <= self.quantile <= 1:
            raise UserError(f"threshold.quantile: invalid value {self.quantile}, expected 0 to 1")
        if not self.max_value >= 1:
            raise UserError(
                f"threshold.max_value: invalid value {self.max_value}, expected at least 1"
            )
        if self.over not in SCOPES:
            raise UserError(
                f"threshold.over: unknown value {self.over!r}, expected one of {', '.join(SCOPES)}"
            )

    def __call__(self, x0: Video) -> Video:
        """Returns x0 with all values within [-1, 1]."""
        if self.max_value == 1:
            return jnp.clip(x0, -1.0, 1.0)
        s = jnp.quantile(jnp.abs(x0), self.quantile, axis=SCOPES[self.over], keepdims=True)
        s = jnp.clip(s, 1.0, self.max_value)
        return jnp.clip(x0, -s, s) / s


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
