"""Prediction targets, and conversions between epsilon, x0 and v.

Throughout x_t = alpha x0 + sigma eps with alpha^2 = sigmoid(log_snr), sigma^2 = sigmoid(-log_snr),
and v = alpha eps - sigma x0 (2202.00512 section 4).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stunet.diffusion.schedule import alpha_sigma
from stunet.errors import UserError

KINDS = ("eps", "x0", "v")

# Where a conversion divides by alpha (eps -> x0) or sigma (x0 -> eps), the log-SNR is held within
# +-20: the quotient grows by at most e^10 = 22,026, so it stays finite in bfloat16 too, while IF's
# own levels (-19.8 to 10.1) are untouched and parity with other implementations holds. It does
# not make epsilon -> x0 well conditioned at the noisy end (an error of 1e-4 in epsilon is 2 in x0
# at t = 999): thresholding bounds the value, and few-step solvers start later (`time_grid.py`).
MAX_ABS_LOG_SNR = 20.0


class Prediction(NamedTuple):
    """What a denoiser says about x_t; every array has the shape of x_t.

    Attributes:
      x0: the clean video, [B, T, H, W, C].
      eps: the noise, with x_t = alpha x0 + sigma eps.
      variance: the raw learned-range channels (-1 the smallest, 1 the largest log-variance),
        or None where the variance is fixed.
    """

    x0: jax.Array
    eps: jax.Array
    variance: jax.Array | None = None


# (x_t [B, ..., C], t: IF timestep, scalar or [B], fractional allowed) -> Prediction
Denoiser = Callable[[jax.Array, jax.Array], Prediction]


def expand(a: jax.Array, ndim: int) -> jax.Array:
    """Appends axes of length 1 to `a` (a scalar or [B]) until it has `ndim` axes."""
    a = jnp.asarray(a)
    return a.reshape(a.shape + (1,) * (ndim - a.ndim))


def check_kind(kind: str) -> None:
    """Raises `UserError` unless `kind` is one of `KINDS`."""
    if kind not in KINDS:
        raise UserError(f"prediction kind is {kind!r}; it must be one of {', '.join(KINDS)}")


def add_noise(x0: jax.Array, eps: jax.Array, log_snr: jax.Array) -> jax.Array:
    """x_t = alpha x0 + sigma eps; `log_snr` is a scalar or [B]."""
    alpha, sigma = alpha_sigma(expand(log_snr, x0.ndim))
    return alpha * x0 + sigma * eps


def x0_from_eps(x_t: jax.Array, eps: jax.Array, log_snr: jax.Array) -> jax.Array:
    """x0 = (x_t - sigma eps) / alpha, log-SNR held above -`MAX_ABS_LOG_SNR`."""
    alpha, sigma = _clipped_alpha_sigma(log_snr, x_t.ndim)
    return (x_t - sigma * eps) / alpha


def eps_from_x0(x_t: jax.Array, x0: jax.Array, log_snr: jax.Array) -> jax.Array:
    """Noise eps = (x_t - alpha x0) / sigma, log-SNR held below `MAX_ABS_LOG_SNR`."""
    alpha, sigma = _clipped_alpha_sigma(log_snr, x_t.ndim)
    return (x_t - alpha * x0) / sigma


def make_target(kind: str, x0: jax.Array, eps: jax.Array, log_snr: jax.Array) -> jax.Array:
    """What a network of prediction `kind` is trained to output, in the shape of `x0`.

    `log_snr` is a scalar or [B]. Raises `UserError` for an unknown kind.
    """
    check_kind(kind)
    alpha, sigma = alpha_sigma(expand(log_snr, x0.ndim))
    return {"eps": lambda: eps, "x0": lambda: x0, "v": lambda: alpha * eps - sigma * x0}[kind]()


def split_output(
    network_output: jax.Array, channels: int, learned_variance: bool
) -> tuple[jax.Array, jax.Array | None]:
    """Splits a network's output [..., C or 2C] into (mean [..., C], variance [..., C] or None).

    Variance channels that nobody trained (`learned_variance` false) are dropped, as a network
    keeps IF's 2C channels either way. Half precision becomes float32, in which all of sampling is
    done. Raises `UserError` where the channels do not fit.
    """
    found = network_output.shape[-1]
    allowed = (2 * channels,) if learned_variance else (channels, 2 * channels)
    if found not in allowed:
        raise UserError(
            f"network output has {found} channels for {channels}-channel video with "
            f"{'learned' if learned_variance else 'fixed'} variance; "
            f"it must have {' or '.join(map(str, allowed))}"
        )
    network_output = network_output.astype(jnp.promote_types(network_output.dtype, jnp.float32))
    mean = network_output[..., :channels]
    return mean, network_output[..., channels:] if learned_variance else None


def to_prediction(
    kind: str,
    network_output: jax.Array,
    x_t: jax.Array,
    log_snr: jax.Array,
    learned_variance: bool,
) -> Prediction:
    """Reads a network's output [..., C or 2C] at x_t [..., C] as a `Prediction`.

    `log_snr` is a scalar or [B]. Raises `UserError` for an unknown kind or misfitting channels.
    """
    check_kind(kind)
    output, variance = split_output(network_output, x_t.shape[-1], learned_variance)
    if kind == "eps":
        return Prediction(x0_from_eps(x_t, output, log_snr), output, variance)
    if kind == "x0":
        return Prediction(output, eps_from_x0(x_t, output, log_snr), variance)
    alpha, sigma = alpha_sigma(expand(log_snr, x_t.ndim))
    return Prediction(alpha * x_t - sigma * output, sigma * x_t + alpha * output, variance)


def _clipped_alpha_sigma(log_snr: jax.Array, ndim: int) -> tuple[jax.Array, jax.Array]:
    log_snr = jnp.clip(expand(log_snr, ndim), -MAX_ABS_LOG_SNR, MAX_ABS_LOG_SNR)
    return alpha_sigma(log_snr)
