import jax.numpy as jnp
import numpy as np
import pytest

from stunet.diffusion import Prediction, Schedule, Threshold, add_noise, thresholded_denoiser
from stunet.diffusion.thresholding import SCOPES, magnitude_quantile
from stunet.errors import UserError

SCHEDULE = Schedule()
# a clip of two frames: |x0| = 0, 0.4, ..., 2 in the first, half of that in the second
FRAME = jnp.array([0.0, -0.4, 0.8, -1.2, 1.6, 2.0]).reshape(1, 1, 1, 2, 3)
CLIP = jnp.concatenate([FRAME, FRAME / 2], axis=1)


def test_frames_by_hand():
    # quantile 0.8 of the first frame is 1.6, of the second 0.8, which the floor lifts to 1
    got = Threshold(0.8, 9.0, "frame")(CLIP)
    np.testing.assert_allclose(got[0, 0].ravel(), [0, -0.25, 0.5, -0.75, 1, 1], atol=1e-6)
    np.testing.assert_allclose(got[0, 1], CLIP[0, 1], atol=1e-6)


def test_clip_by_hand():
    # sorted |x0| of all: 0 0 .2 .4 .4 .6 .8 .8 1 1.2 1.6 2; quantile 0.95 at 10.45: 1.78
    got = Threshold(0.95, 9.0, "clip")(CLIP)
    np.testing.assert_allclose(got, jnp.clip(CLIP, -1.78, 1.78) / 1.78, atol=1e-6)
    assert jnp.abs(got - Threshold(0.95, 9.0, "frame")(CLIP)).max() > 0.05


def test_cap():
    np.testing.assert_allclose(
        Threshold(1.0, 1.5, "frame")(FRAME), jnp.clip(FRAME, -1.5, 1.5) / 1.5, atol=1e-6
    )
    np.testing.assert_array_equal(Threshold(1.0, 1.0, "clip")(FRAME), jnp.clip(FRAME, -1, 1))


def test_thresholding_over_frames_treats_frames_separately():
    single = Threshold(0.9, 1.5, "frame")(FRAME)
    np.testing.assert_array_equal(Threshold(0.9, 1.5, "frame")(CLIP)[:, :1], single)


@pytest.mark.parametrize("threshold", [Threshold(max_value=1.0), Threshold(over="frame")])
def test_eps_agrees_with_the_thresholded_x0(threshold):
    x_t = jnp.asarray(np.random.default_rng(0).normal(size=CLIP.shape), jnp.float32)
    variance = jnp.ones_like(CLIP)
    for t in (jnp.float32(600), jnp.array([20.5])):
        denoiser = thresholded_denoiser(
            lambda x, t: Prediction(CLIP, jnp.nan * x, variance), SCHEDULE, threshold
        )
        got = denoiser(x_t, t)
        np.testing.assert_array_equal(got.x0, threshold(CLIP))
        np.testing.assert_allclose(add_noise(got.x0, got.eps, SCHEDULE.log_snr(t)), x_t, atol=1e-6)
        assert got.variance is variance


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"over": "video"}, "threshold.over.*'video'.*frame, clip"),
        ({"quantile": 95.0}, "threshold.quantile.*95.0.*0 to 1"),
        ({"max_value": 0.5}, "threshold.max_value.*0.5.*1"),
    ],
)
def test_bad_fields(field, message):
    with pytest.raises(UserError, match=message):
        Threshold(**field)


@pytest.mark.parametrize(
    "shape", [(2, 4, 8, 8, 3), (3, 5, 7, 9, 3), (1, 1, 2, 2, 1), (1, 1, 1, 1, 1)]
)
@pytest.mark.parametrize("axes", SCOPES.values())
@pytest.mark.parametrize("decimals", [None, 0])  # 0: many equal values
def test_the_quantile_is_that_of_sorted_values(shape, axes, decimals):
    x = np.random.default_rng(0).normal(size=shape)
    x = jnp.asarray(x if decimals is None else np.round(x, decimals), jnp.float32)
    for quantile in (0.0, 0.1, 0.5, 0.95, 0.995, 1.0):
        expected = jnp.quantile(jnp.abs(x), quantile, axis=axes, keepdims=True)
        found = magnitude_quantile(x, quantile, axes)
        np.testing.assert_array_max_ulp(found, expected, 2)  # of the interpolation


def test_infinite_values_are_the_largest():
    x = jnp.array([[[[[-jnp.inf, 1.0, 3.0, jnp.inf]]]]])
    assert magnitude_quantile(x, 0.25, (2, 3, 4)).item() == 2.5
