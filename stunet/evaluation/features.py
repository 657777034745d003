"""Feature extractors: networks that map clips to features, for metrics to compare.

Any network can be wrapped in an `Extractor`; `i3d`, `c3d` and `clip` define theirs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from PIL import Image

from stunet.errors import UserError
from stunet.video_io import to_float, to_uint8


@dataclass(frozen=True)
class Resize:
    """Resizes frames to squares.

    Attributes:
      size: Height and width in pixels.
      method: "bilinear" crops the central square and resizes it without anti-aliasing, as the
        original code of FVD (`tf.image.resize_bilinear`). "bicubic" resizes the shorter side to
        `size` with anti-aliasing in 8 bits, then crops the centre, as the preprocessing of CLIP.
    """

    size: int
    method: Literal["bilinear", "bicubic"]

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        """Maps a clip `[T, H, W, 3]` in [-1, 1] to `[T, size, size, 3]`."""
        height, width = clip.shape[1:3]
        if self.method == "bicubic":
            short, long = self.size, int(self.size * max(height, width) / min(height, width))
            wide, high = (short, long) if width <= height else (long, short)
            images = (Image.fromarray(frame) for frame in to_uint8(clip))
            resized = [image.resize((wide, high), Image.Resampling.BICUBIC) for image in images]
            return to_float(
                np.stack([_centre_crop(np.asarray(image), self.size) for image in resized])
            )
        square = np.stack([_centre_crop(frame, min(height, width)) for frame in clip])
        shape = (len(clip), self.size, self.size, 3)
        return np.asarray(jax.image.resize(square, shape, "linear", antialias=False))

    def __str__(self) -> str:
        return f"{self.method} to {self.size}x{self.size}, the middle of what is not square"


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network that extracts features of clips.

    Attributes:
      name: Name in reports.
      features: Maps clips `[B, T, size, size, 3]` in [-1, 1] to features `[B, ...]`.
      resize: Resizes clips to the network's resolution.
      min_frames: Smallest number of frames of a clip.
      max_frames: Largest number of frames of a clip. None for any number.
      weights_sha256: SHA-256 of the files of the weights.
    """

    name: str
    features: Callable[[np.ndarray], jax.Array]
    resize: Resize
    min_frames: int
    max_frames: int | None
    weights_sha256: str

    def check_frames(self, frames: int) -> None:
        """Raises `UserError` if the network does not take clips of this many frames."""
        if not self.min_frames <= frames <= (self.max_frames or frames):
            expected = f"{self.min_frames}"
            if self.max_frames is None:
                expected += " or more"
            elif self.max_frames > self.min_frames:
                expected += f" to {self.max_frames}"
            raise UserError(f"{self.name}: clips of {frames} frames, expected {expected}")

    def __call__(self, clips: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        """Returns features `[B, ...]` of up to `batch_size` clips `[T, H, W, 3]` in [-1, 1].

        Smaller batches are padded to `batch_size`, so that only one program is compiled.
        """
        resized = np.stack([self.resize(clip) for clip in clips])
        rows = np.minimum(np.arange(batch_size), len(clips) - 1)
        # By default accelerators multiply in bfloat16 or TF32, which changes scores.
        with jax.default_matmul_precision("highest"):
            return np.asarray(self.features(resized[rows]))[: len(clips)]

    def describe(self) -> dict[str, Any]:
        """Returns the entries of a report that identify the network."""
        return {
            "network": self.name,
            "weights_sha256": self.weights_sha256,
            "resize": str(self.resize),
        }


def _centre_crop(frame: np.ndarray, size: int) -> np.ndarray:
    """Returns the central square of a frame `[H, W, 3]`, rounded to the upper left."""
    top, left = (frame.shape[0] - size) // 2, (frame.shape[1] - size) // 2
    return frame[top : top + size, left : left + size]
