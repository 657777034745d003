"""Noise schedules: how noisy an example is at a timestep, in log-SNR.

Two ideas are kept apart. The *clock* is DeepFloyd IF's timestep 0..999, which every network is
fed: `Schedule.log_snr(t)` and its inverse `Schedule.timestep(log_snr)` never change. The *course*
is which noise levels training draws and a sampler visits, `Schedule.course(nominal)`: for
`cosine` the clock's own ticks, for `continuous_cosine` a shifted continuous curve whose levels
are then told to the network as IF's timestep of equal noise.
"""

import dataclasses
import functools
import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stunet.errors import UserError

KINDS = ("cosine", "continuous_cosine")
OFFSET = 0.008  # Nichol & Dhariwal (2102.09672) eq. 17: keeps the first betas away from 0
MAX_BETA = 0.999  # as above: the last beta would be 1, which destroys x_t altogether


def cosine_betas(num_timesteps: int) -> np.ndarray:
    """Betas [num_timesteps] of IF's discrete cosine schedule, float64 (2102.09672 section 3.2)."""
    t = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    alpha_bar = np.cos((t + OFFSET) / (1 + OFFSET) * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], MAX_BETA)


def respace_betas(alpha_bars: np.ndarray) -> np.ndarray:
    """Betas [N] of a chain that visits only the levels `alpha_bars` [N], noisiest first.

    The last level is followed by clean data (alpha_bar 1). float64.
    """
    alpha_bars = np.asarray(alpha_bars, np.float64)
    return 1 - alpha_bars / np.append(alpha_bars[1:], 1.0)


def alpha_sigma(log_snr: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """Signal and noise scale (alpha, sigma) of a variance-preserving process at `log_snr`.

    alpha^2 = sigmoid(log_snr), sigma^2 = sigmoid(-log_snr). Each is computed without
    subtracting from one, so both keep full relative precision at both ends.
    """
    log_snr = jnp.asarray(log_snr)
    return 1 / jnp.sqrt(1 + jnp.exp(-log_snr)), 1 / jnp.sqrt(1 + jnp.exp(log_snr))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A cosine noise schedule; `dataclasses.asdict` gives its flat JSON form.

    Attributes:
      kind: `cosine`, IF's discrete schedule; or `continuous_cosine`, the curve
        log_snr(u) = log_snr_shift - 2 ln tan(a + b u), u in [0, 1] (simple diffusion, 2301.11093
        section 3.1), where a and b make it run from log_snr_max to log_snr_min.
      num_timesteps: ticks of the network's clock; IF's is 1000.
      log_snr_shift: added to the continuous curve; negative is noisier, e.g. -2 ln(size / 64).
      log_snr_min, log_snr_max: the continuous curve's ends. The discrete schedule has its own
        (-19.8 and 10.1 for 1000 timesteps) and ignores them.

    Raises:
      UserError: an unknown kind, a shift of the discrete schedule, or an empty or unreachable
        range of log-SNR.
    """

    kind: str = "cosine"
    num_timesteps: int = 1000
    log_snr_shift: float = 0.0
    log_snr_min: float = -12.0
    log_snr_max: float = 10.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"schedule kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if self.num_timesteps < 2:
            raise UserError(f"schedule num_timesteps is {self.num_timesteps}; it must be >= 2")
        if self.kind == "cosine" and self.log_snr_shift != 0:
            raise UserError(
                f"schedule log_snr_shift is {self.log_snr_shift} but kind 'cosine' cannot be "
                "shifted; use kind 'continuous_cosine'"
            )
        _, lowest, highest = self._ends
        if not (self.kind == "cosine" or lowest <= self.log_snr_min < self.log_snr_max <= highest):
            raise UserError(
                f"schedule log_snr_min, log_snr_max are {self.log_snr_min}, {self.log_snr_max}; "
                f"they must ascend within the clock's {lowest:.2f} to {highest:.2f}"
            )

    @functools.cached_property
    def betas(self) -> np.ndarray:
        """The clock's betas [num_timesteps], float64."""
        return cosine_betas(self.num_timesteps)

    @functools.cached_property
    def alpha_bars(self) -> np.ndarray:
        """The clock's cumulative products of 1 - beta [num_timesteps], float64."""
        return np.cumprod(1 - self.betas)

    @functools.cached_property
    def _ends(self) -> tuple[float, float, float]:
        """log-SNR at the last timestep but one, the last and the first."""
        a = self.alpha_bars[[-2, -1, 0]]
        return tuple((np.log(a) - np.log1p(-a)).tolist())

    def log_snr(self, t: Any, xp: ModuleType = jnp) -> Any:
        """log-SNR at IF timestep `t` (any shape, fractional allowed, clipped to the clock).

        Equals the discrete table at integers. Below the last tick this is the closed form of
        ln(alpha_bar / (1 - alpha_bar)), with 1 - alpha_bar as a product of sines so that nothing
        cancels in fp32; on to the last tick, where beta is capped, it is linear in `t`.
        Traceable; `xp=numpy` computes in float64.
        """
        t = _floating(t, xp)
        last = self.num_timesteps - 1
        angle = math.pi / 2 / (1 + OFFSET) / self.num_timesteps
        before = xp.clip(t, 0, last - 1)
        signal = xp.sin(angle * (last - before))
        noise = xp.sin(angle * (before + 1)) * xp.sin(
            angle * (before + 1 + 2 * OFFSET * self.num_timesteps)
        )
        last_but_one, lowest, _ = self._ends
        beyond = xp.clip(t - (last - 1), 0, 1)
        return 2 * xp.log(signal) - xp.log(noise) + beyond * (lowest - last_but_one)

    def timestep(self, log_snr: Any, xp: ModuleType = jnp) -> Any:
        """IF timestep (fractional) whose noise level is `log_snr`; the inverse of `log_snr`.

        Clipped to the clock's 0..num_timesteps - 1. Traceable; `xp=numpy` computes in float64.
        """
        log_snr = _floating(log_snr, xp)
        last_but_one, lowest, _ = self._ends
        level = xp.maximum(log_snr, last_but_one)
        start = math.pi / 2 * OFFSET / (1 + OFFSET)
        # cos(b)^2 = cos(start)^2 alpha_bar, and both legs are sums of positive terms
        alpha_bar, rest = 1 / (1 + xp.exp(-level)), 1 / (1 + xp.exp(level))
        cosine = math.cos(start) * xp.sqrt(alpha_bar)
        sine = xp.sqrt(math.sin(start) ** 2 * alpha_bar + rest)
        angle = math.pi / 2 / (1 + OFFSET) / self.num_timesteps
        before = (xp.arctan2(sine, cosine) - start) / angle - 1
        beyond = xp.clip((log_snr - last_but_one) / (lowest - last_but_one), 0, 1)
        return xp.clip(before, 0, self.num_timesteps - 2) + beyond

    def course(self, nominal: Any, xp: ModuleType = jnp) -> tuple[Any, Any]:
        """(network timestep, log_snr) at nominal time 0..num_timesteps - 1 (fractional allowed).

        For `cosine` the nominal time is the timestep. For `continuous_cosine` it is the curve's
        u in [0, 1] times num_timesteps - 1. Traceable; `xp=numpy` computes in float64.
        """
        nominal = _floating(nominal, xp)
        if self.kind == "cosine":
            return nominal, self.log_snr(nominal, xp)
        # tan(angle) from angle and its complement, which keeps fp32's precision at both ends
        first = math.atan(math.exp((self.log_snr_shift - self.log_snr_max) / 2))
        last = math.atan(math.exp((self.log_snr_min - self.log_snr_shift) / 2))
        per_tick = (math.pi / 2 - first - last) / (self.num_timesteps - 1)
        left = self.num_timesteps - 1 - nominal
        tangent = xp.sin(first + nominal * per_tick) / xp.sin(last + left * per_tick)
        log_snr = self.log_snr_shift - 2 * xp.log(tangent)
        return self.timestep(log_snr, xp), log_snr


def sample_training_time(schedule: Schedule, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maps uniform `u` in [0, 1) (any shape) to (network timestep, log_snr).

    The discrete schedule draws the integers 0..num_timesteps - 1: IF was trained on no other,
    samplers visit no other, and the variational term is defined at no other. The continuous one
    has no ticks to keep and is drawn continuously.
    """
    u = _floating(u, jnp)
    if schedule.kind == "cosine":
        last = schedule.num_timesteps - 1
        return schedule.course(jnp.minimum(jnp.floor(u * schedule.num_timesteps), last))
    return schedule.course(u * (schedule.num_timesteps - 1))


def _floating(x: Any, xp: ModuleType) -> Any:
    x = xp.asarray(x)
    return x.astype(xp.promote_types(x.dtype, np.float64 if xp is np else np.float32))
