"""Samplers: ancestral (DDPM), DDIM and DPM-Solver++(2M).

A sampler is a value with a `grid`, `init(x_start) -> Carry` and
`step(denoiser, carry, index, noise) -> Carry`, where `index` (traced or not) counts the grid's
levels from the noisiest. To start in the middle (SDEdit), noise a video to level `start` and begin
with that index. Coefficients are tables made in float64 numpy, one row per step. After the last
level comes clean data: every sampler ends in the denoiser's x0, without noise.
"""

import dataclasses
import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from stunet.diffusion.prediction import Denoiser
from stunet.diffusion.schedule import Schedule, respace_betas
from stunet.diffusion.time_grid import TimeGrid
from stunet.errors import UserError

VARIANCES = ("fixed_small", "fixed_large", "learned_range")


class Carry(NamedTuple):
    """What a sampler hands from step to step.

    Attributes:
      x: the noisy video, [B, T, H, W, C], float32.
      x0: the last step's estimate of the clean video (zeros before the first): the previews', and
        the memory of a multistep solver.
      taken: int32 scalar, how many steps were taken.
    """

    x: jax.Array
    x0: jax.Array
    taken: jax.Array


class Sampler(Protocol):
    """What `run_steps` runs."""

    grid: TimeGrid

    def init(self, x_start: jax.Array) -> Carry:
        """The carry before the first step, from x at the first step's level."""

    def step(
        self, denoiser: Denoiser, carry: Carry, index: jax.Array | int, noise: jax.Array
    ) -> Carry:
        """Takes x from level `index` to the next; `noise` is standard normal, shaped as x."""


class _Base:
    def init(self, x_start: jax.Array) -> Carry:
        return Carry(x_start, jnp.zeros_like(x_start), jnp.zeros((), jnp.int32))

    def _row(self, index: jax.Array | int) -> jax.Array:
        return jnp.asarray(self._table, jnp.float32)[index]

    def _timestep(self, index: jax.Array | int) -> jax.Array:
        return jnp.asarray(self.grid.timesteps, jnp.float32)[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Ancestral(_Base):
    """DDPM's ancestral sampler (2006.11239 algorithm 2) on the grid's respaced betas.

    Attributes:
      grid: the levels.
      variance: `fixed_small` (beta~), `fixed_large` (beta), or `learned_range`, which
        interpolates their logarithms with the prediction's variance channels
        (2102.09672 eq. 15) and raises `UserError` where the prediction has none.
    """

    grid: TimeGrid
    variance: str = "fixed_small"

    def __post_init__(self):
        if self.variance not in VARIANCES:
            raise UserError(
                f"sampler variance is {self.variance!r}; it must be one of {', '.join(VARIANCES)}"
            )

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """Rows of: coefficient of x0, of x, log beta~, log beta, whether noise is added."""
        alpha_bar = self.grid.alpha_bars
        following = np.append(alpha_bar[1:], 1.0)
        beta = respace_betas(alpha_bar)
        c_x0 = np.sqrt(following) * beta / (1 - alpha_bar)
        c_x = np.sqrt(1 - beta) * (1 - following) / (1 - alpha_bar)
        small = np.maximum(beta * (1 - following) / (1 - alpha_bar), 1e-20)
        noisy = np.append(np.ones(len(beta) - 1), 0.0)
        return np.stack([c_x0, c_x, np.log(small), np.log(beta), noisy], axis=1)

    def step(
        self, denoiser: Denoiser, carry: Carry, index: jax.Array | int, noise: jax.Array
    ) -> Carry:
        """See `Sampler.step`; the noise of the last step is not used."""
        c_x0, c_x, log_small, log_large, noisy = self._row(index)
        prediction = denoiser(carry.x, self._timestep(index))
        if self.variance == "learned_range":
            if prediction.variance is None:
                raise UserError(
                    "sampler variance is 'learned_range' but the network predicts no variance; "
                    "use 'fixed_small'"
                )
            fraction = (prediction.variance + 1) / 2
            log_var = fraction * log_large + (1 - fraction) * log_small
        else:
            log_var = log_small if self.variance == "fixed_small" else log_large
        mean = c_x0 * prediction.x0 + c_x * carry.x
        x = mean + noisy * jnp.exp(0.5 * log_var) * noise
        return Carry(x, prediction.x0, carry.taken + 1)


@dataclasses.dataclass(frozen=True, eq=False)
class DDIM(_Base):
    """DDIM (2010.02502 eq. 12); `eta` 0 is deterministic, 1 has DDPM's beta~ as variance."""

    grid: TimeGrid
    eta: float = 0.0

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """Rows of: coefficient of x0, of eps, standard deviation of the noise."""
        alpha_bar = self.grid.alpha_bars
        following = np.append(alpha_bar[1:], 1.0)
        beta = respace_betas(alpha_bar)
        variance = self.eta**2 * beta * (1 - following) / (1 - alpha_bar)
        return np.stack(
            [np.sqrt(following), np.sqrt(1 - following - variance), np.sqrt(variance)], axis=1
        )

    def step(
        self, denoiser: Denoiser, carry: Carry, index: jax.Array | int, noise: jax.Array
    ) -> Carry:
        """See `Sampler.step`; at `eta` 0 the noise is not used."""
        c_x0, c_eps, std = self._row(index)
        prediction = denoiser(carry.x, self._timestep(index))
        x = c_x0 * prediction.x0 + c_eps * prediction.eps + std * noise
        return Carry(x, prediction.x0, carry.taken + 1)


@dataclasses.dataclass(frozen=True, eq=False)
class DPMSolver2M(_Base):
    """DPM-Solver++(2M), deterministic (2211.01095 algorithm 2).

    The first step taken (wherever it starts) and the last are of first order: there is no
    previous x0 yet, and to log-SNR infinity there is no finite step to extrapolate over.
    """

    grid: TimeGrid

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """Rows of: coefficient of x, of the extrapolated x0, and the extrapolation."""
        level = self.grid.log_snr / 2  # the paper's lambda = ln(alpha / sigma)
        step = np.append(np.diff(level), np.inf)
        alpha_bar = self.grid.alpha_bars
        sigma = np.sqrt(1 / (1 + np.exp(self.grid.log_snr)))
        c_x = np.append(sigma[1:], 0.0) / sigma
        c_x0 = np.sqrt(np.append(alpha_bar[1:], 1.0)) * -np.expm1(-step)
        extrapolation = np.zeros(len(level))  # 1 / (2 r) of the paper
        extrapolation[1:-1] = step[1:-1] / step[:-2] / 2
        return np.stack([c_x, c_x0, extrapolation], axis=1)

    def step(
        self, denoiser: Denoiser, carry: Carry, index: jax.Array | int, noise: jax.Array
    ) -> Carry:
        """See `Sampler.step`; the noise is not used."""
        del noise
        c_x, c_x0, extrapolation = self._row(index)
        x0 = denoiser(carry.x, self._timestep(index)).x0
        extrapolation = jnp.where(carry.taken > 0, extrapolation, 0)
        x = c_x * carry.x + c_x0 * (x0 + extrapolation * (x0 - carry.x0))
        return Carry(x, x0, carry.taken + 1)


def make_sampler(
    name: str, schedule: Schedule, num_steps: int, *, variance: str = "fixed_small"
) -> Sampler:
    """The sampler called `name` with the grid that suits it.

    `ancestral` (with `variance`) and `ddim` visit `TimeGrid.leading`, `dpm2m` `TimeGrid.solver`.

    Raises `UserError` for an unknown name, variance or number of steps.
    """
    if name == "ancestral":
        return Ancestral(TimeGrid.leading(schedule, num_steps), variance)
    if name == "ddim":
        return DDIM(TimeGrid.leading(schedule, num_steps))
    if name == "dpm2m":
        return DPMSolver2M(TimeGrid.solver(schedule, num_steps))
    raise UserError(f"sampler is {name!r}; it must be one of ancestral, ddim, dpm2m")
