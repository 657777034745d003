"""Images of the backgrounds."""

import functools

import numpy as np

from data.moving_shapes.vocabulary import BACKGROUNDS

STRIPES = 8  # horizontal stripes in a frame


@functools.cache
def backdrop(name: str, resolution: int) -> np.ndarray:
    """Returns a background, `[resolution, resolution, 3]` float32 in [0, 1], read-only."""
    first, second = np.array(BACKGROUNDS[name])
    height = (np.arange(resolution) + 0.5) / resolution
    if name == "striped":
        # Mean of a square wave over each row of pixels: differences of its integral.
        edges = np.arange(resolution + 1) / resolution * STRIPES
        integral = edges // 2 + np.maximum(edges % 2 - 1, 0)
        share = np.diff(integral) * resolution / STRIPES
    else:
        share = height
    column = first + share[:, None] * (second - first)
    picture = np.broadcast_to(column[:, None, :], (resolution, resolution, 3)).astype(np.float32)
    picture.setflags(write=False)
    return picture
