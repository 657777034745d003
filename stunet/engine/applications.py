"""What a model does with given images and videos, and with the weights of a style."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stunet.diffusion import COND_CHANNELS, mask_conditioning
from stunet.engine.given import (
    FEATHER,
    check_masked,
    check_videos,
    given_frames,
    given_still,
    padded,
    pasted,
)
from stunet.engine.sampling import Sampling, check_makes_videos, frames_of, sample
from stunet.errors import UserError
from stunet.model import Model
from stunet.weights.style import interpolate_style


def stylised(model: Model, style: Model, strength: float, where: str = "the style") -> Model:
    """The model with its text-to-image weights moved towards another's, tuned to a style.

    Args:
      model: from `load`.
      style: likewise, of images or of videos; only its U-Net's text-to-image part counts.
      strength: 0 leaves the model as it is, 1 swaps the weights; the paper's are 0.5 to 1.
      where: the style's name, for errors.

    Raises:
      UserError: the strength is beyond 0..1.5, or the style is of another network.
    """
    if style.prediction != model.prediction:
        raise UserError(
            f"{where}: predicts {style.prediction!r}, but the model predicts {model.prediction!r}"
        )
    unet = interpolate_style(model.params["unet"], style.params["unet"], strength, where)
    return dataclasses.replace(model, params={**model.params, "unet": unet})


def edit(
    model: Model, videos: np.ndarray, prompts: Sequence[str], *, strength: float, **sampling: Any
) -> np.ndarray:
    """Makes each video over to its prompt, from a noisy version of itself (SDEdit, 2108.01073).

    Args:
      model: from `load`.
      videos: `[N, T, H, W, 3]` in [-1, 1].
      prompts: N texts.
      strength: the share of the sampler's steps that is taken, 0 to 1: 0 gives the video back as
        it is, 1 is `generate`, which does not see it.
      **sampling: fields of `Sampling`.

    Returns:
      As `videos`.

    Raises:
      UserError: as `generate`, or the videos are not as many as the prompts or of a size that
        the model cannot take, or the strength is none.
    """
    check_makes_videos(model)
    check_videos("videos", videos, len(prompts))
    if not 0 <= strength <= 1:
        raise UserError(f"strength is {strength}; it must be within 0..1")
    whole = padded(model, videos)
    made = sample(model, prompts, whole.shape[1:], Sampling(**sampling), begin=(whole, strength))
    return made[:, : videos.shape[1]]


def fill(
    model: Model,
    videos: np.ndarray,
    masks: np.ndarray,
    prompts: Sequence[str],
    *,
    paste_back: bool = True,
    feather: float = FEATHER,
    **sampling: Any,
) -> np.ndarray:
    """Makes the part of each video that its mask covers.

    Args:
      model: from `load`, of stage "conditional".
      videos: `[N, T, H, W, 3]` in [-1, 1]; what the mask covers of them does not count.
      masks: `[N, T, H, W, 1]`, 1 where to fill in and 0 where the video is to be kept.
      prompts: N texts.
      paste_back: whether the kept pixels come back to the bit at the end; the model itself
        repeats them closely.
      feather: where they do, how far they fade out into what was filled in, as a share of the
        frame's shorter side.
      **sampling: fields of `Sampling`.

    Returns:
      As `videos`.

    Raises:
      UserError: as `generate`, or the model is not conditional, or videos or masks are not as
        many as the prompts, of one size, and of one that the model can take.
    """
    if model.unet.cond_channels != COND_CHANNELS:
        raise UserError("the model does not look at given pixels; name one of stage 'conditional'")
    check_videos("videos", videos, len(prompts))
    check_masked(videos, masks, videos.shape)
    if videos.shape[1] == 1:
        raise UserError("a single frame cannot be filled in: the model is given pixels of videos")
    whole, known = padded(model, videos), 1 - (padded(model, masks) > 0.5)

    def shown(key: jax.Array, rows: np.ndarray) -> dict[str, jax.Array]:
        return {
            "known": mask_conditioning(
                jnp.asarray(whole[rows]), jnp.asarray(known[rows], jnp.float32)
            )
        }

    made = sample(model, prompts, whole.shape[1:], Sampling(**sampling), shown)
    made = made[:, : videos.shape[1]]
    return pasted(made, videos, masks, feather) if paste_back else made


def animate(
    model: Model,
    images: np.ndarray,
    prompts: Sequence[str],
    *,
    num_frames: int | None = None,
    paste_back: bool = False,
    **options: Any,
) -> np.ndarray:
    """Makes a video of each image, which is its first frame: `[N, H, W, 3]` -> `[N, T, H, W, 3]`.

    `options` are those of `fill`, as are the errors.
    """
    clip = given_frames({0: images}, frames_of(model, num_frames))
    return fill(model, *clip, prompts, paste_back=paste_back, **options)


def interpolate(
    model: Model,
    first: np.ndarray,
    last: np.ndarray,
    prompts: Sequence[str],
    *,
    num_frames: int | None = None,
    paste_back: bool = False,
    **options: Any,
) -> np.ndarray:
    """Makes a video from a first frame to a last, each `[N, H, W, 3]`; otherwise as `animate`."""
    if first.shape != last.shape:
        raise UserError(f"the first frame has shape {first.shape}, the last one {last.shape}")
    clip = given_frames({0: first, -1: last}, frames_of(model, num_frames))
    return fill(model, *clip, prompts, paste_back=paste_back, **options)


def inpaint(
    model: Model, videos: np.ndarray, masks: np.ndarray, prompts: Sequence[str], **options: Any
) -> np.ndarray:
    """`fill` of a region that is the same in all frames, `masks` `[N, H, W, 1]`, or each frame's
    own, `[N, T, H, W, 1]`.
    """
    if masks.ndim == 4:
        masks = np.repeat(masks[:, None], videos.shape[1], axis=1)
    return fill(model, videos, masks, prompts, **options)


def cinemagraph(
    model: Model,
    images: np.ndarray,
    masks: np.ndarray,
    prompts: Sequence[str],
    *,
    num_frames: int | None = None,
    loop: bool = False,
    **options: Any,
) -> np.ndarray:
    """Lets a part of each image move, and nothing else.

    Args:
      model: from `load`, of stage "conditional".
      images: `[N, H, W, 3]` in [-1, 1], the first frame.
      masks: `[N, H, W, 1]`, 1 where it moves.
      prompts: N texts.
      num_frames: of the result; by default as the model was trained, less one for a loop.
      loop: whether the last frame leads back to the first.
      **options: of `fill`.

    Returns:
      `[N, T, H, W, 3]` float32 in [-1, 1].

    Raises:
      UserError: as `fill`.
    """
    frames = model.num_frames if num_frames is None else num_frames + loop
    clip = given_still(images, masks, frames, loop)
    made = fill(model, *clip, prompts, **options)
    return made[:, :-1] if loop else made
