import numpy as np
import pytest

from data.moving_shapes.silhouettes import EXTENTS, MARKS, mark_distance, signed_distance
from data.moving_shapes.vocabulary import SHAPES

AXIS = np.linspace(-1.5, 1.5, 601)
X, Y = np.meshgrid(AXIS, AXIS)
CELL = (AXIS[1] - AXIS[0]) ** 2


@pytest.mark.parametrize("shape", SHAPES)
def test_mark_is_inside_and_extent_is_tight(shape):
    inside = signed_distance(shape, X, Y) < 0
    marked = mark_distance(shape, X, Y) < 0
    assert marked.any() and not (marked & ~inside).any()
    farthest = np.hypot(X, Y)[inside].max()
    assert EXTENTS[shape] - 0.05 < farthest <= EXTENTS[shape]
    assert np.hypot(MARKS[shape].x, MARKS[shape].y) > 0.4  # off-centre, so that rotation is visible


@pytest.mark.parametrize("shape", SHAPES)
def test_distance_has_unit_slope_across_the_outline(shape):
    d = signed_distance(shape, X, Y)
    slope = np.hypot(*np.gradient(d, AXIS, AXIS))
    near = np.abs(d) < 0.02
    # Except near corners.
    assert (np.abs(slope[near] - 1) < 0.02).mean() > 0.85


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", np.pi * 0.95**2),
        ("square", 1.64**2),
        ("triangle", 3 * np.sqrt(3) * 0.58**2),
        ("ring", np.pi * (1 - 0.5**2)),
        ("cross", 4 * (2 * 1.02 * 0.36) - 4 * 0.36**2),
        ("star", 10 * 0.5 * 1.2 * 0.52 * np.sin(np.pi / 5)),
        ("heart", 1.32**2 + np.pi * 0.66**2),
    ],
)
def test_areas(shape, area):
    assert (signed_distance(shape, X, Y) < 0).sum() * CELL == pytest.approx(area, rel=0.01)
