"""A sampler outside the package, as a user would write one."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from stunet.diffusion import BoundSampler, Carry, Prediction, Schedule, SingleCallSampler, TimeGrid


@dataclasses.dataclass(frozen=True)
class Euler:
    """Euler's method on the ODE dy / ds = scale eps, where y = x / alpha and s = sigma / alpha."""

    default_steps: ClassVar[int] = 20
    scale: float = 1.0

    def bind(
        self, schedule: Schedule, num_steps: int, *, variance: str = "fixed_small"
    ) -> BoundSampler:
        grid = TimeGrid.leading(schedule, num_steps)
        alpha = np.append(np.sqrt(grid.alpha_bars), 1.0)
        s = np.append(np.exp(-grid.log_snr / 2), 0.0)
        coefficients = np.stack([alpha[1:] / alpha[:-1], alpha[1:] * np.diff(s)], axis=1)
        return SingleCallSampler(grid=grid, coefficients=coefficients, update=self._update)

    def _update(self, row: jax.Array, prediction: Prediction, carry: Carry, noise: jax.Array):
        return row[0] * carry.x + self.scale * row[1] * prediction.eps


half = Euler(scale=0.5)
