"""Runs a request: reads its inputs, samples the base model, enlarges, and returns a result.

The Python functions, the command line and the studio all end here.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import stunet
from stunet.diffusion import Windows
from stunet.diffusion.samplers import sampler_to_dict
from stunet.engine.applications import Application, Task, find_application
from stunet.engine.cascade import Models, short_name
from stunet.engine.generation import padded_length, paste, sample_base, sample_super_resolution
from stunet.engine.inputs import KnownPixels
from stunet.engine.prompt_schedule import check_schedule
from stunet.engine.request import OnProgress, Progress, Request, Result, Sampling, ignore_progress
from stunet.engine.sampling import OnChunk, windows_for, with_model_defaults
from stunet.errors import UserError
from stunet.memory import check_memory
from stunet.model import Model
from stunet.video_io import has_audio, probe, read_audio
from stunet.weights.style import DEFAULT_STRENGTH


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Step:
    """One model's part of a job, with its settings filled in."""

    model: Model
    sampling: Sampling
    windows: Windows


def run(models: Models, request: Request, progress: OnProgress = ignore_progress) -> Result:
    """Runs a request.

    Args:
      models: Models of the job.
      request: The job.
      progress: Receives reports; an exception that it raises ends the job.

    Raises:
      UserError: A field of the request is missing, invalid or unused, an input cannot be read, or
        the models cannot run the request.
    """
    progress(Progress("reading"))
    application, base, upscalers, task = _prepare(models, request)
    steps = _plan(base, upscalers, task, request)
    audio, audio_warning = _read_audio(request, task)
    found = (
        _window_warning(steps[0], task),
        _strength_warning(steps[0], request),
        *task.warnings,
        audio_warning,
        *_text_warnings(steps, request),
        models.style_warning(request.style_strength) if base is not None else None,
    )
    warnings = tuple(dict.fromkeys(warning for warning in found if warning is not None))
    progress(Progress("reading", warnings=warnings))
    videos = task.low_resolution
    if base is not None:
        videos = sample_base(
            base,
            request.prompts,
            task.num_frames,
            steps[0].sampling,
            windows=steps[0].windows,
            prompt_schedule=request.prompt_schedule,
            known=task.known and task.known[base.resolution],
            start=task.start,
            strength=1.0 if request.strength is None else request.strength,
            on_chunk=_reporter(progress, "sampling", steps[0].windows),
        )
        videos = _paste(application, request, task, base, videos)
    for index, step in enumerate(steps[len(steps) - len(upscalers) :]):
        videos = sample_super_resolution(
            step.model,
            videos,
            request.prompts,
            step.sampling,
            windows=step.windows,
            prompt_schedule=request.prompt_schedule,
            index=index,
            noise_level=request.noise_level if step is steps[0] else None,
            on_chunk=_reporter(progress, "enlarging", step.windows),
        )
        videos = _paste(application, request, task, step.model, videos)
    if task.drop_last_frame:
        videos = videos[:, :-1]
    settings = _settings(models, request, steps, task)
    return Result(videos, task.fps, settings, warnings, audio)


def planned_settings(models: Models, request: Request) -> dict[str, Any]:
    """Returns the settings that the result of a request will have, without running it.

    Raises:
      UserError: See `run`.
    """
    _, base, upscalers, task = _prepare(models, request)
    return _settings(models, request, _plan(base, upscalers, task, request), task)


def _prepare(
    models: Models, request: Request
) -> tuple[Application, Model | None, Sequence[Model], Task]:
    """Checks a request and reads its inputs.

    Returns:
      The application, the base model if it is used, the upscalers that are used, and the task.
    """
    application = find_application(request.application)
    application.check(request)
    enlarge_only = application.model == "super_resolution"
    base = None if enlarge_only else models.styled_base(request.style_strength)
    upscalers = models.upscalers if enlarge_only or request.enlarge else ()
    chain = [*([] if base is None else [base]), *upscalers]
    _check_first(application, chain, models)
    _check_upscale_settings(request.sampling, chain)
    _check_memory(request, chain, request.num_frames or 1)
    task = application.prepare(request, chain[0], [model.resolution for model in chain])
    _check_memory(request, chain, task.num_frames, task.low_resolution)
    return application, base, upscalers, _one_input_per_prompt(task, len(request.prompts))


def _check_memory(
    request: Request,
    chain: Sequence[Model],
    num_frames: int,
    low_resolution: np.ndarray | None = None,
) -> None:
    """Checks that the videos of a result could fit in memory.

    Args:
      request: The job.
      chain: Its models.
      num_frames: Frames of a video.
      low_resolution: Videos `[N, T, H, W, 3]` that the first model enlarges.
    """
    height, width = (
        (chain[0].resolution,) * 2 if low_resolution is None else low_resolution.shape[2:4]
    )
    for model in chain[low_resolution is None :]:
        factor = model.super_resolution.factor
        height, width = factor * height, factor * width
    count = len(request.prompts)
    check_memory(
        f"prompts, num_frames: {count} videos of {num_frames} frames of {width}x{height} pixels",
        4 * count * num_frames * height * width * 3,
    )


_DEFAULTS = Sampling()
_GUIDANCE = ("guidance", "guidance_interval")  # fields of `Sampling` that apply to the first model
_WINDOWS = ("window", "overlap", "window_weights", "window_noise")


def _check_first(application: Application, chain: Sequence[Model], models: Models) -> None:
    if not chain:
        raise UserError("upscalers: none, expected a super-resolution model")
    if (missing := application.missing(chain[0])) is not None:
        enlarges = chain[0].super_resolution is not None and models.upscalers
        name = models.upscaler_names[0] if enlarges else models.base_name
        raise UserError(f"{name}: {missing}")


def _check_upscale_settings(sampling: Sampling, chain: Sequence[Model]) -> None:
    """Refuses settings of upscalers in a job without one after its first model."""
    for name in ("upscale_sampler", "upscale_steps", "upscale_guidance_scale"):
        if len(chain) == 1 and getattr(sampling, name) is not None:
            raise UserError(
                f"{name}: {getattr(sampling, name)!r} without an upscaler, expected an upscaler "
                "after the first model"
            )


def _one_input_per_prompt(task: Task, count: int) -> Task:
    """Repeats inputs that all prompts share."""

    def repeat(videos: np.ndarray) -> np.ndarray:
        if len(videos) not in (1, count):
            raise UserError(f"prompts: {count} texts, expected {len(videos)}, one per input")
        return videos if len(videos) == count else np.repeat(videos, count, axis=0)

    known = task.known and {
        side: KnownPixels(repeat(pixels.videos), repeat(pixels.mask))
        for side, pixels in task.known.items()
    }
    return dataclasses.replace(
        task,
        known=known,
        start=None if task.start is None else repeat(task.start),
        low_resolution=None if task.low_resolution is None else repeat(task.low_resolution),
    )


def _plan(
    base: Model | None, upscalers: Sequence[Model], task: Task, request: Request
) -> list[_Step]:
    """Settings and windows of every model; fails before any work if they are invalid."""
    steps, sampling = [], request.sampling
    for model in [*([] if base is None else [base]), *upscalers]:
        # A clip of given length is padded to the temporal stride; a requested length must fit.
        requested = model is base and task.known is None and task.start is None
        frames = task.num_frames if requested else padded_length(model, task.num_frames)
        settings = with_model_defaults(sampling.for_upscalers() if steps else sampling, model)
        steps.append(
            _Step(model=model, sampling=settings, windows=windows_for(model, frames, settings))
        )
    first = steps[0]
    window = first.model.num_frames if sampling.window is None else sampling.window
    check_schedule(request.prompt_schedule, first.windows, window)
    if sampling.guidance == "image":
        _check_image_guidance(first)
    return steps


def _check_image_guidance(step: _Step) -> None:
    """Checks that guidance by the image model can change anything."""
    if step.model.super_resolution is not None or step.windows.num_frames == 1:
        found = "an image" if step.windows.num_frames == 1 else "a super-resolution model"
        raise UserError(f"guidance: 'image' of {found}, expected a clip of a base model")


def _paste(
    application: Application, request: Request, task: Task, model: Model, videos: np.ndarray
) -> np.ndarray:
    wanted = application.paste_back if request.paste_back is None else request.paste_back
    if task.known is None or not wanted:
        return videos
    return paste(videos, task.known[model.resolution], request.feather)


def _reporter(progress: OnProgress, stage: str, windows: Windows) -> OnChunk:
    def on_chunk(done: int, total: int, estimate: Any) -> None:
        progress(Progress(stage, done, total, len(windows.starts), estimate=estimate))

    return on_chunk


def _window_warning(step: _Step, task: Task) -> str | None:
    """Returns a warning if windowed sampling degrades the request, else None."""
    windows = step.windows
    if len(windows.starts) == 1 or task.low_resolution is not None:
        return None
    length = f"num_frames: {windows.num_frames} frames are sampled in windows of {windows.length}"
    if task.known is not None:
        return f"{length}; each window sees only the known pixels inside it"
    if step.model.unet.temporal.frame_modulation:
        return f"{length}; the model treats each window as a whole clip"
    return None


def _strength_warning(step: _Step, request: Request) -> str | None:
    """Returns a warning if the strength of an edit is less than half a step."""
    strength, steps = request.strength, step.sampling.steps
    if not strength or round(strength * steps):
        return None
    return f"strength: {strength:g} of {steps} steps is none, so that the result is the input"


def _text_warnings(steps: Sequence[_Step], request: Request) -> Iterator[str]:
    """Yields warnings about texts that a model cannot read completely, or does not read."""
    negative = request.sampling.negative_prompt
    if negative and steps[0].model.unet.guidance_embedding:
        yield "negative_prompt: not used by a distilled model"
    elif negative and all(step.sampling.guidance_scale == 1 for step in steps):
        yield "negative_prompt: not used, because guidance_scale is 1"
    elif negative and request.sampling.guidance == "image":
        yield "negative_prompt: not used by the first model, because guidance is 'image'"
    for name in _GUIDANCE:
        if getattr(request.sampling, name) != getattr(_DEFAULTS, name):
            if steps[0].model.unet.guidance_embedding:
                yield f"{name}: not used by a distilled model"
            elif steps[0].sampling.guidance_scale == 1:
                yield f"{name}: not used, because guidance_scale is 1"
    for step in steps:
        yield from step.model.tokenizer.warnings(request.prompts, "prompt")
        scheduled = [text for _, text in request.prompt_schedule]
        yield from step.model.tokenizer.warnings(scheduled, "prompt_schedule")
        yield from step.model.tokenizer.warnings([negative], "negative_prompt")


def _read_audio(request: Request, task: Task) -> tuple[bytes | None, str | None]:
    """Returns the audio of the input if the result has its duration, and a warning if not."""
    path = request.files.get("video") or request.files.get("image")
    if path is None or not has_audio(path):
        return None, None
    found, expected = task.result_frames / task.fps, probe(path).seconds
    # Resampling rounds a duration to frames.
    if abs(found - expected) > 1 / task.fps:
        return None, (
            f"{path}: audio is dropped, because the result lasts {found:.2f} s and the input "
            f"{expected:.2f} s"
        )
    try:
        return read_audio(path), None
    except UserError as error:
        return None, f"{error}; the result has no audio"


def _settings(
    models: Models, request: Request, steps: Sequence[_Step], task: Task
) -> dict[str, Any]:
    """Everything that determined a result, as JSON values without folders of this machine."""
    application = find_application(request.application)
    fields = [option.field for option in application.options]
    values = {name: getattr(request, name) for name in fields if name not in request.files}
    values = {name: _json_value(value) for name, value in values.items()}
    values = {name: value for name, value in values.items() if value not in (None, [])}
    if values.get("paste_back") == application.paste_back:
        del values["paste_back"]
    used = {}
    if any(step.model.super_resolution is None for step in steps):
        used["model"] = short_name(models.base_name)
        if models.style is not None and request.style_strength != 0:
            used["style"] = short_name(models.style_name)
            strength = request.style_strength
            used["style_strength"] = DEFAULT_STRENGTH if strength is None else strength
    enlarging = [step for step in steps if step.model.super_resolution is not None]
    if enlarging:
        if "model" in used:
            used["enlarge"] = True
        used["upscale"] = [short_name(name) for name in models.upscaler_names]
        used |= {f"upscale_{name}": values for name, values in _per_model(enlarging).items()}
    return {
        "application": request.application,
        "prompt": request.prompts[0] if len(set(request.prompts)) == 1 else list(request.prompts),
        **values,
        **{name: Path(path).name for name, path in request.files.items()},
        **used,
        "seed": request.sampling.seed,
        **{name: value for name, (value,) in _per_model(steps[:1]).items()},
        **{
            name: _json_value(value)
            for name in (*_GUIDANCE, *_WINDOWS, "negative_prompt")
            if (value := getattr(request.sampling, name)) != getattr(_DEFAULTS, name)
        },
        "num_frames": task.result_frames,
        "fps": task.fps,
        "stunet": stunet.__version__,
    }


def _json_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json_value(item) for item in value]
    return f"array {np.shape(value)}" if hasattr(value, "shape") else value


def _per_model(steps: Sequence[_Step]) -> dict[str, list[Any]]:
    """Returns the values that each model has of its own, as JSON values by field."""
    settings = [step.sampling for step in steps]
    return {
        "sampler": [sampler_to_dict(sampling.sampler) for sampling in settings],
        "steps": [sampling.steps for sampling in settings],
        "guidance_scale": [sampling.guidance_scale for sampling in settings],
    }
