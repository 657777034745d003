"""Prediction targets, and conversions between epsilon, x0 and v.

Throughout, x_t = alpha x0 + sigma eps (2006.11239 eq. 4) with alpha^2 = sigmoid(log_snr) and
sigma^2 = sigmoid(-log_snr), and v = alpha eps - sigma x0 (2202.00512 section 4).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from stunet.diffusion.schedule import alpha_sigma
from stunet.errors import UserError

PREDICTION_KINDS = ("eps", "x0", "v")

# Conversions that divide by alpha (eps -> x0) or sigma (x0 -> eps) clip the log-SNR to +-20. The
# quotient then grows by at most e^10 = 22,026 and stays finite in bfloat16. IF's levels (-19.8 to
# 10.1) are not affected, so results match other implementations. The clip does not make
# eps -> x0 well conditioned at the noisy end (an error of 1e-4 in eps is 2 in x0 at t = 999):
# thresholding bounds x0, and few-step solvers start at a lower noise level (`time_grid.py`).
MAX_ABS_LOG_SNR = 20.0

Video = Float[Array, "batch frames height width channels"]
# One value for the batch or one per example.
PerExample = Float[ArrayLike, ""] | Float[ArrayLike, " batch"]


class Prediction(NamedTuple):
    """Output of a denoiser at x_t. All arrays have the shape of x_t.

    Attributes:
      x0: Clean video, [B, T, H, W, C].
      eps: Noise, consistent with x0: x_t = alpha x0 + sigma eps.
      variance: Raw learned-range channels: -1 stands for the smallest, 1 for the largest
        log-variance. None if the variance is fixed.
    """

    x0: Video
    eps: Video
    variance: Video | None = None


# (x_t [B, T, H, W, C], IF timestep: scalar or [B], may be fractional) -> Prediction
Denoiser = Callable[[Video, PerExample], Prediction]


def expand(a: Shaped[ArrayLike, "..."], ndim: int) -> Shaped[Array, "..."]:
    """Appends axes of length 1 to `a` (a scalar or [B]) until it has `ndim` axes."""
    a = jnp.asarray(a)
    return a.reshape(a.shape + (1,) * (ndim - a.ndim))


def check_kind(kind: str) -> None:
    """Raises `UserError` unless `kind` is one of `PREDICTION_KINDS`."""
    if kind not in PREDICTION_KINDS:
        raise UserError(
            f"prediction: unknown kind {kind!r}, expected one of {', '.join(PREDICTION_KINDS)}"
        )


def add_noise(x0: Video, eps: Video, log_snr: PerExample) -> Video:
    """Returns x_t = alpha x0 + sigma eps (2006.11239 eq. 4)."""
    alpha, sigma = alpha_sigma(expand(log_snr, x0.ndim))
    return alpha * x0 + sigma * eps


def x0_from_eps(x_t: Video, eps: Video, log_snr: PerExample) -> Video:
    """Returns x0 = (x_t - sigma eps) / alpha, with the log-SNR clipped to `MAX_ABS_LOG_SNR`."""
    alpha, sigma = _clipped_alpha_sigma(log_snr, x_t.ndim)
    return (x_t - sigma * eps) / alpha


def eps_from_x0(x_t: Video, x0: Video, log_snr: PerExample) -> Video:
    """Returns eps = (x_t - alpha x0) / sigma, with the log-SNR clipped to `MAX_ABS_LOG_SNR`."""
    alpha, sigma = _clipped_alpha_sigma(log_snr, x_t.ndim)
    return (x_t - alpha * x0) / sigma


def make_target(kind: str, x0: Video, eps: Video, log_snr: PerExample) -> Video:
    """Returns the training target of a network that predicts `kind`.

    Args:
      kind: One of `PREDICTION_KINDS`.
      x0: Clean video.
      eps: Noise.
      log_snr: Noise level.

    Raises:
      UserError: The kind is unknown.
    """
    check_kind(kind)
    alpha, sigma = alpha_sigma(expand(log_snr, x0.ndim))
    return {"eps": lambda: eps, "x0": lambda: x0, "v": lambda: alpha * eps - sigma * x0}[kind]()


def split_output(
    network_output: Float[Array, "batch frames height width outputs"],
    channels: int,
    learned_variance: bool,
) -> tuple[Video, Video | None]:
    """Splits the output of a network into mean [..., C] and variance [..., C].

    Half-precision output is converted to float32, in which sampling is computed.

    Args:
      network_output: [..., C or 2C].
      channels: Number of video channels C.
      learned_variance: Whether the variance channels were trained. If not, the variance is None
        and any variance channels are dropped (networks keep the 2C channels of IF either way).

    Raises:
      UserError: The number of output channels does not match.
    """
    num_outputs = network_output.shape[-1]
    allowed = (2 * channels,) if learned_variance else (channels, 2 * channels)
    if num_outputs not in allowed:
        raise UserError(
            f"network output: {num_outputs} channels for {channels}-channel video with "
            f"{'learned' if learned_variance else 'fixed'} variance, expected "
            f"{' or '.join(map(str, allowed))}"
        )
    network_output = network_output.astype(jnp.promote_types(network_output.dtype, jnp.float32))
    mean = network_output[..., :channels]
    return mean, network_output[..., channels:] if learned_variance else None


def to_prediction(
    kind: str,
    network_output: Float[Array, "batch frames height width outputs"],
    x_t: Video,
    log_snr: PerExample,
    learned_variance: bool,
) -> Prediction:
    """Converts the output of a network to a `Prediction`.

    Args:
      kind: What the network predicts, one of `PREDICTION_KINDS`.
      network_output: [..., C or 2C], see `split_output`.
      x_t: Noisy video [..., C], the input of the network.
      log_snr: Noise level of x_t.
      learned_variance: Whether the variance channels were trained.

    Raises:
      UserError: The kind is unknown, or the number of channels does not match.
    """
    check_kind(kind)
    output, variance = split_output(network_output, x_t.shape[-1], learned_variance)
    if kind == "eps":
        return Prediction(x0_from_eps(x_t, output, log_snr), output, variance)
    if kind == "x0":
        return Prediction(output, eps_from_x0(x_t, output, log_snr), variance)
    alpha, sigma = alpha_sigma(expand(log_snr, x_t.ndim))
    return Prediction(alpha * x_t - sigma * output, sigma * x_t + alpha * output, variance)


def _clipped_alpha_sigma(
    log_snr: PerExample, ndim: int
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    log_snr = jnp.clip(expand(log_snr, ndim), -MAX_ABS_LOG_SNR, MAX_ABS_LOG_SNR)
    return alpha_sigma(log_snr)
