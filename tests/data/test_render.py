import numpy as np
import pytest

from data.moving_shapes.render import render, render_at, trajectory
from data.moving_shapes.silhouettes import EXTENTS
from data.moving_shapes.vocabulary import (
    COLOURS,
    MOTIONS,
    SHAPES,
    Attributes,
    draw_attributes,
)

U = np.arange(16) / 16


def attributes(**changes):
    fields = {
        "shape": "square",
        "colour": "red",
        "motion": "right",
        "background": "dark",
        "size": "large",
        "speed": "fast",
    }
    return Attributes(**{**fields, **changes})


def path(motion, speed="fast", seconds=2.0, seed=0):
    return trajectory(attributes(motion=motion, speed=speed), seed, U, seconds)


def test_shape_and_determinism():
    video = render(attributes(), 3, 5, 24, 8.0)
    assert video.shape == (5, 24, 24, 3) and video.dtype == np.float32
    assert video.min() >= -1 and video.max() <= 1
    assert np.array_equal(video, render(attributes(), 3, 5, 24, 8.0))
    assert not np.array_equal(video, render(attributes(), 4, 5, 24, 8.0))


def test_image_is_a_frame_of_the_clip():
    clip = render(attributes(motion="circling"), 3, 16, 32, 8.0)
    image = render_at(attributes(motion="circling"), 3, [5 / 16], 2.0, 32)
    np.testing.assert_allclose(image[0], clip[5], atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_anti_aliasing_is_a_pixel_mean(shape):
    words = attributes(shape=shape, motion="spinning")
    small, large = (render(words, 1, 4, size, 8.0) for size in (32, 256))
    mean = large.reshape(4, 32, 8, 32, 8, 3).mean((2, 4))
    off = np.abs(small - mean)
    # In a range of 2. Exact to first order in the distance: corners differ more.
    assert off.mean() < 0.003 and np.quantile(off, 0.98) < 0.05 and off.max() < 0.7


def test_striped_background_is_a_pixel_mean():
    words = attributes(background="striped")
    small, large = (render(words, 1, 1, size, 8.0)[0, :, -1, 0] for size in (36, 288))
    np.testing.assert_allclose(small, large.reshape(36, 8).mean(1), atol=1e-6)


def test_texture_is_on_the_background_and_static():
    at = attributes(background="grey", size="small")
    plain, textured = (
        render_at(at, 3, np.array([0.0, 0.5]), 2.0, 96, texture) for texture in (0.0, 0.1)
    )
    first, second = textured - plain
    ground = (np.abs(plain - (2 * 0.48 - 1)).max((0, -1)) < 1e-6)[..., None] & np.ones(3, bool)
    assert 0.5 < ground.mean() < 0.95
    np.testing.assert_array_equal(first[ground], second[ground])
    np.testing.assert_allclose(first[ground].std(), 2 * 0.1, rtol=0.2)
    other = render_at(at, 4, np.array([0.0]), 2.0, 96, 0.1)[0]
    assert np.abs(np.corrcoef(other[:8].ravel(), textured[0, :8].ravel())[0, 1]) < 0.5
    # The texture does not depend on the resolution, except for details below a pixel.
    small = render_at(at, 3, np.array([0.0]), 2.0, 48, 0.1)[0, :4]
    np.testing.assert_allclose(
        textured[0, :8].reshape(4, 2, 48, 2, 3).mean((1, 3)), small, atol=0.12
    )


def test_sub_pixel_motion_moves_the_centre_of_mass():
    # A quarter of a pixel per frame: without anti-aliasing it would stop and jump.
    video = render(attributes(shape="circle"), 0, 72, 32, 36.0)
    red = (video[..., 0] + 1) / 2 - 0.06
    x = (red.sum(1) * (np.arange(32) + 0.5)).sum(1) / red.sum((1, 2))
    step = 2 * (0.5 - 0.01 - 0.95 * 0.25) * 32 / 72
    np.testing.assert_allclose(np.diff(x), step, atol=0.01)


def test_every_object_stays_inside():
    rng = np.random.default_rng(0)
    for seed in range(400):
        words = draw_attributes("train", rng)
        pose = trajectory(words, seed, U, 2.0)
        reach = EXTENTS[words.shape] * pose.radius
        for centre in (pose.x, pose.y):
            assert (centre - reach).min() > 0 and (centre + reach).max() < 1, words


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("left", "x", -1), ("right", "x", 1), ("up", "y", -1), ("down", "y", 1)],
)
def test_linear_motions(motion, axis, sign):
    free = 0.5 - 0.01 - EXTENTS["square"] * 0.25
    for speed, share in (("slow", 0.75), ("fast", 1.0)):
        pose = path(motion, speed)
        along, across = (pose.x, pose.y) if axis == "x" else (pose.y, pose.x)
        np.testing.assert_allclose(np.diff(along), sign * share * 2 * free / 16)
        assert np.ptp(across) == 0


def test_circling_is_a_clockwise_circle():
    pose = path("circling", "slow")
    around = (pose.x - pose.x.mean()) + 1j * (pose.y - pose.y.mean())
    np.testing.assert_allclose(np.abs(around), np.abs(around[0]), atol=1e-9)
    # y points down, so a growing angle is clockwise; one turn in two seconds.
    np.testing.assert_allclose(np.angle(around[1:] / around[:-1]), 2 * np.pi / 16)


def test_bouncing_touches_its_floor():
    floor = 0.5 + 0.49 - EXTENTS["square"] * 0.25
    pose = trajectory(attributes(motion="bouncing", speed="slow"), 0, np.linspace(0, 1, 2001), 2.0)
    assert pose.y.max() == pytest.approx(floor, abs=1e-3) and np.ptp(pose.x) == 0
    lowest = (pose.y[1:-1] > pose.y[:-2]) & (pose.y[1:-1] > pose.y[2:])
    assert lowest.sum() == 2


def test_swinging_has_a_fixed_pivot():
    pose = path("swinging")
    length = np.ptp(pose.x) / np.ptp(np.sin(pose.angle))
    pivot_x, pivot_y = pose.x + length * np.sin(pose.angle), pose.y - length * np.cos(pose.angle)
    assert np.ptp(pivot_x) < 1e-9 and np.ptp(pivot_y) < 1e-9 and pivot_y[0] < pose.y.min()
    assert np.ptp(pose.angle) > 1.5


def test_spinning_and_growing():
    spin = path("spinning", "slow")
    np.testing.assert_allclose(np.diff(spin.angle), 2 * np.pi / 16)
    assert np.ptp(spin.x) == np.ptp(spin.y) == np.ptp(spin.radius) == 0
    grow, shrink = path("growing").radius, path("shrinking").radius
    np.testing.assert_allclose(grow[1:] / grow[:-1], (1.25 / 0.45) ** (1 / 16))
    np.testing.assert_allclose(grow[1:], shrink[:0:-1])


@pytest.mark.parametrize("motion", MOTIONS)
def test_motion_is_visible_in_short_and_long_clips(motion):
    # In half a second and in five: at least as many cycles as in two seconds.
    short, nominal, long = (path(motion, "slow", seconds) for seconds in (0.5, 2.0, 5.0))
    for actual, expected in zip(short, nominal, strict=True):
        np.testing.assert_array_equal(actual, expected)
    if motion in ("bouncing", "circling", "swinging", "spinning"):
        fast = trajectory(attributes(motion=motion, speed="slow"), 0, U / 2.5, 5.0)
        then = trajectory(attributes(motion=motion, speed="slow"), 0, U, 2.0)
        np.testing.assert_allclose(fast.x, then.x)
        np.testing.assert_allclose(fast.angle, then.angle)
    else:
        np.testing.assert_array_equal(long.x, nominal.x)


def test_object_has_its_colour():
    for colour, tone in COLOURS.items():
        video = render(attributes(colour=colour, shape="circle"), 0, 1, 64, 8.0)
        off = np.abs((video + 1) / 2 - np.float32(tone)).max(-1)
        expected = np.pi * (0.95**2 - 0.30**2) * 0.25**2  # without the mark
        assert (off < 0.01).mean() == pytest.approx(expected, rel=0.2)
