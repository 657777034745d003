"""Feature extractors: what turns clips into numbers that a metric compares.

Any network becomes one as a value of `Extractor`; I3D, C3D and CLIP are in the modules beside.
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
    """How frames become squares.

    Attributes:
      size: their height and width in pixels.
      method: "bilinear", of the middle square and without anti-aliasing, as code for FVD has
        resized since the first (`tf.image.resize_bilinear`); or "bicubic", of 8-bit frames and
        anti-aliased, the shorter side to `size`, then the middle, as CLIP's own.
    """

    size: int
    method: Literal["bilinear", "bicubic"]

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        """`[T, H, W, 3]` in [-1, 1] -> `[T, size, size, 3]`."""
        height, width = clip.shape[1:3]
        if self.method == "bicubic":
            short, long = self.size, int(self.size * max(height, width) / min(height, width))
            wide, high = (short, long) if width <= height else (long, short)
            images = (Image.fromarray(frame) for frame in to_uint8(clip))
            resized = [image.resize((wide, high), Image.Resampling.BICUBIC) for image in images]
            return to_float(np.stack([_middle(np.asarray(image), self.size) for image in resized]))
        square = np.stack([_middle(frame, min(height, width)) for frame in clip])
        shape = (len(clip), self.size, self.size, 3)
        return np.asarray(jax.image.resize(square, shape, "linear", antialias=False))

    def __str__(self) -> str:
        return f"{self.method} to {self.size}x{self.size}, the middle of what is not square"


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network as a metric sees it.

    Attributes:
      name: for reports.
      features: `[B, T, size, size, 3]` in [-1, 1] -> `[B, ...]`.
      resize: from the clips' size to the network's.
      min_frames: that a clip must have.
      max_frames: that a clip may have; None for any number.
      weights_sha256: of the file that the weights are from.
    """

    name: str
    features: Callable[[np.ndarray], jax.Array]
    resize: Resize
    min_frames: int
    max_frames: int | None
    weights_sha256: str

    def check_frames(self, frames: int) -> None:
        """Raises a UserError where clips of so many frames do not suit."""
        if not self.min_frames <= frames <= (self.max_frames or frames):
            wanted = f"{self.min_frames}"
            if self.max_frames is None:
                wanted += " or more"
            raise UserError(f"{self.name} takes clips of {wanted} frames, not of {frames}")

    def __call__(self, clips: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        """Features `[B, ...]` of up to `batch_size` clips `[T, H, W, 3]` in [-1, 1].

        What is missing to a whole batch is filled up, so that one program is compiled for all.
        """
        resized = np.stack([self.resize(clip) for clip in clips])
        rows = np.minimum(np.arange(batch_size), len(clips) - 1)
        # Accelerators else multiply in bfloat16 or TF32, which moves a score.
        with jax.default_matmul_precision("highest"):
            return np.asarray(self.features(resized[rows]))[: len(clips)]

    def described(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "network": self.name,
            "weights_sha256": self.weights_sha256,
            "resize": str(self.resize),
        }


def _middle(frame: np.ndarray, size: int) -> np.ndarray:
    """The middle square of `[H, W, 3]`, the upper left one where two are."""
    top, left = (frame.shape[0] - size) // 2, (frame.shape[1] - size) // 2
    return frame[top : top + size, left : left + size]
