"""Grids of the noise levels that samplers visit."""

import dataclasses

import numpy as np
from jaxtyping import Float

from stunet.diffusion.schedule import Schedule
from stunet.errors import UserError

# First level of a few-step solver. At lower log-SNR, x0 is a quotient of epsilon by alpha < 0.006.
# Starting from N(0, 1) here is off by alpha times the mean of the data, and by 4e-5 of its
# variance.
SOLVER_MIN_LOG_SNR = -10.2
# Last level of a grid that is evenly spaced in log-SNR: noise of 3 % of unit scale.
SOLVER_MAX_LOG_SNR = 7.0


@dataclasses.dataclass(frozen=True, eq=False)
class TimeGrid:
    """Noise levels of a sampler, noisiest first. Clean data (log-SNR infinity) follows the last.

    Attributes:
      timesteps: [N] IF timesteps that the network receives, float64, descending.
      log_snr: [N] float64, ascending.
    """

    timesteps: Float[np.ndarray, " steps"]
    log_snr: Float[np.ndarray, " steps"]

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def alpha_bars(self) -> Float[np.ndarray, " steps"]:
        """alpha^2 [N] at the levels, float64."""
        return 1 / (1 + np.exp(-self.log_snr))

    @classmethod
    def leading(cls, schedule: Schedule, num_steps: int) -> "TimeGrid":
        """Returns the nominal times floor(i num_timesteps / num_steps), which always include 0.

        If num_steps divides num_timesteps, these are the timesteps of diffusers' `DDPMScheduler`
        (spacing "leading") and `DDIMScheduler`. Otherwise diffusers rounds the stride down and
        starts far from pure noise (at 765 of 1000 for 256 steps); this grid does not.

        Raises:
          UserError: num_steps is not within 1 to num_timesteps.
        """
        _check_num_steps(num_steps, schedule.num_timesteps)
        nominal = np.arange(num_steps)[::-1] * schedule.num_timesteps // num_steps
        return cls(*schedule.level_at(nominal, np))

    @classmethod
    def solver(cls, schedule: Schedule, num_steps: int) -> "TimeGrid":
        """Returns the grid of a multistep solver, from nearly pure noise to nearly clean data.

        For the discrete schedule: evenly spaced timesteps from log-SNR `SOLVER_MIN_LOG_SNR` to 0,
        rounded to the integers that the network was trained on. Time 0 is left out: log-SNR rises
        steeply towards it, and a multistep solver would extrapolate over a step many times the
        previous one (at 20 steps the variance of Gaussian data is 21 % off with it, 1 % without).

        For the continuous schedule: evenly spaced log-SNR (2206.00927 section 3.3) from
        `SOLVER_MIN_LOG_SNR` to `SOLVER_MAX_LOG_SNR`. Evenly spaced times of a shifted schedule
        would end in noise: at a shift of -3, 25 steps lose a quarter of the variance 0.25 of
        unit-scale data, this grid 1 %.

        Raises:
          UserError: num_steps is not within 1 to half of num_timesteps.
        """
        _check_num_steps(num_steps, schedule.num_timesteps // 2)
        if schedule.kind == "continuous_cosine":
            lowest = max(SOLVER_MIN_LOG_SNR, schedule.log_snr_min)
            log_snr = np.linspace(lowest, min(SOLVER_MAX_LOG_SNR, schedule.log_snr_max), num_steps)
            return cls(schedule.timestep(log_snr, np), log_snr)
        times = np.arange(schedule.num_timesteps)
        start = times[schedule.log_snr(times, np) >= SOLVER_MIN_LOG_SNR][-1]
        return cls(*schedule.level_at(np.linspace(start, 0, num_steps + 1)[:-1].round(), np))

    @classmethod
    def nested(cls, schedule: Schedule, num_steps: int) -> "TimeGrid":
        """Returns the grid of few-step samplers, which contains that of half as many steps.

        For the discrete schedule it is `solver`. For the continuous schedule, log-SNR is evenly
        spaced from where `solver` starts to where it ends, without the end: the last step is as
        long as the others.

        Raises:
          UserError: num_steps is not within 1 to half of num_timesteps.
        """
        if schedule.kind != "continuous_cosine":
            return cls.solver(schedule, num_steps)
        _check_num_steps(num_steps, schedule.num_timesteps // 2)
        lowest = max(SOLVER_MIN_LOG_SNR, schedule.log_snr_min)
        highest = min(SOLVER_MAX_LOG_SNR, schedule.log_snr_max)
        log_snr = np.linspace(lowest, highest, num_steps + 1)[:-1]
        return cls(schedule.timestep(log_snr, np), log_snr)


def _check_num_steps(num_steps: int, largest: int) -> None:
    if not 1 <= num_steps <= largest:
        raise UserError(f"num_steps: invalid value {num_steps}, expected 1 to {largest}")
