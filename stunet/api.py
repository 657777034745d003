"""The Python functions: each builds a `Request` and runs it.

Inputs are files' paths or arrays in [-1, 1]: an image `[H, W, 3]`, a video `[T, H, W, 3]`, a mask
`[H, W, 1]` with 1 = known; a leading axis N gives each prompt its own. (In mask files white marks
the region to generate.) Every function returns a `Result` and raises `stunet.errors.UserError`, one
line, if an argument is invalid or a file cannot be read.
"""

import warnings
from collections.abc import Sequence

from stunet.engine.cascade import Models
from stunet.engine.request import (
    FEATHER,
    Margins,
    OnProgress,
    Progress,
    Request,
    Result,
    Sampling,
    Source,
    ignore_progress,
)
from stunet.engine.run import run
from stunet.model import Model

Prompts = str | Sequence[str]  # one text per video


def generate(
    model: Model,
    prompts: Prompts,
    *,
    num_frames: int | None = None,
    prompt_schedule: Sequence[tuple[int, str]] = (),
    fps: float | None = None,
    upscalers: Sequence[Model] = (),
    sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
    progress: OnProgress = ignore_progress,
) -> Result:
    """Generates one video per prompt.

    Args:
      model: Any model but one for super-resolution.
      prompts: One text, or N.
      num_frames: 1 generates an image. None uses the model's training length; longer clips are
        sampled in windows.
      prompt_schedule: (first frame, text) of texts that replace the prompts of a long clip; see
        `Request`.
      fps: Frame rate of the result. None uses the model's.
      upscalers: Super-resolution models that enlarge the result, one after the other.
      sampling: Sampler settings; those of upscalers begin with `upscale_`.
      progress: Receives reports; an exception that it raises ends the sampling.
    """
    request = Request(
        application="generate",
        prompts=_as_tuple(prompts),
        num_frames=num_frames,
        prompt_schedule=tuple(prompt_schedule),
        fps=fps,
        sampling=sampling,
    )
    return _run(Models(base=model, upscalers=tuple(upscalers)), request, progress)


def animate(
    model: Model,
    image: Source,
    prompts: Prompts,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    paste_back: bool = False,
    feather: float = FEATHER,
    upscalers: Sequence[Model] = (),
    sampling: Sampling = Sampling(),  # noqa: B008
    progress: OnProgress = ignore_progress,
) -> Result:
    """Generates videos that begin with an image (image-to-video, 2401.12945 section 4.2).

    Args:
      model: A model of stage "conditional".
      image: The first frame.
      prompts: One text, or N.
      num_frames: See `generate`.
      fps: See `generate`.
      paste_back: Whether the first frame replaces the generated one.
      feather: Width over which pasted pixels fade out, as a fraction of the shorter side.
      upscalers: See `generate`.
      sampling: Sampler settings.
      progress: See `generate`.
    """
    request = Request(
        application="animate",
        prompts=_as_tuple(prompts),
        image=image,
        num_frames=num_frames,
        fps=fps,
        paste_back=paste_back,
        feather=feather,
        sampling=sampling,
    )
    return _run(Models(base=model, upscalers=tuple(upscalers)), request, progress)


def interpolate(
    model: Model,
    first: Source,
    last: Source,
    prompts: Prompts,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    paste_back: bool = False,
    feather: float = FEATHER,
    upscalers: Sequence[Model] = (),
    sampling: Sampling = Sampling(),  # noqa: B008
    progress: OnProgress = ignore_progress,
) -> Result:
    """Generates videos between a first and a last frame.

    Args:
      model: A model of stage "conditional".
      first: The first frame.
      last: The last frame.
      prompts: One text, or N.
      num_frames: See `generate`.
      fps: See `generate`.
      paste_back: Whether both frames replace the generated ones.
      feather: See `animate`.
      upscalers: See `generate`.
      sampling: Sampler settings.
      progress: See `generate`.
    """
    request = Request(
        application="interpolate",
        prompts=_as_tuple(prompts),
        image=first,
        last=last,
        num_frames=num_frames,
        fps=fps,
        paste_back=paste_back,
        feather=feather,
        sampling=sampling,
    )
    return _run(Models(base=model, upscalers=tuple(upscalers)), request, progress)


def inpaint(
    model: Model,
    video: Source,
    prompts: Prompts,
    *,
    mask: Source = None,
    outpaint: Margins | None = None,
    paste_back: bool = True,
    feather: float = FEATHER,
    upscalers: Sequence[Model] = (),
    sampling: Sampling = Sampling(),  # noqa: B008
    progress: OnProgress = ignore_progress,
) -> Result:
    """Fills in the masked region of videos, or extends them beyond their borders.

    Args:
      model: A model of stage "conditional".
      video: The video; files are resampled to the model's frame rate.
      prompts: One text, or N.
      mask: Region to generate: a file (white = generate) or an array (1 = known). Excludes
        `outpaint`.
      outpaint: Pixels to add on the left, right, top and bottom. Excludes `mask`.
      paste_back: Whether known pixels replace generated ones, bit for bit.
      feather: See `animate`.
      upscalers: See `generate`.
      sampling: Sampler settings.
      progress: See `generate`.
    """
    request = Request(
        application="inpaint",
        prompts=_as_tuple(prompts),
        video=video,
        mask=mask,
        outpaint=outpaint,
        paste_back=paste_back,
        feather=feather,
        sampling=sampling,
    )
    return _run(Models(base=model, upscalers=tuple(upscalers)), request, progress)


def cinemagraph(
    model: Model,
    image: Source,
    mask: Source,
    prompts: Prompts,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    loop: bool = False,
    paste_back: bool = True,
    feather: float = FEATHER,
    upscalers: Sequence[Model] = (),
    sampling: Sampling = Sampling(),  # noqa: B008
    progress: OnProgress = ignore_progress,
) -> Result:
    """Animates a part of an image; the rest stands still.

    Args:
      model: A model of stage "conditional".
      image: The first frame.
      mask: Region that moves: a file (white = moves) or an array (1 = stands still).
      prompts: One text, or N.
      num_frames: Frames of the result. None uses the model's training length, less one for a loop.
      fps: See `generate`.
      loop: Whether the last frame leads back to the first.
      paste_back: Whether known pixels replace generated ones, bit for bit.
      feather: See `animate`.
      upscalers: See `generate`.
      sampling: Sampler settings.
      progress: See `generate`.
    """
    request = Request(
        application="cinemagraph",
        prompts=_as_tuple(prompts),
        image=image,
        mask=mask,
        num_frames=num_frames,
        fps=fps,
        loop=loop,
        paste_back=paste_back,
        feather=feather,
        sampling=sampling,
    )
    return _run(Models(base=model, upscalers=tuple(upscalers)), request, progress)


def edit(
    model: Model,
    video: Source,
    prompts: Prompts,
    *,
    strength: float,
    upscalers: Sequence[Model] = (),
    sampling: Sampling = Sampling(),  # noqa: B008
    progress: OnProgress = ignore_progress,
) -> Result:
    """Edits videos to match a prompt (SDEdit, 2108.01073).

    Args:
      model: A model of videos.
      video: The video; files are resampled to the model's frame rate.
      prompts: One text, or N.
      strength: Fraction of the sampler's steps taken: 0 returns the input, 1 ignores it.
      upscalers: See `generate`.
      sampling: Sampler settings.
      progress: See `generate`.
    """
    request = Request(
        application="edit",
        prompts=_as_tuple(prompts),
        video=video,
        strength=strength,
        sampling=sampling,
    )
    return _run(Models(base=model, upscalers=tuple(upscalers)), request, progress)


def upscale(
    model: Model,
    video: Source,
    prompts: Prompts,
    *,
    noise_level: float | None = None,
    upscalers: Sequence[Model] = (),
    sampling: Sampling = Sampling(),  # noqa: B008
    progress: OnProgress = ignore_progress,
) -> Result:
    """Enlarges videos; frame rate and length stay.

    Args:
      model: A model of stage "ssr".
      video: A file, which is first resized so that its shorter side is what the model was trained
        to enlarge; or an array, enlarged as it is.
      prompts: One text, or N: what the videos show.
      noise_level: Noise-conditioning augmentation, 0 to 999. None uses the model's. More invents
        more detail and follows the video less.
      upscalers: Further super-resolution models.
      sampling: Sampler settings.
      progress: See `generate`.
    """
    request = Request(
        application="upscale",
        prompts=_as_tuple(prompts),
        video=video,
        noise_level=noise_level,
        sampling=sampling,
    )
    return _run(Models(base=None, upscalers=(model, *upscalers)), request, progress)


def _as_tuple(prompts: Prompts) -> tuple[str, ...]:
    return (prompts,) if isinstance(prompts, str) else tuple(prompts)


def _run(models: Models, request: Request, progress: OnProgress) -> Result:
    """Runs a request and issues its warnings as `UserWarning`s, before sampling starts."""

    def on_progress(report: Progress) -> None:
        for warning in report.warnings:
            warnings.warn(warning, stacklevel=5)
        progress(report)

    return run(models, request, on_progress)
