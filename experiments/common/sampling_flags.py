"""Flags of the programs that sample with one model."""

from typing import NamedTuple

from absl import flags

from stunet.diffusion.samplers import SAMPLERS
from stunet.engine.request import GUIDANCE_METHODS, Sampling
from stunet.errors import UserError


class SamplingFlags(NamedTuple):
    """Flags of a program that samples; `read` returns their values."""

    sampler: flags.FlagHolder
    steps: flags.FlagHolder
    guidance_scale: flags.FlagHolder
    guidance: flags.FlagHolder
    guidance_interval: flags.FlagHolder

    def read(self, seed: int) -> Sampling:
        """Returns the settings.

        Raises:
          UserError: The interval is malformed, or a value is out of range.
        """
        interval = self.guidance_interval.value
        try:
            interval = None if interval is None else tuple(map(float, interval))
        except ValueError:
            raise UserError(
                f"--guidance_interval: {','.join(interval)}, expected LOW,HIGH"
            ) from None
        return Sampling(
            sampler=self.sampler.value,
            steps=self.steps.value,
            guidance_scale=self.guidance_scale.value,
            guidance=self.guidance.value,
            guidance_interval=interval,
            seed=seed,
        )


def define_sampling(flag_values: flags.FlagValues) -> SamplingFlags:
    """Defines the flags `sampler`, `steps`, `guidance_scale`, `guidance`, `guidance_interval`."""
    own = {"flag_values": flag_values}
    names = f"{', '.join(SAMPLERS)} or package.module:name; default: the model's"
    interval = "lowest and highest timestep with guidance (0 to 999); default: all"
    return SamplingFlags(
        flags.DEFINE_string("sampler", None, names, **own),
        flags.DEFINE_integer("steps", None, "sampling steps; default: the model's", **own),
        flags.DEFINE_float("guidance_scale", None, "guidance scale; default: the model's", **own),
        flags.DEFINE_enum("guidance", "cfg", GUIDANCE_METHODS, "method of guidance", **own),
        flags.DEFINE_list("guidance_interval", None, interval, **own),
    )
