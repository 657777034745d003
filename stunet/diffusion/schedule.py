"""Noise schedules: log-SNR as a function of the timestep.

The module separates two mappings:

- The clock maps DeepFloyd IF's timestep 0..999, the network's input, to a noise level:
  `Schedule.log_snr` and its inverse `Schedule.timestep`. It is the same for every schedule.
- `Schedule.level_at` selects the noise levels that training draws and samplers visit. For `cosine`
  these are the integer timesteps of the clock. For `continuous_cosine` they follow a shifted
  continuous curve, and the network receives IF's timestep of equal log-SNR.
"""

import dataclasses
import functools
import math
from types import ModuleType
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from stunet.errors import UserError
from stunet.schema import Range, check_fields

SCHEDULE_KINDS = ("cosine", "continuous_cosine")
# 2102.09672 eq. 17. The offset keeps the first betas away from 0; the cap keeps the last beta below
# 1, which would remove all signal from x_t.
OFFSET = 0.008
MAX_BETA = 0.999
LogSnr = Annotated[float, Range(-100, 100)]


def cosine_betas(num_timesteps: int) -> Float[np.ndarray, " timesteps"]:
    """Returns the betas [num_timesteps] of the discrete cosine schedule (2102.09672 section 3.2).

    IF uses the same schedule. float64.
    """
    t = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    alpha_bar = np.cos((t + OFFSET) / (1 + OFFSET) * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], MAX_BETA)


def respace_betas(alpha_bars: Float[np.ndarray, " levels"]) -> Float[np.ndarray, " levels"]:
    """Returns the betas [N] of a chain that visits only the levels `alpha_bars` [N].

    Levels are ordered from the noisiest; clean data (alpha_bar 1) follows the last. float64.
    """
    alpha_bars = np.asarray(alpha_bars, np.float64)
    return 1 - alpha_bars / np.append(alpha_bars[1:], 1.0)


def alpha_sigma(
    log_snr: Float[ArrayLike, "*shape"],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Returns the scales (alpha, sigma) of signal and noise at `log_snr`.

    The process is variance-preserving: alpha^2 = sigmoid(log_snr), sigma^2 = sigmoid(-log_snr).
    Neither is computed as one minus the other, so both keep full relative precision at both ends.
    """
    log_snr = jnp.asarray(log_snr)
    return 1 / jnp.sqrt(1 + jnp.exp(-log_snr)), 1 / jnp.sqrt(1 + jnp.exp(log_snr))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A cosine noise schedule. `dataclasses.asdict` returns its JSON form.

    Attributes:
      kind: `cosine` is IF's discrete schedule. `continuous_cosine` is the curve
        log_snr(u) = log_snr_shift - 2 ln tan(a + b u) for u in [0, 1] (2301.11093 section 3.1),
        where a and b are chosen so that it runs from log_snr_max to log_snr_min.
      num_timesteps: Number of timesteps of the clock. IF uses 1000.
      log_snr_shift: Shift of the continuous curve. Negative values are noisier, for example
        -2 ln(size / 64).
      log_snr_min: Last log-SNR of the continuous curve.
      log_snr_max: First log-SNR of the continuous curve. The discrete schedule ignores both and
        ranges from 10.1 to -19.8 for 1000 timesteps.

    Raises:
      UserError: A field has the wrong type or is out of range, the kind is unknown, a discrete
        schedule is shifted, or the log-SNR range is empty or exceeds the range of the clock.
    """

    kind: str = "cosine"
    num_timesteps: Annotated[int, Range(2, 100_000)] = 1000
    log_snr_shift: LogSnr = 0.0
    log_snr_min: LogSnr = -12.0
    log_snr_max: LogSnr = 10.0

    def __post_init__(self):
        check_fields(self, "schedule.")
        if self.kind not in SCHEDULE_KINDS:
            raise UserError(
                f"schedule.kind: unknown value {self.kind!r}, expected one of "
                f"{', '.join(SCHEDULE_KINDS)}"
            )
        if self.kind == "cosine" and self.log_snr_shift != 0:
            raise UserError(
                f"schedule.log_snr_shift: kind 'cosine' does not support a shift "
                f"({self.log_snr_shift}), expected 0 or kind 'continuous_cosine'"
            )
        _, lowest, highest = self._log_snr_ends
        if not (self.kind == "cosine" or lowest <= self.log_snr_min < self.log_snr_max <= highest):
            raise UserError(
                f"schedule.log_snr_min, log_snr_max: invalid range {self.log_snr_min} to "
                f"{self.log_snr_max}, expected ascending values within {lowest:.2f} to "
                f"{highest:.2f}"
            )

    @functools.cached_property
    def betas(self) -> Float[np.ndarray, " timesteps"]:
        """Betas [num_timesteps] of the clock, float64."""
        return cosine_betas(self.num_timesteps)

    @functools.cached_property
    def alpha_bars(self) -> Float[np.ndarray, " timesteps"]:
        """Cumulative products of 1 - beta [num_timesteps] of the clock, float64."""
        return np.cumprod(1 - self.betas)

    @functools.cached_property
    def _log_snr_ends(self) -> tuple[float, float, float]:
        """log-SNR at the second-to-last, the last and the first timestep."""
        a = self.alpha_bars[[-2, -1, 0]]
        return tuple((np.log(a) - np.log1p(-a)).tolist())

    def log_snr(
        self, t: Real[ArrayLike, "*shape"], xp: ModuleType = jnp
    ) -> Float[ArrayLike, "*shape"]:
        """Returns the log-SNR at timestep `t` of the clock.

        Equals the discrete table at integers. Up to the second-to-last timestep it evaluates the
        closed form of ln(alpha_bar / (1 - alpha_bar)), with 1 - alpha_bar as a product of sines to
        avoid cancellation in float32. On the last interval, where beta is capped, it is linear.

        Args:
          t: Timestep of any shape, may be fractional. Clipped to 0..num_timesteps - 1.
          xp: `jax.numpy` (traceable) or `numpy` (float64).
        """
        t = _as_floating(t, xp)
        last = self.num_timesteps - 1
        angle = math.pi / 2 / (1 + OFFSET) / self.num_timesteps
        before = xp.clip(t, 0, last - 1)
        signal = xp.sin(angle * (last - before))
        noise = xp.sin(angle * (before + 1)) * xp.sin(
            angle * (before + 1 + 2 * OFFSET * self.num_timesteps)
        )
        last_but_one, lowest, _ = self._log_snr_ends
        beyond = xp.clip(t - (last - 1), 0, 1)
        return 2 * xp.log(signal) - xp.log(noise) + beyond * (lowest - last_but_one)

    def timestep(
        self, log_snr: Real[ArrayLike, "*shape"], xp: ModuleType = jnp
    ) -> Float[ArrayLike, "*shape"]:
        """Returns the timestep (fractional) of the clock at `log_snr`; inverse of `log_snr`.

        Args:
          log_snr: log-SNR of any shape. The result is clipped to 0..num_timesteps - 1.
          xp: `jax.numpy` (traceable) or `numpy` (float64).
        """
        log_snr = _as_floating(log_snr, xp)
        last_but_one, lowest, _ = self._log_snr_ends
        level = xp.maximum(log_snr, last_but_one)
        start = math.pi / 2 * OFFSET / (1 + OFFSET)
        # cos(b)^2 = cos(start)^2 alpha_bar; sine and cosine are both sums of positive terms.
        alpha_bar, rest = 1 / (1 + xp.exp(-level)), 1 / (1 + xp.exp(level))
        cosine = math.cos(start) * xp.sqrt(alpha_bar)
        sine = xp.sqrt(math.sin(start) ** 2 * alpha_bar + rest)
        angle = math.pi / 2 / (1 + OFFSET) / self.num_timesteps
        before = (xp.arctan2(sine, cosine) - start) / angle - 1
        beyond = xp.clip((log_snr - last_but_one) / (lowest - last_but_one), 0, 1)
        return xp.clip(before, 0, self.num_timesteps - 2) + beyond

    def level_at(
        self, nominal: Real[ArrayLike, "*shape"], xp: ModuleType = jnp
    ) -> tuple[Float[ArrayLike, "*shape"], Float[ArrayLike, "*shape"]]:
        """Returns (network timestep, log-SNR) of the schedule at a nominal time.

        Args:
          nominal: Time in 0..num_timesteps - 1 of any shape, may be fractional. The timestep
            itself for `cosine`, and u (num_timesteps - 1) for `continuous_cosine`.
          xp: `jax.numpy` (traceable) or `numpy` (float64).
        """
        nominal = _as_floating(nominal, xp)
        if self.kind == "cosine":
            return nominal, self.log_snr(nominal, xp)
        # The tangent as a ratio of sines of the angle and its complement keeps float32 precision
        # at both ends.
        first = math.atan(math.exp((self.log_snr_shift - self.log_snr_max) / 2))
        last = math.atan(math.exp((self.log_snr_min - self.log_snr_shift) / 2))
        per_timestep = (math.pi / 2 - first - last) / (self.num_timesteps - 1)
        remaining = self.num_timesteps - 1 - nominal
        tangent = xp.sin(first + nominal * per_timestep) / xp.sin(last + remaining * per_timestep)
        log_snr = self.log_snr_shift - 2 * xp.log(tangent)
        return self.timestep(log_snr, xp), log_snr


def sample_training_time(
    schedule: Schedule, u: Float[ArrayLike, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Maps uniform samples to (network timestep, log-SNR).

    The discrete schedule draws the integers 0..num_timesteps - 1, the only timesteps that IF was
    trained on, that samplers visit and at which the variational term is defined. The continuous
    schedule draws continuous times.

    Args:
      schedule: Noise schedule.
      u: Uniform samples in [0, 1) of any shape.
    """
    u = _as_floating(u, jnp)
    if schedule.kind == "cosine":
        last = schedule.num_timesteps - 1
        return schedule.level_at(jnp.minimum(jnp.floor(u * schedule.num_timesteps), last))
    return schedule.level_at(u * (schedule.num_timesteps - 1))


def _as_floating(x: Real[ArrayLike, "*shape"], xp: ModuleType) -> Float[ArrayLike, "*shape"]:
    """Converts to at least float32 (jax.numpy) or float64 (numpy)."""
    x = xp.asarray(x)
    return x.astype(xp.promote_types(x.dtype, np.float64 if xp is np else np.float32))
