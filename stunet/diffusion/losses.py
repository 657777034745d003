"""Training losses per example: simple (2006.11239 eq. 14), min-SNR weighted, and variational."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from stunet.diffusion.prediction import PerExample, Video, check_kind, expand, make_target
from stunet.diffusion.schedule import Schedule
from stunet.errors import UserError

MIN_SNR_GAMMA = 5.0  # 2303.09556 section 3.4
VARIATIONAL_WEIGHT = 0.001  # lambda of L_hybrid, 2102.09672 section 3.1


def simple_loss(
    kind: str, output: Video, x0: Video, eps: Video, log_snr: PerExample
) -> Float[Array, " batch"]:
    """Returns the mean squared error [B] of a network's output to the target of `kind`."""
    return _mean_per_example(jnp.square(output - make_target(kind, x0, eps, log_snr)))


def min_snr_weight(
    kind: str, log_snr: Float[ArrayLike, "*shape"], gamma: float = MIN_SNR_GAMMA
) -> Float[Array, "*shape"]:
    """Returns the weight of the simple loss that makes the weight of the x0 error min(SNR, gamma).

    For eps this is min(SNR, gamma) / SNR, for x0 min(SNR, gamma), for v min(SNR, gamma) / (SNR + 1)
    (2303.09556 section 3.4). All three are computed without overflow at either end.

    Args:
      kind: What the network predicts.
      log_snr: Noise levels of any shape.
      gamma: Bound on the weight.

    Raises:
      UserError: The kind is unknown.
    """
    check_kind(kind)
    log_snr = jnp.asarray(log_snr)
    if kind == "eps":
        return jnp.minimum(1.0, gamma * jnp.exp(-log_snr))
    if kind == "x0":
        return jnp.minimum(jnp.exp(log_snr), gamma)
    return jnp.minimum(1 / (1 + jnp.exp(-log_snr)), gamma / (1 + jnp.exp(log_snr)))


def variational_loss(
    schedule: Schedule,
    t: Real[ArrayLike, " batch"],
    x0: Video,
    x_t: Video,
    x0_prediction: Video,
    variance: Video,
) -> Float[Array, " batch"]:
    """Returns the weighted variational term [B], which trains learned-range variance channels.

    The term is KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) for t > 0, and the negative
    log-likelihood of the decoder over 256 levels for t = 0, in bits per dimension. It is multiplied
    by num_timesteps, because one t stands for the sum over all, and by `VARIATIONAL_WEIGHT`
    (2102.09672 eq. 16). The mean is detached: only `variance` receives a gradient.

    Args:
      schedule: Discrete schedule, whose full chain of betas is used.
      t: [B] integer timesteps of any dtype.
      x0: Clean video in [-1, 1].
      x_t: Noisy video.
      x0_prediction: The network's estimate of x0.
      variance: Raw learned-range channels.

    Raises:
      UserError: The schedule is continuous, so there is no chain from t to t - 1.
    """
    if schedule.kind != "cosine":
        raise UserError(
            f"schedule.kind: {schedule.kind!r} has no variational term (variance "
            "'learned_range'), expected 'cosine' or a fixed variance"
        )
    tables = _posterior_tables(schedule)
    index = jnp.round(jnp.asarray(t)).astype(jnp.int32)
    c_x0, c_xt, log_small, log_large = (
        expand(jnp.asarray(table, x0.dtype)[index], x0.ndim) for table in tables
    )
    fraction = (variance + 1) / 2
    log_var = fraction * log_large + (1 - fraction) * log_small
    gap = c_x0 * (x0 - jax.lax.stop_gradient(x0_prediction))
    kl = 0.5 * (log_var - log_small - 1 + jnp.exp(log_small - log_var) + gap**2 * jnp.exp(-log_var))
    mean = jax.lax.stop_gradient(c_x0 * x0_prediction + c_xt * x_t)
    nll = -discretised_log_likelihood(x0, mean, log_var)
    nats = _mean_per_example(jnp.where(expand(index, x0.ndim) == 0, nll, kl))
    return VARIATIONAL_WEIGHT * schedule.num_timesteps / math.log(2) * nats


def discretised_log_likelihood(
    x0: Float[Array, "*shape"], mean: Float[ArrayLike, "..."], log_var: Float[ArrayLike, "..."]
) -> Float[Array, "*shape"]:
    """Returns the elementwise log-probability (nats) of 8-bit values under a discretised normal.

    Each of the 256 levels covers the interval +-1/255 around it; the outermost two also cover the
    tails (2006.11239 eq. 13).

    Args:
      x0: Values in [-1, 1].
      mean: Mean of the normal distribution, broadcast to x0.
      log_var: Log-variance of the normal distribution, broadcast to x0.
    """
    scale = jnp.exp(0.5 * log_var)
    upper = jnp.where(x0 > 0.999, 1.0, norm.cdf((x0 - mean + 1 / 255) / scale))
    lower = jnp.where(x0 < -0.999, 0.0, norm.cdf((x0 - mean - 1 / 255) / scale))
    return jnp.log(jnp.maximum(upper - lower, 1e-12))


def _posterior_tables(schedule: Schedule) -> tuple[Float[np.ndarray, " timesteps"], ...]:
    """Returns tables over t: coefficients of x0 and x_t in the mean of q, log beta~, log beta."""
    betas, alpha_bars = schedule.betas, schedule.alpha_bars
    previous = np.append(1.0, alpha_bars[:-1])
    c_x0 = np.sqrt(previous) * betas / (1 - alpha_bars)
    c_xt = np.sqrt(1 - betas) * (1 - previous) / (1 - alpha_bars)
    small = betas * (1 - previous) / (1 - alpha_bars)
    small[0] = small[1]  # beta~ is 0 at t = 0; 2102.09672 uses the next value
    return c_x0, c_xt, np.log(small), np.log(betas)


def _mean_per_example(a: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    return jnp.mean(a, axis=tuple(range(1, a.ndim)))
