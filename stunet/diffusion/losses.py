"""Training losses per example: simple, min-SNR weighted, and the variational term."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from stunet.diffusion.prediction import check_kind, expand, make_target
from stunet.diffusion.schedule import Schedule
from stunet.errors import UserError

MIN_SNR_GAMMA = 5.0  # 2303.09556 section 3.4
VARIATIONAL_WEIGHT = 0.001  # lambda of L_hybrid, 2102.09672 section 3.1


def simple_loss(
    kind: str, output: jax.Array, x0: jax.Array, eps: jax.Array, log_snr: jax.Array
) -> jax.Array:
    """Mean squared error [B] of `output` [B, ..., C] to the target of `kind`."""
    return _mean_per_example(jnp.square(output - make_target(kind, x0, eps, log_snr)))


def min_snr_weight(kind: str, log_snr: jax.Array, gamma: float = MIN_SNR_GAMMA) -> jax.Array:
    """Weight on the simple loss of `kind` that makes the x0 error's weight min(SNR, gamma).

    eps: min(SNR, gamma) / SNR; x0: min(SNR, gamma); v: min(SNR, gamma) / (SNR + 1)
    (2303.09556 section 3.4), each written so that no end overflows. Shape of `log_snr`.
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
    t: jax.Array,
    x0: jax.Array,
    x_t: jax.Array,
    x0_prediction: jax.Array,
    variance: jax.Array,
) -> jax.Array:
    """The weighted variational term [B] that trains learned-range variance channels.

    Bits per dimension of KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) for t > 0 and of the
    decoder over 256 grey levels at t = 0, times num_timesteps (one t stands for the sum over all)
    times 0.001 (2102.09672 eq. 16). The mean is detached: only `variance` gets a gradient.

    Args:
      schedule: the discrete cosine schedule; its full chain of betas is used.
      t: [B] integer timesteps (any dtype).
      x0, x_t: [B, ..., C] clean and noisy video in [-1, 1].
      x0_prediction: [B, ..., C] the network's estimate of x0.
      variance: [B, ..., C] raw learned-range channels.

    Raises:
      UserError: the schedule is continuous, which has no chain of t and t - 1.
    """
    if schedule.kind != "cosine":
        raise UserError(
            f"the variational term needs schedule kind 'cosine', not {schedule.kind!r}; "
            "train with fixed variance instead"
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


def discretised_log_likelihood(x0: jax.Array, mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """Log-probability (nats, elementwise) of 8-bit `x0` in [-1, 1] under a discretised normal.

    Each of the 256 levels owns the interval +-1/255 around it, the outermost two the tails
    (2006.11239 section 3.3).
    """
    scale = jnp.exp(0.5 * log_var)
    upper = jnp.where(x0 > 0.999, 1.0, norm.cdf((x0 - mean + 1 / 255) / scale))
    lower = jnp.where(x0 < -0.999, 0.0, norm.cdf((x0 - mean - 1 / 255) / scale))
    return jnp.log(jnp.maximum(upper - lower, 1e-12))


def _posterior_tables(schedule: Schedule) -> tuple[np.ndarray, ...]:
    """Coefficients of x0 and x_t in q's mean, and the log-variances beta~ and beta, by t."""
    betas, alpha_bars = schedule.betas, schedule.alpha_bars
    previous = np.append(1.0, alpha_bars[:-1])
    c_x0 = np.sqrt(previous) * betas / (1 - alpha_bars)
    c_xt = np.sqrt(1 - betas) * (1 - previous) / (1 - alpha_bars)
    small = betas * (1 - previous) / (1 - alpha_bars)
    small[0] = small[1]  # beta~ is 0 at t = 0; as 2102.09672 does, take its neighbour's
    return c_x0, c_xt, np.log(small), np.log(betas)


def _mean_per_example(a: jax.Array) -> jax.Array:
    return jnp.mean(a, axis=tuple(range(1, a.ndim)))
