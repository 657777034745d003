"""What applications are given, from files: images, videos and masks.

A model and those that enlarge its videos are given the same files at several sizes, so what is to
be filled in is a function of the size.
"""

import math
from pathlib import Path

import numpy as np

from stunet.engine.cascade import Filled
from stunet.engine.given import given_frames, given_still
from stunet.errors import UserError
from stunet.model import Model
from stunet.video_io import frame_size, margin_mask, read_video

Margins = tuple[int, int, int, int]  # pixels at the left, right, top and bottom
File = str | Path

NO_MARGINS = (0, 0, 0, 0)


def first_given(image: File, num_frames: int) -> Filled:
    """A video of which the first frame is given."""
    return lambda resolution: given_frames({0: _read_still(image, resolution)}, num_frames)


def ends_given(first: File, last: File, num_frames: int) -> Filled:
    """A video of which the first and the last frame are given.

    Raises:
      UserError: there is no frame between them.
    """
    if num_frames < 3:
        raise UserError(f"num_frames is {num_frames}: there is nothing between the two images")

    def filled(resolution: int) -> tuple[np.ndarray, np.ndarray]:
        ends = {0: _read_still(first, resolution), -1: _read_still(last, resolution)}
        return given_frames(ends, num_frames)

    return filled


def masked(video: File, mask: File, fps: float) -> Filled:
    """A video at `fps` without what is white in a mask, which is one image or a video.

    Raises:
      UserError: the two differ in size; when called, if they do in length, or the mask is all
        black or all white.
    """
    _check_mask_size(mask, video)

    def filled(resolution: int) -> tuple[np.ndarray, np.ndarray]:
        frames, pictures = (read_video(path, fps, resolution)[0] for path in (video, mask))
        if len(pictures) not in (1, len(frames)):
            raise UserError(
                f"{mask}: has {len(pictures)} frames at {fps:g} a second, "
                f"{video} {len(frames)}; a mask is one image, or as long as the video"
            )
        return frames[None], _as_mask(mask, pictures, len(frames))

    return filled


def widened(video: File, margins: Margins, fps: float) -> Filled:
    """A video at `fps` amid margins that are to be made.

    Raises:
      UserError: when called, if nothing of the margins is in the middle square.
    """

    def filled(resolution: int) -> tuple[np.ndarray, np.ndarray]:
        frames, _ = read_video(video, fps, resolution, margins=margins)
        pictures = margin_mask(video, margins, resolution)
        if pictures.max() < 0:
            raise UserError(
                "outpainting: all that is added is cropped away again, as the middle square is "
                "used; add to the other sides too"
            )
        return frames[None], _as_mask("outpainting", pictures, len(frames))

    return filled


def still_but(image: File, mask: File, num_frames: int, loop: bool) -> Filled:
    """An image that stands still but where a mask is white; its first frame is whole.

    Raises:
      UserError: the two differ in size; when called, if the mask is all black or all white.
    """
    _check_mask_size(mask, image)

    def filled(resolution: int) -> tuple[np.ndarray, np.ndarray]:
        pictures = _as_mask(mask, _read_still(mask, resolution), 1)[:, 0]
        return given_still(_read_still(image, resolution), pictures, num_frames, loop)

    return filled


def to_enlarge(video: File, model: Model) -> tuple[np.ndarray, float]:
    """A whole video `[1, T, h, w, 3]` of the size that a super-resolution model enlarges, and its
    frames per second.
    """
    factor, stride = model.super_resolution.factor, model.unet.spatial_stride
    frames, fps = read_video(
        video,
        resolution=model.resolution // factor,
        multiple_of=stride // math.gcd(stride, factor),
    )
    return frames[None], fps


def said_of_crop(path: File, margins: Margins = NO_MARGINS) -> str | None:
    """What to tell of a picture of which the middle square is used; None where it is all."""
    height, width = frame_size(path)
    width, height = width + margins[0] + margins[1], height + margins[2] + margins[3]
    side = min(width, height)
    if width == height:
        return None
    return f"{path}: {width}x{height} is cropped to its middle, {side}x{side}"


def _read_still(path: File, resolution: int) -> np.ndarray:
    """The first frame, `[1, R, R, 3]` in [-1, 1]."""
    return read_video(path, resolution=resolution, max_frames=1)[0]


def _as_mask(name: File, pictures: np.ndarray, frames: int) -> np.ndarray:
    """Pictures `[T or 1, R, R, 3]` of white and black as `[1, T, R, R, 1]` of 1 and 0."""
    mask = (pictures.mean(-1, keepdims=True) > 0).astype(np.float32)
    if mask.min() == mask.max():
        said = (
            ("black", "nothing is to be made") if mask.max() == 0 else ("white", "nothing is kept")
        )
        raise UserError(f"{name}: the mask is {said[0]} all over: {said[1]}")
    return np.repeat(mask, frames // len(mask), axis=0)[None]


def _check_mask_size(mask: File, picture: File) -> None:
    sizes = [frame_size(path) for path in (mask, picture)]
    if sizes[0] != sizes[1]:
        of_mask, of_picture = (f"{width}x{height}" for height, width in sizes)
        raise UserError(f"{mask}: is {of_mask}, but {picture} is {of_picture}; make them equal")
