import jax.numpy as jnp
import numpy as np
import pytest

from stunet.diffusion import (
    Prediction,
    Schedule,
    add_noise,
    dynamic_clip,
    dynamic_threshold,
    static_threshold,
)
from stunet.errors import UserError

SCHEDULE = Schedule()
# one clip of two frames with |x0| = 0, 0.4, ..., 2 and half of it
FRAME = jnp.array([0.0, -0.4, 0.8, -1.2, 1.6, 2.0]).reshape(1, 1, 1, 2, 3)
CLIP = jnp.concatenate([FRAME, FRAME / 2], axis=1)


def test_frames_by_hand():
    # quantile 0.8 of the first frame is 1.6, of the second 0.8, which the floor lifts to 1
    got = dynamic_clip(CLIP, 0.8, 9.0, "frame")
    np.testing.assert_allclose(got[0, 0].ravel(), [0, -0.25, 0.5, -0.75, 1, 1], atol=1e-6)
    np.testing.assert_allclose(got[0, 1], CLIP[0, 1], atol=1e-6)


def test_clip_by_hand():
    # sorted |x0| of all: 0 0 .2 .4 .4 .6 .8 .8 1 1.2 1.6 2; quantile 0.95 at 10.45: 1.78
    got = dynamic_clip(CLIP, 0.95, 9.0, "clip")
    np.testing.assert_allclose(got, jnp.clip(CLIP, -1.78, 1.78) / 1.78, atol=1e-6)
    assert jnp.abs(got - dynamic_clip(CLIP, 0.95, 9.0, "frame")).max() > 0.05


def test_cap():
    np.testing.assert_allclose(
        dynamic_clip(FRAME, 1.0, 1.5, "frame"), jnp.clip(FRAME, -1.5, 1.5) / 1.5, atol=1e-6
    )
    np.testing.assert_array_equal(dynamic_clip(FRAME, 1.0, 1.0, "clip"), jnp.clip(FRAME, -1, 1))


def test_over_frames_a_frame_knows_nothing_of_the_others():
    alone = dynamic_clip(FRAME, 0.9, 1.5, "frame")
    np.testing.assert_array_equal(dynamic_clip(CLIP, 0.9, 1.5, "frame")[:, :1], alone)


@pytest.mark.parametrize("wrap", [static_threshold, dynamic_threshold])
def test_eps_agrees_with_the_thresholded_x0(wrap):
    x_t = jnp.asarray(np.random.default_rng(0).normal(size=CLIP.shape), jnp.float32)
    variance = jnp.ones_like(CLIP)
    for t in (jnp.float32(600), jnp.array([20.5])):
        denoiser = wrap(lambda x, t: Prediction(CLIP, jnp.nan * x, variance), SCHEDULE)
        got = denoiser(x_t, t)
        expected = jnp.clip(CLIP, -1, 1)
        if wrap is dynamic_threshold:
            expected = dynamic_clip(CLIP, 0.95, 1.5, "frame")
        np.testing.assert_array_equal(got.x0, expected)
        np.testing.assert_allclose(add_noise(got.x0, got.eps, SCHEDULE.log_snr(t)), x_t, atol=1e-6)
        assert got.variance is variance


def test_unknown_scope():
    with pytest.raises(UserError, match=r"'video'.*frame, clip"):
        dynamic_clip(CLIP, 0.95, 1.5, "video")
