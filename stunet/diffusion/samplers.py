"""Samplers: DPM-Solver++(2M) (2211.01095), DDIM (2010.02502) and ancestral DDPM (2006.11239).

A `Sampler` holds hyper-parameters only: it is hashable, comparable and serialisable. `bind` fixes
the noise schedule and the number of steps and returns a `BoundSampler`, which `run_steps` runs:

    sampler = resolve_sampler("ddim")  # or DDIM(eta=0.5), or "package.module:name"
    bound = sampler.bind(schedule, sampler.default_steps, variance=model.variance)
    carry = run_steps(bound, denoiser, bound.init(noise), 0, len(bound.grid), noise_fn)

A step index (traced or static) counts the levels of the grid from the noisiest. To start in the
middle (SDEdit, 2108.01073), noise a video to level `start` and begin with that index. Clean data
follows the last level: the last step of every sampler returns the denoiser's x0 without noise.

To add a sampler, write a frozen dataclass with `default_steps` and `bind` and add it to `SAMPLERS`.
Samplers outside this package need no entry: they are found as "package.module:name".
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from stunet import plugins
from stunet.diffusion.prediction import Denoiser, Prediction, Video
from stunet.diffusion.schedule import Schedule, respace_betas
from stunet.diffusion.time_grid import TimeGrid
from stunet.errors import UserError
from stunet.schema import GuidanceScale, check_fields

VARIANCES = ("fixed_small", "fixed_large", "learned_range")

StepIndex = Integer[Array, ""] | int
# Coefficients of one step: a row of `SingleCallSampler.coefficients`.
Coefficients = Float[Array, " coefficients"]


class Carry(NamedTuple):
    """State that a sampler passes from step to step.

    Attributes:
      x: Noisy video, [B, T, H, W, C], float32.
      x0: Estimate of the clean video at the last step (zeros before the first). Used for previews
        and as the memory of a multistep solver.
      taken: Number of steps taken, an int32 scalar.
    """

    x: Video
    x0: Video
    taken: Integer[Array, ""]


@runtime_checkable
class BoundSampler(Protocol):
    """A sampler on a grid of noise levels, as `run_steps` runs it.

    Attributes:
      grid: Levels to visit, noisiest first.
    """

    grid: TimeGrid

    def init(self, x_start: Video) -> Carry:
        """Returns the carry before the first step, given x at the level of that step."""

    def step(self, denoiser: Denoiser, carry: Carry, index: StepIndex, noise: Video) -> Carry:
        """Moves x from level `index` to the next; `noise` is standard normal, shaped as x."""


@runtime_checkable
class Sampler(Protocol):
    """Hyper-parameters of a sampling algorithm; a frozen, hashable dataclass.

    Attributes:
      default_steps: Number of steps if the user asks for none.
    """

    default_steps: int

    def bind(
        self, schedule: Schedule, num_steps: int, *, variance: str = "fixed_small"
    ) -> BoundSampler:
        """Returns the sampler for a schedule and a number of steps.

        Args:
          schedule: Noise schedule of the model.
          num_steps: Number of levels to visit.
          variance: Posterior variance that the model was trained with, one of `VARIANCES`.
            Deterministic samplers ignore it.

        Raises:
          UserError: num_steps is out of the sampler's range, or the variance is unknown.
        """


# (coefficients of the step [K], prediction at x, carry, noise) -> x at the next level
Update = Callable[[Coefficients, Prediction, Carry, Video], Video]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SingleCallSampler:
    """A `BoundSampler` that calls the denoiser once per step, with coefficients from a table.

    Attributes:
      grid: Levels to visit.
      coefficients: Float64 table [N, K], one row per step. Converted to float32 on use.
      update: Computes x at the next level from a row of the table.
    """

    grid: TimeGrid
    coefficients: Float[np.ndarray, "steps coefficients"]
    update: Update

    def init(self, x_start: Video) -> Carry:
        """See `BoundSampler.init`."""
        return Carry(x_start, jnp.zeros_like(x_start), jnp.zeros((), jnp.int32))

    def step(self, denoiser: Denoiser, carry: Carry, index: StepIndex, noise: Video) -> Carry:
        """See `BoundSampler.step`."""
        coefficients = jnp.asarray(self.coefficients, jnp.float32)[index]
        timestep = jnp.asarray(self.grid.timesteps, jnp.float32)[index]
        prediction = denoiser(carry.x, timestep)
        x = self.update(coefficients, prediction, carry, noise)
        return Carry(x, prediction.x0, carry.taken + 1)


@dataclasses.dataclass(frozen=True)
class DPMSolver2M:
    """DPM-Solver++(2M), deterministic (2211.01095 algorithm 2), on `TimeGrid.solver`.

    The first step taken (at any index) and the last one are first-order: before the first there is
    no previous x0, and to log-SNR infinity there is no finite step to extrapolate over.
    """

    # The fewest steps that follow the prompt as often as 250 ancestral ones, within one point;
    # 15 steps flicker slightly less (docs/moving_shapes.md). 2211.01095 recommends 15 to 20.
    default_steps: ClassVar[int] = 10

    def bind(
        self, schedule: Schedule, num_steps: int, *, variance: str = "fixed_small"
    ) -> BoundSampler:
        """See `Sampler.bind`."""
        grid = TimeGrid.solver(schedule, num_steps)
        half_log_snr = grid.log_snr / 2  # lambda = ln(alpha / sigma) of the paper
        step = np.append(np.diff(half_log_snr), np.inf)
        sigma = np.sqrt(1 / (1 + np.exp(grid.log_snr)))
        c_x = np.append(sigma[1:], 0.0) / sigma
        c_x0 = np.sqrt(np.append(grid.alpha_bars[1:], 1.0)) * -np.expm1(-step)
        extrapolation = np.zeros(len(grid))  # 1 / (2 r) of the paper
        extrapolation[1:-1] = step[1:-1] / step[:-2] / 2
        coefficients = np.stack([c_x, c_x0, extrapolation], axis=1)
        return SingleCallSampler(grid=grid, coefficients=coefficients, update=_dpm_solver_update)


def _dpm_solver_update(
    coefficients: Coefficients, prediction: Prediction, carry: Carry, noise: Video
) -> Video:
    del noise
    c_x, c_x0, extrapolation = coefficients
    x0 = prediction.x0
    extrapolation = jnp.where(carry.taken > 0, extrapolation, 0)
    return c_x * carry.x + c_x0 * (x0 + extrapolation * (x0 - carry.x0))


@dataclasses.dataclass(frozen=True)
class DDIM:
    """DDIM (2010.02502 eq. 12).

    Attributes:
      eta: Scale of the noise (2010.02502 eq. 16). 0 is deterministic, 1 gives DDPM's beta~.
      grid: Levels: `TimeGrid.leading`, or `TimeGrid.nested` for few steps.
    """

    eta: float = 0.0
    grid: Literal["leading", "nested"] = "leading"
    default_steps: ClassVar[int] = 50

    def bind(
        self, schedule: Schedule, num_steps: int, *, variance: str = "fixed_small"
    ) -> BoundSampler:
        """See `Sampler.bind`."""
        grids = {"leading": TimeGrid.leading, "nested": TimeGrid.nested}
        grid = grids[self.grid](schedule, num_steps)
        alpha_bar = grid.alpha_bars
        following = np.append(alpha_bar[1:], 1.0)
        beta = respace_betas(alpha_bar)
        step_variance = self.eta**2 * beta * (1 - following) / (1 - alpha_bar)
        c_eps = np.sqrt(1 - following - step_variance)
        coefficients = np.stack([np.sqrt(following), c_eps, np.sqrt(step_variance)], axis=1)
        return SingleCallSampler(grid=grid, coefficients=coefficients, update=_ddim_update)


def _ddim_update(
    coefficients: Coefficients, prediction: Prediction, carry: Carry, noise: Video
) -> Video:
    c_x0, c_eps, std = coefficients
    return c_x0 * prediction.x0 + c_eps * prediction.eps + std * noise


@dataclasses.dataclass(frozen=True)
class Ancestral:
    """DDPM's ancestral sampler (2006.11239 algorithm 2) on `TimeGrid.leading`, betas respaced.

    Attributes:
      variance: Posterior variance of a step. `fixed_small` is beta~, `fixed_large` is beta,
        `learned_range` interpolates their logarithms with the variance channels of the prediction
        (2102.09672 eq. 15). None uses the variance that the model was trained with.

    Raises:
      UserError: The variance is unknown. `step` raises it if `learned_range` meets a prediction
        without variance channels.
    """

    variance: str | None = None
    # DeepFloyd IF's own number for its first stage.
    default_steps: ClassVar[int] = 100

    def __post_init__(self):
        if self.variance is not None:
            _check_variance(self.variance)

    def bind(
        self, schedule: Schedule, num_steps: int, *, variance: str = "fixed_small"
    ) -> BoundSampler:
        """See `Sampler.bind`."""
        variance = self.variance or variance
        _check_variance(variance)
        grid = TimeGrid.leading(schedule, num_steps)
        alpha_bar = grid.alpha_bars
        following = np.append(alpha_bar[1:], 1.0)
        beta = respace_betas(alpha_bar)
        c_x0 = np.sqrt(following) * beta / (1 - alpha_bar)
        c_x = np.sqrt(1 - beta) * (1 - following) / (1 - alpha_bar)
        small = np.maximum(beta * (1 - following) / (1 - alpha_bar), 1e-20)
        noisy = np.append(np.ones(len(beta) - 1), 0.0)  # no noise in the last step
        coefficients = np.stack([c_x0, c_x, np.log(small), np.log(beta), noisy], axis=1)
        update = functools.partial(_ancestral_update, variance)
        return SingleCallSampler(grid=grid, coefficients=coefficients, update=update)


def _ancestral_update(
    variance: str,
    coefficients: Coefficients,
    prediction: Prediction,
    carry: Carry,
    noise: Video,
) -> Video:
    c_x0, c_x, log_small, log_large, noisy = coefficients
    if variance == "learned_range":
        if prediction.variance is None:
            raise UserError(
                "sampler.variance: 'learned_range' needs variance channels but the network "
                "predicts none, expected 'fixed_small' or 'fixed_large'"
            )
        fraction = (prediction.variance + 1) / 2
        log_var = fraction * log_large + (1 - fraction) * log_small
    else:
        log_var = log_small if variance == "fixed_small" else log_large
    mean = c_x0 * prediction.x0 + c_x * carry.x
    return mean + noisy * jnp.exp(0.5 * log_var) * noise


def _check_variance(variance: str) -> None:
    if variance not in VARIANCES:
        raise UserError(
            f"sampler.variance: unknown value {variance!r}, expected one of {', '.join(VARIANCES)}"
        )


# Samplers by name; the first one is the default.
SAMPLERS: dict[str, Sampler] = {
    "dpm2m": DPMSolver2M(),
    "ddim": DDIM(),
    "ancestral": Ancestral(),
    "few_steps": DDIM(grid="nested"),
}


@dataclasses.dataclass(frozen=True)
class SamplingDefaults:
    """How a model is sampled if a job does not state it.

    Attributes:
      sampler: A key of `SAMPLERS`, or "package.module:name". The latter is imported when it is
        used, so that a model can be loaded without it.
      steps: Sampling steps. None uses the sampler's default.
      guidance_scale: Scale of classifier-free guidance. 1 disables guidance.
      only: Whether the model was distilled to `sampler` and `steps`, and takes no others.
      guidance_scales: Lowest and highest scale that a model with distilled guidance takes. None has
        no limits.

    Raises:
      UserError: The sampler's name is unknown, or a field has the wrong type or is out of range.
    """

    sampler: str = "dpm2m"
    steps: int | None = None
    guidance_scale: GuidanceScale = 4.0
    only: bool = False
    guidance_scales: tuple[GuidanceScale, GuidanceScale] | None = None

    def __post_init__(self):
        check_fields(self, "sampling.")
        if self.only and self.steps is None:
            raise UserError("sampling.steps: None, expected the number that `only` refers to")
        if self.guidance_scales is not None:
            low, high = self.guidance_scales
            if not low <= self.guidance_scale <= high:
                raise UserError(
                    f"sampling.guidance_scale: {self.guidance_scale:g}, expected {low:g} to "
                    f"{high:g}, for which the model is distilled"
                )
        if ":" not in self.sampler:
            plugins.resolve("sampling.sampler", self.sampler, SAMPLERS)


def resolve_sampler(sampler: str | Sampler) -> Sampler:
    """Returns a sampler given by name; a sampler object is returned unchanged.

    Args:
      sampler: A key of `SAMPLERS`, "package.module:name" of a sampler or a sampler class outside
        this package (a class is called without arguments), or a sampler object.

    Raises:
      UserError: The name is unknown, or it is not the name of a sampler.
    """
    if not isinstance(sampler, str):
        return sampler
    found = plugins.resolve("sampler", sampler, SAMPLERS)
    return _checked(sampler, found() if isinstance(found, type) else found)


def sampler_to_dict(sampler: str | Sampler | None) -> str | dict[str, Any] | None:
    """Returns a JSON form of a sampler: a name or None is kept, an object is {"type": ..., fields}.

    The type is "package.module:Class". Inverse: `sampler_from_dict`.
    """
    if sampler is None or isinstance(sampler, str):
        return sampler
    kind = type(sampler)
    return {"type": f"{kind.__module__}:{kind.__qualname__}", **dataclasses.asdict(sampler)}


def sampler_from_dict(sampler: str | Mapping[str, Any] | None) -> str | Sampler | None:
    """Inverse of `sampler_to_dict`.

    Raises:
      UserError: The type or a field is missing or unknown.
    """
    if sampler is None or isinstance(sampler, str):
        return sampler
    fields = dict(sampler)
    name = fields.pop("type", "")
    kind = plugins.resolve("sampler.type", name, {})
    try:
        return _checked(name, kind(**fields))
    except TypeError as error:
        raise UserError(f"sampler: cannot construct {name!r} from {fields} ({error})") from error


def _checked(name: str, sampler: Any) -> Sampler:
    if not isinstance(sampler, Sampler):
        raise UserError(
            f"sampler: {name!r} is a {type(sampler).__name__}, expected an object with "
            "'default_steps' and 'bind'"
        )
    return sampler
