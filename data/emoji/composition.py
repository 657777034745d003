"""Composition of a clip: an emoji with alpha over a plain background."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.emoji.vocabulary import BACKGROUNDS
from stunet.errors import UserError

_FRAME_MILLISECONDS = 42  # of all animations
_BACKGROUND_NOISE = 0.02  # standard deviation of a background's RGB


class Layout(NamedTuple):
    """Random choices of a clip.

    Attributes:
      phase: Where in its loop the animation begins, in [0, 1).
      size: Side of the emoji relative to the frame's.
      left: Position in the free space, 0 at the left edge of the frame and 1 at the right one.
      top: Position in the free space, 0 at the upper edge of the frame and 1 at the lower one.
      mirrored: Whether the emoji is mirrored horizontally.
      background: Key of `BACKGROUNDS`.
      colour: RGB of the background in [0, 1].
    """

    phase: float
    size: float
    left: float
    top: float
    mirrored: bool
    background: str
    colour: tuple[float, float, float]


def draw_layout(min_size: float, can_mirror: bool, rng: np.random.Generator) -> Layout:
    """Draws a layout with a size from `min_size` to 1."""
    phase, size, left, top = rng.random(4)
    background = tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    mirrored = bool(rng.random() < 0.5) and can_mirror
    noise = _BACKGROUND_NOISE * rng.standard_normal(3)
    colour = np.clip(np.array(BACKGROUNDS[background]) + noise, 0, 1)
    return Layout(
        phase, min_size + (1 - min_size) * size, left, top, mirrored, background, tuple(colour)
    )


def plain_layout(background: str, phase: float) -> Layout:
    """Returns the layout of a large, centred emoji."""
    return Layout(phase, 1.0, 0.5, 0.5, False, background, BACKGROUNDS[background])


def compose(
    animation: bytes, layout: Layout, num_frames: int, resolution: int, fps: float
) -> np.ndarray:
    """Composes a clip.

    Args:
      animation: A WebP file with alpha, repeated endlessly.
      layout: The random choices.
      num_frames: Number of frames T.
      resolution: Height and width in pixels.
      fps: Frames per second.

    Returns:
      `[T, resolution, resolution, 3]` uint8.
    """
    side = max(1, round(layout.size * resolution))
    left, top = (round(place * (resolution - side)) for place in (layout.left, layout.top))
    background = np.broadcast_to(
        np.float32(layout.colour) * 255, (num_frames, resolution, resolution, 3)
    ).copy()
    with Image.open(io.BytesIO(animation)) as image:
        count = getattr(image, "n_frames", 1)
        times = layout.phase * count + np.arange(num_frames) * (1000 / _FRAME_MILLISECONDS / fps)
        frames = read_frames(image, (np.floor(times).astype(int) % count).tolist(), side)
    if layout.mirrored:
        frames = frames[:, :, ::-1]
    rgb, alpha = frames[..., :3], frames[..., 3:].astype(np.float32) / 255
    region = background[:, top : top + side, left : left + side]
    region += alpha * (rgb - region)
    return np.rint(background).astype(np.uint8)


def read_frames(image: Image.Image, indices: Sequence[int], side: int) -> np.ndarray:
    """Returns frames of an animation, resampled with premultiplied alpha and anti-aliasing.

    Args:
      image: The opened animation.
      indices: Numbers of the frames. Each frame is decoded once, in the order of the file.
      side: Height and width in pixels.

    Returns:
      `[len(indices), side, side, 4]` uint8, not premultiplied.
    """
    decoded = {}
    for index in sorted(set(indices)):
        image.seek(index)
        frame = image.convert("RGBA")
        if frame.size != (side, side):
            frame = frame.resize((side, side), Image.Resampling.BICUBIC)
        decoded[index] = np.asarray(frame)
    return np.stack([decoded[index] for index in indices])


def shrink(path: Path, side: int) -> bytes:
    """Returns a WebP file with `side` x `side` pixels: the file itself, or a lossless copy.

    Raises:
      UserError: The file is no picture, or has no alpha channel.
    """
    with _open(path) as image:
        if image.size == (side, side):
            return path.read_bytes()
        count = getattr(image, "n_frames", 1)
        first, *others = map(Image.fromarray, read_frames(image, range(count), side))
    content = io.BytesIO()
    animated = {"save_all": True, "append_images": others, "loop": 0} if others else {}
    first.save(content, "WEBP", lossless=True, method=0, duration=_FRAME_MILLISECONDS, **animated)
    return content.getvalue()


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            if image.mode != "RGBA":
                raise UserError(f"{path}: has mode {image.mode}, expected a picture with alpha")
            yield image
    except (OSError, EOFError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be read ({error}), expected a picture in WebP") from error
