import jax.numpy as jnp
import numpy as np
import pytest

from stunet.diffusion import Schedule, add_noise, alpha_sigma, make_target, to_prediction
from stunet.errors import UserError

KINDS = ["eps", "x0", "v"]
TIMES = jnp.array([0.0, 1.0, 500.0, 998.0, 999.0])


def example():
    draw = np.random.default_rng(0)
    shape = (len(TIMES), 2, 4, 4, 3)
    x0 = jnp.asarray(draw.uniform(-1, 1, shape), jnp.float32)
    eps = jnp.asarray(draw.normal(size=shape), jnp.float32)
    log_snr = Schedule().log_snr(TIMES)
    return x0, eps, log_snr, add_noise(x0, eps, log_snr)


@pytest.mark.parametrize("kind", KINDS)
def test_target_to_prediction_is_a_round_trip_at_every_level(kind):
    x0, eps, log_snr, x_t = example()
    prediction = to_prediction(kind, make_target(kind, x0, eps, log_snr), x_t, log_snr, False)
    alpha, sigma = alpha_sigma(log_snr)
    for i in range(len(TIMES)):
        # the division by alpha or sigma amplifies the float32 rounding of x_t
        np.testing.assert_allclose(prediction.x0[i], x0[i], atol=1e-6 / alpha[i])
        np.testing.assert_allclose(prediction.eps[i], eps[i], atol=1e-6 / sigma[i])
    assert prediction.variance is None


def test_v_is_well_conditioned_at_both_ends():
    x0, eps, log_snr, x_t = example()
    prediction = to_prediction("v", make_target("v", x0, eps, log_snr), x_t, log_snr, False)
    np.testing.assert_allclose(prediction.x0, x0, atol=2e-6)
    np.testing.assert_allclose(prediction.eps, eps, atol=2e-6)


def test_targets_by_hand():
    # SNR 9/16: alpha 0.6, sigma 0.8
    log_snr = jnp.log(9 / 16)
    x0, eps = jnp.full((1, 1, 1, 1, 3), 0.5), jnp.full((1, 1, 1, 1, 3), 2.0)
    np.testing.assert_allclose(add_noise(x0, eps, log_snr), 1.9 * jnp.ones_like(x0), rtol=1e-6)
    np.testing.assert_allclose(make_target("v", x0, eps, log_snr), 0.8 * jnp.ones_like(x0), 1e-6)
    assert make_target("eps", x0, eps, log_snr) is eps
    assert make_target("x0", x0, eps, log_snr) is x0


@pytest.mark.parametrize("log_snr", [-1000.0, -19.84, 10.1, 1000.0])
@pytest.mark.parametrize("kind", KINDS)
def test_finite_at_both_ends(kind, log_snr):
    x_t = jnp.array([-3.0, 0.0, 3.0]).reshape(1, 1, 1, 1, 3)
    prediction = to_prediction(kind, -x_t, x_t, jnp.float32(log_snr), False)
    assert jnp.isfinite(prediction.x0).all()
    assert jnp.isfinite(prediction.eps).all()
    assert jnp.abs(prediction.x0).max() < 1.5e5


def test_variance_channels_are_split_off_or_dropped():
    _, eps, log_snr, x_t = example()
    variance = jnp.arange(eps.size, dtype=jnp.float32).reshape(eps.shape)
    output = jnp.concatenate([eps, variance], axis=-1)
    learned = to_prediction("eps", output, x_t, log_snr, True)
    np.testing.assert_array_equal(learned.eps, eps)
    np.testing.assert_array_equal(learned.variance, variance)
    dropped = to_prediction("eps", output, x_t, log_snr, False)
    np.testing.assert_array_equal(dropped.eps, eps)
    assert dropped.variance is None


def test_half_precision_output_becomes_float32():
    x0, eps, log_snr, x_t = example()
    for kind in KINDS:
        output = make_target(kind, x0, eps, log_snr).astype(jnp.bfloat16)
        prediction = to_prediction(kind, output, x_t, log_snr, False)
        assert prediction.x0.dtype == prediction.eps.dtype == jnp.float32


def test_errors():
    _, eps, log_snr, x_t = example()
    with pytest.raises(UserError, match="prediction.*'score'.*eps, x0, v"):
        to_prediction("score", eps, x_t, log_snr, False)
    with pytest.raises(UserError, match=r"\b3 channels.*\b6\b"):
        to_prediction("eps", eps, x_t, log_snr, True)
    with pytest.raises(UserError, match=r"\b2 channels.*\b3 or 6\b"):
        to_prediction("eps", eps[..., :2], x_t, log_snr, False)
