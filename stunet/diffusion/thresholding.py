"""Thresholding of the predicted x0, as functions from a denoiser to a denoiser.

The order of composition is guide -> (average windows) -> threshold once -> step: thresholding is
not linear, so it comes after everything that mixes predictions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from stunet.diffusion.prediction import Denoiser, Prediction, eps_from_x0
from stunet.diffusion.schedule import Schedule
from stunet.errors import UserError

SCOPES = {"frame": (2, 3, 4), "clip": (1, 2, 3, 4)}


def dynamic_clip(x0: jax.Array, quantile: float, max_value: float, over: str) -> jax.Array:
    """Imagen's dynamic thresholding (2205.11487 section 2.3), capped as DeepFloyd IF does.

    s = clip(`quantile` of |x0|, 1, max_value); returns clip(x0, -s, s) / s. At `max_value` 1
    that is the static clip.

    Args:
      x0: [B, T, H, W, C].
      quantile: within 0..1; IF uses 0.95.
      max_value: cap on s; IF uses 1.5 in stage I and 1.0 in stage II.
      over: `frame`, an s for each frame, which keeps frames independent of each other (and an
        inflated network at its initialisation equal to the T2I); or `clip`, an s per video.

    Raises:
      UserError: `over` is neither.
    """
    if over not in SCOPES:
        raise UserError(f"thresholding over {over!r}; it must be one of {', '.join(SCOPES)}")
    s = jnp.quantile(jnp.abs(x0), quantile, axis=SCOPES[over], keepdims=True)
    s = jnp.clip(s, 1.0, max_value)
    return jnp.clip(x0, -s, s) / s


def static_threshold(denoiser: Denoiser, schedule: Schedule) -> Denoiser:
    """The same denoiser with x0 clipped to [-1, 1] and eps made to agree with it."""
    return _with_x0(denoiser, schedule, lambda x0: jnp.clip(x0, -1.0, 1.0))


def dynamic_threshold(
    denoiser: Denoiser,
    schedule: Schedule,
    *,
    quantile: float = 0.95,
    max_value: float = 1.5,
    over: str = "frame",
) -> Denoiser:
    """The same denoiser with x0 passed through `dynamic_clip` and eps made to agree with it."""
    return _with_x0(denoiser, schedule, lambda x0: dynamic_clip(x0, quantile, max_value, over))


def _with_x0(
    denoiser: Denoiser, schedule: Schedule, change: Callable[[jax.Array], jax.Array]
) -> Denoiser:
    def changed(x_t: jax.Array, t: jax.Array) -> Prediction:
        prediction = denoiser(x_t, t)
        x0 = change(prediction.x0)
        eps = eps_from_x0(x_t, x0, schedule.log_snr(t))
        return Prediction(x0, eps, prediction.variance)

    return changed
