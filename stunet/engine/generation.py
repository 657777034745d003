"""Sampling of a base model, of super-resolution, and pasting of known pixels: arrays to arrays."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from stunet.diffusion import (
    AUGMENTATION_NOISE,
    SuperResolution,
    Windows,
    augment,
    keyed_noise,
    mask_conditioning,
    paste_known,
    upsample,
)
from stunet.engine.inputs import KnownPixels
from stunet.engine.request import PromptSchedule, Sampling
from stunet.engine.sampling import BASE_STREAM, EDIT_STREAM, UPSCALE_STREAM, OnChunk, sample
from stunet.errors import UserError
from stunet.model import Model


def padded_length(model: Model, num_frames: int) -> int:
    """Returns the number of frames rounded up to the model's temporal stride; 1 stays 1."""
    return num_frames + (-num_frames % model.unet.temporal_stride if num_frames > 1 else 0)


def sample_base(
    model: Model,
    prompts: Sequence[str],
    num_frames: int,
    sampling: Sampling,
    *,
    windows: Windows,
    prompt_schedule: PromptSchedule = (),
    known: KnownPixels | None = None,
    start: np.ndarray | None = None,
    strength: float = 1.0,
    on_chunk: OnChunk | None = None,
) -> np.ndarray:
    """Samples videos of the model's resolution.

    Args:
      model: A model of images or videos.
      prompts: N texts.
      num_frames: Frames of the result. Without `known` and `start`, a multiple of the model's
        temporal stride.
      sampling: Sampler settings.
      windows: Windows over `padded_length` frames.
      prompt_schedule: See `sample`.
      known: Known pixels that the network sees (2401.12945 section 4.2).
      start: Videos `[N, T, H, W, 3]` to start from (SDEdit).
      strength: See `sample`.
      on_chunk: See `sample`.

    Returns:
      `[N, T, H, W, 3]` float32 in [-1, 1].
    """
    shape = (windows.num_frames, model.resolution, model.resolution, 3)
    conditioning = None
    if known is not None:
        videos, mask = (_pad_frames(model, array) for array in (known.videos, known.mask > 0.5))

        def conditioning(key: jax.Array, rows: np.ndarray) -> dict[str, jax.Array]:
            del key
            mask_rows = jnp.asarray(mask[rows], jnp.float32)
            return {"known": mask_conditioning(jnp.asarray(videos[rows]), mask_rows)}

    result = sample(
        model,
        prompts,
        shape,
        sampling,
        windows=windows,
        prompt_schedule=prompt_schedule,
        conditioning=conditioning,
        start=None if start is None else _pad_frames(model, start),
        strength=strength,
        stream=BASE_STREAM if start is None else EDIT_STREAM,
        on_chunk=on_chunk,
    )
    return result[:, :num_frames]


def sample_super_resolution(
    model: Model,
    videos: np.ndarray,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    windows: Windows,
    prompt_schedule: PromptSchedule = (),
    index: int = 0,
    noise_level: float | None = None,
    on_chunk: OnChunk | None = None,
) -> np.ndarray:
    """Enlarges videos by the model's `super_resolution.factor`.

    Args:
      model: A super-resolution model.
      videos: `[N, T, h, w, 3]` in [-1, 1]; h and w need not be those of the training.
      prompts: N texts, what each video shows.
      sampling: Sampler settings.
      windows: Windows over `padded_length` frames.
      prompt_schedule: See `sample`.
      index: Number of upscalers before this one, which selects the stream of random numbers.
      noise_level: Level of the noise-conditioning augmentation. None uses the model's own.
      on_chunk: See `sample`.

    Returns:
      `[N, T, factor * h, factor * w, 3]` float32 in [-1, 1].

    Raises:
      UserError: The noise level is outside the model's range, or as `sample`.
    """
    config, (_, num_frames, height, width, _) = model.super_resolution, videos.shape
    noise_level = config.noise_level if noise_level is None else noise_level
    if not 0 <= noise_level <= config.max_noise_level:
        raise UserError(
            f"noise_level: invalid value {noise_level}, expected 0 to {config.max_noise_level:g}"
        )
    videos = _pad_frames(model, videos)
    shape = (videos.shape[1], config.factor * height, config.factor * width, 3)

    def conditioning(key: jax.Array, rows: np.ndarray) -> dict[str, jax.Array]:
        return _low_resolution_conditioning(config, shape, key, rows, videos[rows], noise_level)

    result = sample(
        model,
        prompts,
        shape,
        sampling,
        windows=windows,
        prompt_schedule=prompt_schedule,
        conditioning=conditioning,
        stream=UPSCALE_STREAM + index,
        on_chunk=on_chunk,
    )
    return result[:, :num_frames]


def paste(videos: np.ndarray, known: KnownPixels, feather: float) -> np.ndarray:
    """Replaces known pixels in generated videos; `feather` is a fraction of the shorter side."""
    return paste_known(videos, known.videos, known.mask, feather * min(videos.shape[2:4]))


def _pad_frames(model: Model, videos: np.ndarray) -> np.ndarray:
    """Repeats the last frame up to a multiple of the model's temporal stride."""
    missing = padded_length(model, videos.shape[1]) - videos.shape[1]
    return np.pad(videos, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0)), mode="edge")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _low_resolution_conditioning(
    config: SuperResolution,
    shape: tuple[int, ...],
    key: jax.Array,
    positions: jax.Array,
    videos: jax.Array,
    level: float,
) -> dict[str, jax.Array]:
    """Noise-conditioning augmentation (Imagen, 2205.11487 section 2.4), drawn once per clip.

    `large` is the enlarged clip that a residual model's output is added to.
    """
    levels = jnp.full(len(videos), level, jnp.float32)
    eps = keyed_noise(key, positions, shape)(AUGMENTATION_NOISE)
    large = upsample(jnp.asarray(videos, jnp.float32), config.factor, config.align_corners)
    low = augment(large, eps, levels)
    conditioning = {"low": low, "noise_level": levels}
    return {**conditioning, "large": large} if config.residual_scale else conditioning
