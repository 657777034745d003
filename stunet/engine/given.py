"""Videos that a model is given: their size, what is known of them, and pasting that back."""

from collections.abc import Mapping

import numpy as np

from stunet.diffusion import paste_known
from stunet.errors import UserError
from stunet.model import Model

FEATHER = 0.02  # of the frame's shorter side, that pasted pixels fade out over


def given_frames(
    frames: Mapping[int, np.ndarray], num_frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Videos and masks for `fill` of which some frames, `[N, H, W, 3]` by number, are given."""
    images = next(iter(frames.values()))
    n, height, width, _ = images.shape
    videos = np.zeros((n, num_frames, height, width, 3), np.float32)
    masks = np.ones((n, num_frames, height, width, 1), np.float32)
    for number, image in frames.items():
        videos[:, number], masks[:, number] = image, 0
    return videos, masks


def given_still(
    images: np.ndarray, masks: np.ndarray, num_frames: int, loop: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Videos and masks for `fill` in which images stand still but where `masks` `[N, H, W, 1]`
    are 1; the first frame is whole, and the last one too for a `loop`.
    """
    videos = np.repeat(images[:, None], num_frames, axis=1)
    masks = np.repeat(masks[:, None], num_frames, axis=1)
    masks[:, [0, -1] if loop else [0]] = 0
    return videos, masks


def whole_strides(model: Model, num_frames: int) -> int:
    """The frames that a given video of `num_frames` is filled up to: whole temporal strides."""
    return num_frames + (-num_frames % model.unet.temporal_stride if num_frames > 1 else 0)


def padded(model: Model, videos: np.ndarray) -> np.ndarray:
    """Clips of any length made a multiple of the temporal stride, by more of the last frame."""
    missing = whole_strides(model, videos.shape[1]) - videos.shape[1]
    return np.pad(videos, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0)), mode="edge")


def pasted(made: np.ndarray, videos: np.ndarray, masks: np.ndarray, feather: float) -> np.ndarray:
    """What was made, with the videos brought back where the masks leave them."""
    return paste_known(made, videos, 1 - (masks > 0.5), feather * min(made.shape[2:4]))


def check_videos(name: str, videos: np.ndarray, count: int) -> None:
    """Raises a UserError unless there is one video for each of `count` prompts."""
    if videos.ndim != 5 or videos.shape[-1] != 3 or len(videos) != count:
        raise UserError(
            f"{name} have shape {videos.shape}; expected ({count}, T, H, W, 3), one for each prompt"
        )


def check_masked(videos: np.ndarray, masks: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises a UserError unless the videos have this shape and the masks suit it."""
    for name, array, wanted in (("videos", videos, shape), ("masks", masks, (*shape[:-1], 1))):
        if array.shape != wanted:
            raise UserError(f"{name} have shape {array.shape}; expected {wanted}")
