"""Videos from text, and larger videos from small ones."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stunet.diffusion import (
    AUGMENTATION_NOISE,
    SuperResolution,
    augment,
    keyed_noise,
    upsample,
)
from stunet.engine.given import FEATHER, check_masked, check_videos, padded, pasted
from stunet.engine.sampling import Sampling, check_makes_videos, frames_of, sample
from stunet.errors import UserError
from stunet.model import Model


def generate(
    model: Model, prompts: Sequence[str], *, num_frames: int | None = None, **sampling: Any
) -> np.ndarray:
    """Samples one video for each prompt.

    Args:
      model: from `load`.
      prompts: N texts; `""` asks for any video.
      num_frames: 1 (an image), or any number that a window of it suits; by default what the
        model was trained on.
      **sampling: fields of `Sampling`.

    Returns:
      `[N, T, H, W, 3]` float32 in [-1, 1].

    Raises:
      UserError: no prompt, a frame count, sampler, number of steps, windows or seed that cannot
        be, the model has no text encoder or is for super-resolution, or its output is not finite.
    """
    check_makes_videos(model)
    shape = (frames_of(model, num_frames), model.resolution, model.resolution, 3)
    return sample(model, prompts, shape, Sampling(**sampling))


def upscale(
    model: Model,
    videos: np.ndarray,
    prompts: Sequence[str],
    *,
    noise_level: float | None = None,
    filled: tuple[np.ndarray, np.ndarray] | None = None,
    feather: float = FEATHER,
    **sampling: Any,
) -> np.ndarray:
    """Enlarges each video by the model's `super_resolution.factor`.

    Args:
      model: from `load`, of the stage "ssr".
      videos: `[N, T, h, w, 3]` in [-1, 1]; h and w need not be those of the training.
      prompts: N texts, what each video shows.
      noise_level: of the augmentation, on IF's timestep scale; by default the model's own. More
        makes up more detail and follows the video less.
      filled: videos and masks as for `fill`, of the result's size: what the masks do not cover
        comes back to the bit.
      feather: of that, as for `fill`.
      **sampling: fields of `Sampling`. `steps` are the model's own by default; `windows_at_once`
        bounds the network's memory.

    Returns:
      `[N, T, factor * h, factor * w, 3]` float32 in [-1, 1].

    Raises:
      UserError: as `generate`, or the model is not for super-resolution, the videos are not as
        many as the prompts or of a size that the model cannot take, or the level is not one.
    """
    if model.super_resolution is None:
        raise UserError("the model makes videos; enlarging one takes a super-resolution model")
    check_videos("videos", videos, len(prompts))
    config = model.super_resolution
    noise_level = config.noise_level if noise_level is None else noise_level
    if not 0 <= noise_level <= config.max_noise_level:
        raise UserError(
            f"noise_level is {noise_level}; the model was trained on 0..{config.max_noise_level:g}"
        )
    _, frames, height, width, _ = videos.shape
    videos = padded(model, videos)
    shape = (videos.shape[1], config.factor * height, config.factor * width, 3)
    if filled is not None:
        check_masked(*filled, (len(prompts), frames, *shape[1:]))

    def low(key: jax.Array, rows: np.ndarray) -> dict[str, jax.Array]:
        return _augmented(config, shape, key, rows, videos[rows], noise_level)

    options = Sampling(**sampling)
    if options.steps is None:
        options = dataclasses.replace(options, steps=config.steps)
    result = sample(model, prompts, shape, options, low)[:, :frames]
    return result if filled is None else pasted(result, *filled, feather)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _augmented(
    config: SuperResolution,
    shape: tuple[int, ...],
    key: jax.Array,
    positions: jax.Array,
    videos: jax.Array,
    level: float,
) -> dict[str, jax.Array]:
    """What a super-resolution network is shown: noised once for the clip, not for each window.

    `large` is what the network's details are added to, if that is what it makes.
    """
    levels = jnp.full(len(videos), level, jnp.float32)
    eps = keyed_noise(key, positions, shape)(AUGMENTATION_NOISE)
    large = upsample(jnp.asarray(videos, jnp.float32), config.factor, config.align_corners)
    low = augment(large, eps, levels)
    shown = {"low": low, "noise_level": levels}
    return {**shown, "large": large} if config.residual_scale else shown
