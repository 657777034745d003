"""What the engine is asked for and what it returns.

This module imports neither JAX nor NumPy, so that the command line answers quickly.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

from stunet.errors import UserError
from stunet.paths import AnyPath, user_path
from stunet.schema import (
    FrameRate,
    GuidanceScale,
    Range,
    Seed,
    Timestep,
    check_fields,
    from_dict,
)

if TYPE_CHECKING:
    import jax
    import numpy as np

MAX_MARGIN = 2**14
_Margin = Annotated[int, Range(0, MAX_MARGIN)]
# Pixels on the left, right, top and bottom.
Margins: TypeAlias = tuple[_Margin, _Margin, _Margin, _Margin]

# A file's path, or an array: an image [H, W, 3] or [N, H, W, 3], a video [T, H, W, 3] or
# [N, T, H, W, 3], both in [-1, 1]; a mask ends in one channel, 1 = known. (`Any`, because schemas
# are read without importing NumPy.)
Source: TypeAlias = Any
# (first frame, text) of the prompts after the first one.
PromptSchedule: TypeAlias = tuple[tuple[int, str], ...]

GuidanceMethod = Literal["cfg", "apg", "image"]
GUIDANCE_METHODS = get_args(GuidanceMethod)
FEATHER = 0.02
SOURCES = ("image", "last", "video", "mask")
_SAMPLERS = ("sampler", "upscale_sampler")  # fields of `Sampling`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample.

    The noise of video i depends on (seed, i) only: other prompts, `batch_size` and `chunk` change
    a video by no more than float rounding. Chunks, batches, seeds and guidance scales share one
    compiled program.

    A clip longer than a window is sampled with MultiDiffusion (`stunet.diffusion.multidiffusion`).
    Videos, the two predictions of guidance, windows and, if devices remain, frames are spread over
    the devices that the model was loaded on. Each holds an equal share of the parameters.

    `sampler`, `steps` and `guidance_scale` apply to the first model of a job, and the fields that
    begin with `upscale_` to all upscalers after it. None uses each model's own (`Model.sampling`).

    Attributes:
      sampler: A name in `stunet.diffusion.samplers.SAMPLERS`, "package.module:name", or a sampler.
      steps: Sampling steps. A model without a number of its own uses the sampler's default.
      guidance_scale: Classifier-free guidance scale (2207.12598). 1 disables guidance and halves
        the cost. Known pixels are not guided.
      guidance: How guidance of the first model uses the two predictions: "cfg", "apg" or "image";
        see `stunet.diffusion.guidance`. "image" does not use the negative prompt, and needs a model
        whose spatial part is an image model. Models after the first use "cfg".
      guidance_interval: Lowest and highest timestep at which the first model is guided, on IF's
        scale 0..999, where 999 is noise (2404.07724). Steps outside cost half. None: all timesteps.
      upscale_sampler: Sampler of the upscalers after the first model.
      upscale_steps: Sampling steps of these upscalers.
      upscale_guidance_scale: Guidance scale of these upscalers.
      negative_prompt: Text that guidance leads away from, in all models of a job. Empty is the
        unconditional prediction of classifier-free guidance.
      seed: 0 to 2**32 - 1.
      batch_size: Videos sampled together. A network call has two rows per video, one without
        guidance, and memory grows with the rows.
      window: Frames per window. None uses the model's training length. The clip's own length
        disables windows.
      overlap: Frames shared by neighbouring windows. The paper's value is 2.
      window_weights: Weights of the average over windows; see `stunet.diffusion.Windows`.
      window_noise: Noise from which a long clip of the first model starts: "independent" for every
        frame, or "shuffled", in which windows share theirs (`stunet.diffusion.Windows`).
      windows_at_once: Windows per network call on each device; bounds memory. None for all.
      chunk: Steps between two progress reports.
    """

    sampler: Any = None
    steps: int | None = None
    guidance_scale: GuidanceScale | None = None
    guidance: GuidanceMethod = "cfg"
    guidance_interval: tuple[Timestep, Timestep] | None = None
    upscale_sampler: Any = None
    upscale_steps: int | None = None
    upscale_guidance_scale: GuidanceScale | None = None
    negative_prompt: str = ""
    seed: Seed = 0
    batch_size: int = 8
    window: int | None = None
    overlap: Annotated[int, Range(0)] = 2
    window_weights: Literal["uniform", "ramp"] = "ramp"
    window_noise: Literal["independent", "shuffled"] = "independent"
    windows_at_once: int | None = 1
    chunk: int = 5

    def __post_init__(self):
        check_fields(self)
        if self.guidance_interval is not None:
            low, high = map(float, self.guidance_interval)
            object.__setattr__(self, "guidance_interval", (low, high))  # hashable
            if low > high:
                raise UserError(
                    f"guidance_interval: {low:g} to {high:g}, expected the lower timestep first"
                )

    def for_upscalers(self) -> "Sampling":
        """Returns the settings of the upscalers after the first model."""
        return dataclasses.replace(
            self,
            sampler=self.upscale_sampler,
            steps=self.upscale_steps,
            guidance_scale=self.upscale_guidance_scale,
            guidance="cfg",
            guidance_interval=None,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One job: an application with its inputs.

    Which fields an application reads is defined in `stunet.engine.applications`.

    Attributes:
      application: A key of `stunet.engine.applications.APPLICATIONS`.
      prompts: One text per video. All videos of a request share inputs that come from files.
      image: First frame.
      last: Last frame.
      video: Video to edit, fill in or enlarge.
      mask: Region to generate, white in files; arrays use 1 = known.
      outpaint: Pixels to generate around the video, in its own size.
      num_frames: Frames per video. None uses the model's training length.
      prompt_schedule: Texts that replace the prompts from a frame (from 1 on, ascending) on. Each
        window of a long clip follows the text at its middle, in upscalers, too.
      fps: Frame rate of the result. None uses the model's.
      loop: Whether the last frame leads back to the first.
      strength: Fraction of the sampler's steps taken (SDEdit): 0 returns the input, 1 ignores it.
      paste_back: Whether known pixels replace generated ones at the end. None uses the
        application's default.
      feather: Width over which pasted pixels fade out, as a fraction of the shorter side.
      noise_level: Noise-conditioning augmentation of super-resolution, on IF's timestep scale
        0..999. None uses the model's. More invents more detail and follows the video less.
      enlarge: Whether the upscalers enlarge the result.
      style_strength: Interpolation towards the style's weights, 0 to 1.5. None uses 0.7 if there
        is a style.
      sampling: Sampler settings.
    """

    application: str
    prompts: tuple[str, ...]
    image: Source = None
    last: Source = None
    video: Source = None
    mask: Source = None
    outpaint: Margins | None = None
    num_frames: int | None = None
    prompt_schedule: PromptSchedule = ()
    fps: FrameRate | None = None
    loop: bool = False
    strength: Annotated[float, Range(0, 1)] | None = None
    paste_back: bool | None = None
    feather: Annotated[float, Range(0, 1)] = FEATHER
    noise_level: Timestep | None = None
    enlarge: bool = True
    style_strength: Annotated[float, Range(0, 1.5)] | None = None
    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    def __post_init__(self):
        check_fields(self)

    @property
    def files(self) -> dict[str, AnyPath]:
        """Input files by field."""
        sources = {name: getattr(self, name) for name in SOURCES}
        return {k: user_path(v) for k, v in sources.items() if isinstance(v, str | AnyPath)}

    def to_dict(self) -> dict[str, Any]:
        """Returns the request as JSON values.

        Raises:
          UserError: An input is an array.
        """
        from stunet.diffusion.samplers import sampler_to_dict

        values = dataclasses.asdict(self)
        for name in SOURCES:
            if values[name] is not None and name not in self.files:
                raise UserError(f"{name}: an array cannot be serialised, expected a file's path")
        samplers = {name: sampler_to_dict(getattr(self.sampling, name)) for name in _SAMPLERS}
        return {
            **values,
            **{name: str(path) for name, path in self.files.items()},
            "prompts": list(self.prompts),
            "outpaint": self.outpaint and list(self.outpaint),
            "sampling": {**values["sampling"], **samplers},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "request") -> "Request":
        """Builds a request from `to_dict`'s values.

        Raises:
          UserError: A field is unknown, missing or has the wrong type.
        """
        from stunet.diffusion.samplers import sampler_from_dict

        request = from_dict(cls, values, where)
        samplers = {name: sampler_from_dict(getattr(request.sampling, name)) for name in _SAMPLERS}
        sampling = dataclasses.replace(request.sampling, **samplers)
        return dataclasses.replace(request, sampling=sampling)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What `stunet.engine.run` returns.

    Attributes:
      videos: `[N, T, H, W, 3]` float32 in [-1, 1], one per prompt.
      fps: Frames per second.
      settings: Everything that determined the result, as JSON values. Files appear without their
        folders.
      warnings: Remarks such as a cropped input or a truncated prompt.
      audio: Audio of the input, if the result has its duration, as the bytes of an MP4 file.
    """

    videos: "np.ndarray"
    fps: float
    settings: dict[str, Any]
    warnings: tuple[str, ...]
    audio: bytes | None = None

    @property
    def video(self) -> "np.ndarray":
        """The first video, `[T, H, W, 3]`."""
        return self.videos[0]

    def save(self, path: str | AnyPath) -> None:
        """Writes the first video as .mp4 (with the audio), .gif or .png.

        Raises:
          UserError: Another ending, or the path cannot be written.
        """
        from stunet.video_io import audio_warning, write_video

        write_video(path, self.video, self.fps, audio=self.audio)
        if (warning := audio_warning(path, self.audio)) is not None:
            warnings.warn(warning, stacklevel=2)


@dataclasses.dataclass(frozen=True, eq=False)
class Progress:
    """Progress of a job.

    Attributes:
      stage: "reading", "sampling" or "enlarging".
      done: Steps done.
      total: Steps of the stage; 0 while reading. A report with done = 0 precedes compilation.
      windows: Windows per step.
      estimate: Current estimate of the videos, `[b, T, H, W, 3]` in [-1, 1], on the device.
      warnings: All warnings of the result. They are reported once, after the inputs are read and
        before sampling starts.
    """

    stage: Literal["reading", "sampling", "enlarging"]
    done: int = 0
    total: int = 0
    windows: int = 1
    estimate: "jax.Array | None" = None
    warnings: tuple[str, ...] = ()


# Called with every report. An exception that it raises ends the job.
OnProgress = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Discards progress reports."""
