import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.diffusion import (
    Schedule,
    add_noise,
    discretised_log_likelihood,
    make_target,
    min_snr_weight,
    simple_loss,
    to_prediction,
    variational_loss,
)
from stunet.errors import UserError

SCHEDULE = Schedule()
VARIATIONAL = jax.jit(functools.partial(variational_loss, SCHEDULE))


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_simple_loss_is_the_mean_square_per_example():
    x0 = jnp.zeros((2, 1, 1, 2, 1))
    output = jnp.array([[1.0, 3.0], [0.0, 2.0]]).reshape(x0.shape)
    np.testing.assert_allclose(simple_loss("x0", output, x0, x0, jnp.zeros(2)), [5.0, 2.0])


@pytest.mark.parametrize(
    ("kind", "expected"),  # at SNR 1/4, 1, 20 with gamma 5
    [("eps", [1, 1, 1 / 4]), ("x0", [1 / 4, 1, 5]), ("v", [1 / 5, 1 / 2, 5 / 21])],
)
def test_min_snr_weights_by_hand(kind, expected):
    log_snr = jnp.log(jnp.array([0.25, 1.0, 20.0]))
    np.testing.assert_allclose(min_snr_weight(kind, log_snr), expected, rtol=1e-6)
    ends = min_snr_weight(kind, jnp.array([-200.0, -19.84, 10.1, 200.0]))
    assert jnp.isfinite(ends).all()


def test_min_snr_weight_of_the_x0_error_is_the_same_for_all_kinds():
    shape = (5, 1, 2, 2, 3)
    x0, eps, error = normal(0, shape), normal(1, shape), normal(2, shape)
    log_snr = jnp.array([-6.0, -2.0, 0.0, 2.0, 6.0])
    x_t = add_noise(x0, eps, log_snr)
    losses = []
    for kind in ("eps", "x0", "v"):
        output = make_target(kind, x0, eps, log_snr) + error
        guess = to_prediction(kind, output, x_t, log_snr, False).x0
        weight = min_snr_weight(kind, log_snr)
        losses.append(
            weight
            * simple_loss(kind, output, x0, eps, log_snr)
            / simple_loss("x0", guess, x0, eps, log_snr)
        )
    for loss in losses:
        np.testing.assert_allclose(loss, jnp.minimum(jnp.exp(log_snr), 5.0), rtol=1e-3)


def scalar_variational(t, x0, x_t, guess, variance):
    """Returns the term for one pixel, with the KL by quadrature."""
    alpha_bar, beta = SCHEDULE.alpha_bars[t], SCHEDULE.betas[t]
    previous = SCHEDULE.alpha_bars[t - 1] if t else 1.0

    def mean(x0):
        a = np.sqrt(previous) * beta * x0
        b = np.sqrt(1 - beta) * (1 - previous) * x_t
        return (a + b) / (1 - alpha_bar)

    small = beta * (1 - previous) / (1 - alpha_bar)
    if t == 0:
        small = SCHEDULE.betas[1] * beta / (1 - SCHEDULE.alpha_bars[1])
    w = (variance + 1) / 2
    log_var = w * np.log(beta) + (1 - w) * np.log(small)
    if t == 0:
        z = np.linspace(x0 - 1 / 255, x0 + 1 / 255, 20001)
        density = np.exp(-((z - mean(guess)) ** 2) / 2 / np.exp(log_var))
        density /= np.sqrt(2 * np.pi * np.exp(log_var))
        return -np.log2(np.trapezoid(density, z))
    z = np.linspace(-9, 9, 20001)
    q = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    y = mean(x0) + np.sqrt(small) * z
    log_ratio = (
        (log_var - np.log(small)) / 2 - z**2 / 2 + (y - mean(guess)) ** 2 / 2 / np.exp(log_var)
    )
    return np.trapezoid(q * log_ratio, z) / np.log(2)


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_variational_term_against_quadrature(t):
    # the guess is off by about one standard deviation of the step
    values = {"x0": 0.1, "x_t": 0.12, "guess": 0.1 + (0.004 if t < 2 else 0.5), "variance": -0.4}
    arrays = {k: jnp.full((1, 1, 1, 1, 1), v, jnp.float32) for k, v in values.items()}
    got = VARIATIONAL(jnp.array([t]), *arrays.values())
    # weight 0.001 x 1000 timesteps = 1
    np.testing.assert_allclose(got, [scalar_variational(t, **values)], rtol=2e-4, atol=2e-6)


def test_variational_term_has_gradients_for_the_variance_only():
    shape = (2, 1, 2, 2, 3)
    x0, x_t = 0.3 * normal(0, shape), 0.3 * normal(1, shape)
    guess = x0 + 0.003 * normal(2, shape)

    def loss(guess, variance):
        t = jnp.array([0.0, 400.0])
        return VARIATIONAL(t, x0, x_t, guess, variance).sum()

    mean_gradient, variance_gradient = jax.jit(jax.grad(loss, (0, 1)))(guess, jnp.zeros(shape))
    np.testing.assert_array_equal(mean_gradient, 0)
    assert (jnp.abs(variance_gradient) > 0).all()


def test_decoder_probabilities_sum_to_one():
    levels = jnp.arange(256) / 127.5 - 1
    for mean, log_var in [(0.2, -4.0), (-1.1, -2.0), (0.9, 0.0)]:
        total = jnp.exp(discretised_log_likelihood(levels, mean, log_var)).sum()
        assert total == pytest.approx(1, abs=1e-4)


def test_variational_term_refuses_a_continuous_schedule():
    a = jnp.zeros((1, 1, 1, 1, 1))
    with pytest.raises(UserError, match=r"schedule\.kind.*'continuous_cosine'.*'cosine'"):
        variational_loss(Schedule("continuous_cosine"), jnp.zeros(1), a, a, a, a)
