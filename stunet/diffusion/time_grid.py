"""Which noise levels a sampler visits."""

import dataclasses

import numpy as np

from stunet.diffusion.schedule import Schedule
from stunet.errors import UserError

# A few-step solver's first level. Below, x0 is a quotient of epsilon by alpha < 0.006; starting
# from N(0, 1) here is off by that alpha times the data's mean, and by 4e-5 of its variance.
SOLVER_MIN_LOG_SNR = -10.2
# Its last level where levels are evenly spaced in log-SNR: noise of 3 % of unit scale.
SOLVER_MAX_LOG_SNR = 7.0


@dataclasses.dataclass(frozen=True, eq=False)
class TimeGrid:
    """The levels of a sampler, noisiest first; clean data (log-SNR infinite) follows the last.

    Attributes:
      timesteps: [N] IF timesteps fed to the network, float64, descending.
      log_snr: [N] float64, ascending.
    """

    timesteps: np.ndarray
    log_snr: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def alpha_bars(self) -> np.ndarray:
        """alpha^2 [N] at the levels, float64."""
        return 1 / (1 + np.exp(-self.log_snr))

    @classmethod
    def leading(cls, schedule: Schedule, num_steps: int) -> "TimeGrid":
        """Nominal times floor(i * num_timesteps / num_steps), so 0 is always visited.

        Where num_steps divides num_timesteps these are the timesteps of diffusers'
        `DDPMScheduler` (spacing "leading") and `DDIMScheduler`; where it does not, diffusers
        rounds the stride down and starts far from pure noise (765 of 1000 at 256 steps), and
        this grid does not.

        Raises `UserError` unless 1 <= num_steps <= num_timesteps.
        """
        _check_num_steps(num_steps, schedule.num_timesteps)
        nominal = np.arange(num_steps)[::-1] * schedule.num_timesteps // num_steps
        return cls(*schedule.course(nominal, np))

    @classmethod
    def solver(cls, schedule: Schedule, num_steps: int) -> "TimeGrid":
        """What a multistep solver visits, from nearly pure noise to nearly clean data.

        The discrete schedule: evenly spaced timesteps from log-SNR `SOLVER_MIN_LOG_SNR` to 0,
        without 0 itself, rounded to the whole ones that its network knows. Time 0 is left out as
        the log-SNR climbs steeply towards it: a multistep solver would extrapolate over a step
        many times the one before (variance of Gaussian data 21 % off at 20 steps, against 1 %).

        The continuous one: evenly spaced log-SNR (2206.00927 section 3.3) from there to
        `SOLVER_MAX_LOG_SNR`. Evenly spaced times of a shifted course would end in noise: at a
        shift of -3, 25 steps lose a quarter of unit-scale data's variance 0.25, these 1 %.

        Raises `UserError` unless 1 <= num_steps <= half of num_timesteps.
        """
        _check_num_steps(num_steps, schedule.num_timesteps // 2)
        if schedule.kind == "continuous_cosine":
            lowest = max(SOLVER_MIN_LOG_SNR, schedule.log_snr_min)
            log_snr = np.linspace(lowest, min(SOLVER_MAX_LOG_SNR, schedule.log_snr_max), num_steps)
            return cls(schedule.timestep(log_snr, np), log_snr)
        times = np.arange(schedule.num_timesteps)
        start = times[schedule.log_snr(times, np) >= SOLVER_MIN_LOG_SNR][-1]
        return cls(*schedule.course(np.linspace(start, 0, num_steps + 1)[:-1].round(), np))


def _check_num_steps(num_steps: int, most: int) -> None:
    if not 1 <= num_steps <= most:
        raise UserError(f"num_steps is {num_steps}; this sampler takes 1 to {most}")
