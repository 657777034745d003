"""A model and those that enlarge its videos, one after the other."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from stunet.diffusion import Windows
from stunet.engine.applications import fill
from stunet.engine.given import whole_strides
from stunet.engine.making import upscale
from stunet.engine.sampling import OnChunk, windows_of
from stunet.errors import UserError
from stunet.model import Model

# Shows how one sampling of these windows goes on, by the `on_chunk` that it gives.
Progress = Callable[[Windows], AbstractContextManager[OnChunk]]
# A resolution R -> `fill`'s videos [N, T, R, R, 3] and masks [N, T, R, R, 1].
Filled = Callable[[int], tuple[np.ndarray, np.ndarray]]


def check_cascade(model: Model, names: Sequence[str], upscalers: Sequence[Model]) -> None:
    """That each model has a text encoder and takes the size that the one before it makes.

    Args:
      model: makes the video.
      names: of all of them, in turn, for errors.
      upscalers: enlarge it.

    Raises:
      UserError: one of them does not.
    """
    if model.super_resolution is not None:
        raise UserError(f"{names[0]}: a super-resolution model; name it by --upscale")
    made = model.resolution
    for name, upscaler in zip(names[1:], upscalers, strict=True):
        if upscaler.super_resolution is None:
            raise UserError(f"{name}: no super-resolution model, which --upscale takes")
        if made * upscaler.super_resolution.factor != upscaler.resolution:
            raise UserError(
                f"{name}: enlarges {upscaler.resolution // upscaler.super_resolution.factor} "
                f"pixels, but is given {made}"
            )
        made = upscaler.resolution
    for name, one in zip(names, (model, *upscalers), strict=True):
        if one.text_encoder is None:
            raise UserError(
                f"{name}: the model has no text encoder, which prompts need; "
                f"`stunet import-t5 T5_FOLDER {name}` adds one"
            )


def enlarge(
    upscalers: Sequence[Model],
    videos: np.ndarray,
    prompts: Sequence[str],
    progress: Progress,
    filled: Filled | None = None,
    **sampling: Any,
) -> np.ndarray:
    """Enlarges videos `[N, T, h, w, 3]` by each model.

    Args:
      upscalers: super-resolution models, each of which takes the size that the one before makes.
      videos: in [-1, 1].
      prompts: N texts.
      progress: of each model's sampling.
      filled: gives `upscale`'s argument at a resolution.
      **sampling: fields of `Sampling`; a model that says its own number of steps keeps to it, as
        `steps` is for the base model.

    Returns:
      `[N, T, H, W, 3]` float32 in [-1, 1].

    Raises:
      UserError: as `upscale`.
    """
    for upscaler in upscalers:
        frames = whole_strides(upscaler, videos.shape[1])
        steps = upscaler.super_resolution.steps or sampling.get("steps")
        with progress(windows_of(upscaler, frames)) as on_chunk:
            videos = upscale(
                upscaler,
                videos,
                prompts,
                filled=None if filled is None else filled(upscaler.resolution),
                on_chunk=on_chunk,
                **{**sampling, "steps": steps},
            )
    return videos


def fill_and_enlarge(
    model: Model,
    upscalers: Sequence[Model],
    given: tuple[np.ndarray, np.ndarray],
    filled: Filled,
    prompts: Sequence[str],
    progress: Progress,
    paste_back: bool,
    **sampling: Any,
) -> np.ndarray:
    """`fill`, then `enlarge` with the same pixels given at the larger sizes.

    Args:
      model: of stage "conditional".
      upscalers: as for `enlarge`.
      given: videos and masks for `fill`: `filled(model.resolution)`.
      filled: gives the same at any resolution.
      prompts: N texts.
      progress: of each model's sampling.
      paste_back: whether kept pixels come back to the bit, at the last size.
      **sampling: fields of `Sampling`.

    Returns:
      `[N, T, H, W, 3]` float32 in [-1, 1].

    Raises:
      UserError: as `fill` and `upscale`.
    """
    frames = whole_strides(model, given[0].shape[1])
    with progress(windows_of(model, frames)) as on_chunk:
        videos = fill(model, *given, prompts, paste_back=paste_back, on_chunk=on_chunk, **sampling)
    kept = filled if paste_back else None
    return enlarge(upscalers, videos, prompts, progress, kept, **sampling)


def said_of_windows(
    model: Model, upscalers: Sequence[Model], num_frames: int, given: bool
) -> str | None:
    """What to tell where windows cost more than a seam; None where there is nothing to.

    Args:
      model: makes the video.
      upscalers: enlarge it.
      num_frames: of the video.
      given: whether pixels are given to the model.

    Raises:
      UserError: one of the models has no windows for so many frames.
    """
    for one in upscalers:
        windows_of(one, whole_strides(one, num_frames))
    windows = windows_of(model, num_frames)
    if len(windows.starts) == 1:
        return None
    length = f"{num_frames} frames go through windows of {windows.length}"
    if given:
        return f"{length}, each of which sees only what is given in it"
    if model.unet.temporal.frame_modulation:
        return f"{length}, each of which the model takes for a whole clip"
    return None
