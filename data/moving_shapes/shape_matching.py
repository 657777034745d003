"""Recognises silhouettes and their orientation by template matching.

Silhouettes are compared as patches that are centred on the centroid and scaled by the square root
of the area, so that only the orientation has to be searched.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from data.moving_shapes.silhouettes import mark_distance, signed_distance
from data.moving_shapes.vocabulary import SHAPES

PATCH = 20  # height and width of a patch in pixels
REACH = 1.15  # half the width of a patch, in units of the square root of the area
NUM_ANGLES = 36
BLUR = 0.9  # standard deviation in pixels for templates, similar to a small object's edges


class Match(NamedTuple):
    """The recognised shape of a clip, and its pose in each frame (as in `render.Pose`).

    Attributes:
      shape: One of `vocabulary.SHAPES`.
      x, y: Centre, in units of the frame, `[T]`.
      radius: In units of the frame, `[T]`.
      angle: Radians clockwise, `[T]`.
      weight: 1 for frames that show the object, else 0, `[T]`.
    """

    shape: str
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    weight: np.ndarray


class _Templates(NamedTuple):
    patches: np.ndarray  # [shapes, angles, PATCH * PATCH], zero mean and unit norm
    area: np.ndarray  # [shapes], in squared nominal radii
    centroid: np.ndarray  # [shapes, angles, 2], in nominal radii


def match_shape(silhouettes: np.ndarray) -> Match:
    """Recognises the shape in a clip.

    Args:
      silhouettes: `[T, H, W]` in [0, 1], how much of each pixel the object (without its mark)
        covers.
    """
    height, width = silhouettes.shape[1:]
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    area = silhouettes.sum((1, 2))
    safe = np.maximum(area, 1e-6)
    x = (silhouettes * columns).sum((1, 2)) / safe
    y = (silhouettes * rows[:, None]).sum((1, 2)) / safe
    visible = area >= 6  # pixels; fewer are not recognisable
    templates = _templates()
    patches = np.stack(
        [_patch(*frame) for frame in zip(silhouettes, x, y, np.sqrt(safe), strict=True)]
    )
    scores = np.einsum("tp,sap->tsa", _normalise(patches), templates.patches)
    # Small silhouettes are too coarse; the larger ones decide the shape.
    weight = np.where(visible, np.minimum(area, 0.6 * area.max(initial=0)) ** 2, 0)
    best = int((weight[:, None] * scores.max(2)).sum(0).argmax())
    index = scores[:, best].argmax(1)
    radius = np.sqrt(safe / templates.area[best])
    offset = templates.centroid[best, index] * radius[:, None]
    return Match(
        SHAPES[best],
        (x - offset[:, 0]) / width,
        (y - offset[:, 1]) / height,
        radius / width,
        2 * np.pi * index / NUM_ANGLES,
        visible.astype(float),
    )


def _patch(frame: np.ndarray, x: float, y: float, root_area: float) -> np.ndarray:
    step = np.linspace(-REACH, REACH, PATCH) * max(root_area, 1.0)
    grid = np.meshgrid(y - 0.5 + step, x - 0.5 + step, indexing="ij")
    # Avoids aliasing for large objects, whose patches are subsampled.
    blurred = ndimage.gaussian_filter(frame, 0.5 * (step[1] - step[0]))
    return ndimage.map_coordinates(blurred, grid, order=1).ravel()


def _normalise(patches: np.ndarray) -> np.ndarray:
    centred = patches - patches.mean(-1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-6)


@functools.cache
def _templates() -> _Templates:
    fine = np.linspace(-1.4, 1.4, 113)
    cell = (fine[1] - fine[0]) ** 2
    angles = 2 * np.pi * np.arange(NUM_ANGLES) / NUM_ANGLES
    turns = np.stack([np.cos(angles), np.sin(angles)], -1)
    patches, areas, centroids = [], [], []
    for shape in SHAPES:
        y, x = np.meshgrid(fine, fine, indexing="ij")
        inside = (signed_distance(shape, x, y) < 0) & (mark_distance(shape, x, y) > 0)
        area = inside.sum() * cell
        cx, cy = x[inside].mean(), y[inside].mean()
        step = np.linspace(-REACH, REACH, 4 * PATCH) * np.sqrt(area)
        for cos, sin in turns:
            centre = (cos * cx - sin * cy, sin * cx + cos * cy)
            v, u = np.meshgrid(centre[1] + step, centre[0] + step, indexing="ij")
            u, v = cos * u + sin * v, cos * v - sin * u
            ideal = (signed_distance(shape, u, v) < 0) & (mark_distance(shape, u, v) > 0)
            soft = ndimage.gaussian_filter(ideal.astype(np.float32), 4 * BLUR)
            patches.append(soft.reshape(PATCH, 4, PATCH, 4).mean((1, 3)).ravel())
            centroids.append(centre)
        areas.append(area)
    count = len(SHAPES)
    return _Templates(
        _normalise(np.array(patches)).reshape(count, NUM_ANGLES, -1),
        np.array(areas),
        np.array(centroids).reshape(count, NUM_ANGLES, 2),
    )
