"""Geometry of the shapes: signed distances in the object's coordinates.

Coordinates are x to the right and y down, with a nominal radius of 1. Distances are negative
inside; they are exact along edges and a lower bound near corners, which suffices for
anti-aliasing.
"""

from typing import NamedTuple

import numpy as np


class Mark(NamedTuple):
    """Centre and radius of the dot inside a shape that makes its orientation visible."""

    x: float
    y: float
    radius: float


MARKS = {
    "circle": Mark(0.0, -0.50, 0.30),
    "square": Mark(0.0, -0.45, 0.28),
    "triangle": Mark(0.0, -0.45, 0.24),
    "star": Mark(0.0, -0.45, 0.24),
    "heart": Mark(-0.48, -0.26, 0.28),
    "cross": Mark(0.0, -0.66, 0.25),
    "ring": Mark(0.0, -0.75, 0.20),
    "crescent": Mark(-0.62, 0.0, 0.24),
}

# Largest distance of a silhouette's points from its origin, to keep it inside the frame.
EXTENTS = {
    "circle": 0.95,
    "square": 1.17,
    "triangle": 1.16,
    "star": 1.20,
    "heart": 1.18,
    "cross": 1.08,
    "ring": 1.00,
    "crescent": 1.00,
}


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the distance of points from the outline of `shape`, negative inside.

    Args:
      shape: One of `vocabulary.SHAPES`.
      x: Coordinates of the points, an array of any shape.
      y: Coordinates of the points, of the same shape.
    """
    return _DISTANCES[shape](x, y)


def mark_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the distance of points from the outline of the shape's mark, negative inside."""
    mark = MARKS[shape]
    return _disc(x - mark.x, y - mark.y, mark.radius)


def _disc(x, y, radius):
    return np.sqrt(x * x + y * y) - radius


def _box(x, y, half_width, half_height):
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _circle(x, y):
    return _disc(x, y, 0.95)


def _square(x, y):
    return _box(x, y, 0.82, 0.82)


def _triangle(x, y):
    # Equilateral, centred on its centroid: three half-planes at the in-radius.
    slanted = 0.8660254 * np.abs(x) - 0.5 * y
    return np.maximum(slanted, y) - 0.58


def _star(x, y):
    # Folded onto half of one point, a five-pointed star is a single half-plane: the line from a
    # tip at radius 1.2 to the notch at radius 0.52, 36 degrees further.
    angle = np.arctan2(np.abs(x), -y)
    folded = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.sqrt(x * x + y * y)
    along, across = radius * np.cos(folded), radius * np.sin(folded)
    return _STAR_NORMAL[0] * (along - 1.2) + _STAR_NORMAL[1] * across


def _star_normal():
    tip, notch = np.array([1.2, 0.0]), 0.52 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    edge = tip - notch
    normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
    return tuple(float(n) for n in normal)


_STAR_NORMAL = _star_normal()


def _heart(x, y):
    # A square on its corner with half a disc on each of the upper sides.
    u, v = 0.70710678 * (x + y - 0.24), 0.70710678 * (y - 0.24 - x)
    half = 0.66
    lobes = np.minimum(_disc(u, v + half, half), _disc(u + half, v, half))
    return np.minimum(_box(u, v, half, half), lobes)


def _cross(x, y):
    return np.minimum(_box(x, y, 1.02, 0.36), _box(x, y, 0.36, 1.02))


def _ring(x, y):
    return np.abs(_disc(x, y, 0.75)) - 0.25


def _crescent(x, y):
    return np.maximum(_disc(x, y, 1.0), -_disc(x - 0.55, y, 0.82))


_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
}
