"""From a request to a video: what each application does with the models."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import stunet
from stunet import engine as pipeline
from stunet.engine import inputs
from stunet.model import Model
from stunet.studio.jobs import Progress, Report, Watch
from stunet.studio.models import Models
from stunet.studio.uploads import named, without_folders
from stunet.text import check_prompt
from stunet.video_io import read_video
from stunet.weights.style import strength_warning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; a field is None where its application does not have it.

    Attributes:
      application: one of `Models.applications`.
      prompt: what the video shows.
      seed, steps, guidance_scale: of `pipeline.Sampling`.
      num_frames: of the video; None for as many as in the model's training.
      style_strength: 0 to 1.5.
      enlarge: whether the video goes through `Models.upscalers`.
      strength: of `edit`.
      outpaint: pixels at the left, right, top and bottom of the video.
      loop: whether a cinemagraph leads back to its first frame.
      image, last, video, mask: the files.
    """

    application: str
    prompt: str
    seed: int = 0
    steps: int | None = None
    guidance_scale: float = 4.0
    num_frames: int | None = None
    style_strength: float | None = None
    enlarge: bool = False
    strength: float | None = None
    outpaint: inputs.Margins | None = None
    loop: bool | None = None
    image: Path | None = None
    last: Path | None = None
    video: Path | None = None
    mask: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The files that there are, by their field."""
        fields = {name: getattr(self, name) for name in ("image", "last", "video", "mask")}
        return {name: path for name, path in fields.items() if path is not None}


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """A result.

    Attributes:
      video: `[T, H, W, 3]` in [-1, 1].
      fps: frames per second.
      settings: all that it was made with, for people and JSON.
      remarks: what is to be said of it.
    """

    video: np.ndarray
    fps: float
    settings: dict[str, Any]
    remarks: tuple[str, ...]


def make(models: Models, request: Request, report: Report) -> Made:
    """Makes the video that is asked for.

    Args:
      models: to make it with.
      request: what to make.
      report: is told of progress, and ends the work by what it raises.

    Raises:
      UserError: the request cannot be met; files are named without their folder.
    """
    check_prompt(request.prompt)
    report(Progress("reading"))
    enlarges = request.enlarge or request.application == "upscale"
    upscalers = models.upscalers if enlarges else ()
    stages = ["enlarging"] * len(upscalers)
    if request.application == "upscale":
        base = upscalers[0]
    else:
        base = models.styled(request.style_strength or 0)
        stages.insert(0, "sampling")
    sampling = {
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "seed": request.seed,
        "chunk": 1,  # each step can be shown, and be the last
    }
    files = request.files.values()
    with named(files):
        apply = _APPLICATIONS[request.application]
        videos, fps, said = apply(base, upscalers, request, Watch(report, stages), sampling)
    said.append(base.tokenizer.truncation_warning(request.prompt))
    if request.style_strength:
        said.append(strength_warning(request.style_strength))
    report(Progress("writing"))
    settings = settings_of(models, request, len(videos[0]), fps)
    remarks = tuple(without_folders(one, files) for one in said if one is not None)
    return Made(videos[0], fps, settings, remarks)


def settings_of(models: Models, request: Request, num_frames: int, fps: float) -> dict[str, Any]:
    """All that a video was made with; files by their names alone."""
    fields = {
        name: value
        for name, value in dataclasses.asdict(request).items()
        if value is not None and not isinstance(value, Path)
    }
    used = dict(models.names)
    steps = request.steps or pipeline.DEFAULT_STEPS[pipeline.Sampling.sampler]
    upscale_steps = [one.super_resolution.steps or steps for one in models.upscalers]
    if request.application == "upscale":
        steps = upscale_steps[0] = request.steps or upscale_steps[0]
        del used["model"]
        fields.pop("enlarge")
    elif not request.enlarge:
        used.pop("upscale", None)
        fields.pop("enlarge")
    if not request.style_strength:
        used.pop("style", None)
        fields.pop("style_strength", None)
    if "upscale" in used:
        used["upscale_steps"] = upscale_steps
    files = {name: path.name for name, path in request.files.items()}
    return {
        **fields,
        **files,
        **used,
        "steps": steps,
        "sampler": pipeline.Sampling.sampler,
        "num_frames": num_frames,
        "fps": fps,
        "stunet": stunet.__version__,
    }


# An application: (base model, upscalers, request, watch, fields of `Sampling`) -> the videos
# [1, T, H, W, 3], their frames per second, and what is to be said of them.
Applied = tuple[np.ndarray, float, list[str | None]]


def _generate(
    base: Model, upscalers: Sequence[Model], request: Request, watch: Watch, sampling: dict
) -> Applied:
    num_frames = request.num_frames or base.num_frames
    said = pipeline.said_of_windows(base, upscalers, num_frames, given=False)
    prompts = [request.prompt]
    with watch(pipeline.windows_of(base, num_frames)) as on_chunk:
        videos = pipeline.generate(
            base, prompts, num_frames=num_frames, on_chunk=on_chunk, **sampling
        )
    videos = pipeline.enlarge(upscalers, videos, prompts, watch, **sampling)
    return videos, base.fps or 1.0, [said]  # a model of images has no rate; a file needs some


def _edit(
    base: Model, upscalers: Sequence[Model], request: Request, watch: Watch, sampling: dict
) -> Applied:
    video, _ = read_video(request.video, fps=base.fps, resolution=base.resolution)
    num_frames = pipeline.whole_strides(base, len(video))
    said = pipeline.said_of_windows(base, upscalers, num_frames, given=False)
    prompts = [request.prompt]
    with watch(pipeline.windows_of(base, num_frames)) as on_chunk:
        videos = pipeline.edit(
            base, video[None], prompts, strength=request.strength, on_chunk=on_chunk, **sampling
        )
    videos = pipeline.enlarge(upscalers, videos, prompts, watch, **sampling)
    return videos, base.fps, [said, inputs.said_of_crop(request.video)]


def _upscale(
    base: Model, upscalers: Sequence[Model], request: Request, watch: Watch, sampling: dict
) -> Applied:
    videos, fps = inputs.to_enlarge(request.video, base)
    prompts, num_frames = [request.prompt], pipeline.whole_strides(base, videos.shape[1])
    with watch(pipeline.windows_of(base, num_frames)) as on_chunk:
        videos = pipeline.upscale(base, videos, prompts, on_chunk=on_chunk, **sampling)
    videos = pipeline.enlarge(upscalers[1:], videos, prompts, watch, **sampling)
    return videos, fps, []


def _fill(
    base: Model, upscalers: Sequence[Model], request: Request, watch: Watch, sampling: dict
) -> Applied:
    """The applications that are a fill: those differ in what is given, and in what is kept."""
    frames, margins = request.num_frames or base.num_frames, inputs.NO_MARGINS
    loop = bool(request.loop)
    if request.application == "animate":
        filled, paste_back = inputs.first_given(request.image, frames), False
    elif request.application == "interpolate":
        filled, paste_back = inputs.ends_given(request.image, request.last, frames), False
    elif request.application == "cinemagraph":
        frames = (request.num_frames or base.num_frames - loop) + loop
        filled, paste_back = inputs.still_but(request.image, request.mask, frames, loop), True
    elif request.outpaint is not None:
        margins = request.outpaint
        filled, paste_back = inputs.widened(request.video, margins, base.fps), True
    else:
        filled, paste_back = inputs.masked(request.video, request.mask, base.fps), True
    given = filled(base.resolution)
    num_frames = pipeline.whole_strides(base, given[0].shape[1])
    said = pipeline.said_of_windows(base, upscalers, num_frames, given=True)
    videos = pipeline.fill_and_enlarge(
        base, upscalers, given, filled, [request.prompt], watch, paste_back, **sampling
    )
    pictures = [path for name, path in request.files.items() if name != "mask"]
    crops = [inputs.said_of_crop(path, margins) for path in pictures]
    return videos[:, :-1] if loop else videos, base.fps, [said, *crops]


_APPLICATIONS = {
    "generate": _generate,
    "animate": _fill,
    "interpolate": _fill,
    "inpaint": _fill,
    "cinemagraph": _fill,
    "edit": _edit,
    "upscale": _upscale,
}
