import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.diffusion import Schedule, alpha_sigma, respace_betas, sample_training_time
from stunet.errors import UserError

SCHEDULE = Schedule()
ENDS = np.array([0, 1, 2, 250, 500, 900, 997, 998, 999])


def table(t):
    return np.log(SCHEDULE.alpha_bars[t] / (1 - SCHEDULE.alpha_bars[t]))


def test_betas_and_alpha_bars_are_the_closed_form():
    def alpha_bar(u):
        return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2

    for t in (0, 500, 998):
        expected = 1 - alpha_bar((t + 1) / 1000) / alpha_bar(t / 1000)
        assert SCHEDULE.betas[t] == pytest.approx(expected, rel=1e-12)
        expected = alpha_bar((t + 1) / 1000) / alpha_bar(0)
        assert SCHEDULE.alpha_bars[t] == pytest.approx(expected, rel=1e-9)
    assert SCHEDULE.betas[0] == pytest.approx(4.1284e-5, rel=1e-4)
    assert SCHEDULE.betas[999] == 0.999
    assert table(np.array([998, 999])) == pytest.approx([-12.928, -19.836], abs=1e-3)


def test_log_snr_equals_the_table_at_integers_and_is_monotonic():
    np.testing.assert_allclose(
        SCHEDULE.log_snr(np.arange(1000), np), table(np.arange(1000)), atol=1e-9
    )
    got = jax.jit(SCHEDULE.log_snr)(jnp.asarray(ENDS))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, table(ENDS), atol=4e-6)
    fine = SCHEDULE.log_snr(np.linspace(0, 999, 9991), np)
    assert (np.diff(fine) < 0).all()


def test_timestep_inverts_log_snr():
    t = np.linspace(0, 999, 2001)
    np.testing.assert_allclose(SCHEDULE.timestep(SCHEDULE.log_snr(t, np), np), t, atol=1e-9)
    back = jax.jit(lambda t: SCHEDULE.timestep(SCHEDULE.log_snr(t)))(t.astype(np.float32))
    np.testing.assert_allclose(back, t, atol=2e-4)
    beyond = SCHEDULE.timestep(jnp.array([60.0, -60.0]))
    np.testing.assert_allclose(beyond, [0, 999], atol=2e-4)
    assert beyond.min() >= 0
    assert beyond.max() <= 999


def test_respaced_betas_visit_the_same_levels():
    np.testing.assert_allclose(
        respace_betas(SCHEDULE.alpha_bars[::-1]), SCHEDULE.betas[::-1], rtol=1e-9
    )
    levels = SCHEDULE.alpha_bars[[900, 400, 30]]
    betas = respace_betas(levels)
    np.testing.assert_allclose(np.cumprod(1 - betas[::-1])[::-1], levels, rtol=1e-12)


def test_alpha_sigma_keep_relative_precision_at_both_ends():
    log_snr = np.array([-80.0, -19.836, -1.0, 0.0, 10.095, 80.0])
    alpha, sigma = alpha_sigma(jnp.asarray(log_snr, jnp.float32))
    log_snr = np.float32(log_snr).astype(np.float64)
    np.testing.assert_allclose(alpha, np.sqrt(1 / (1 + np.exp(-log_snr))), rtol=3e-6)
    np.testing.assert_allclose(sigma, np.sqrt(1 / (1 + np.exp(log_snr))), rtol=3e-6)


@pytest.mark.parametrize("shift", [0.0, -4.0, 3.0])
def test_continuous_schedule_is_a_shifted_tangent_at_timesteps_of_equal_log_snr(shift):
    schedule = Schedule("continuous_cosine", log_snr_shift=shift)
    nominal = np.linspace(0, 999, 57)
    t, log_snr = jax.jit(schedule.level_at)(jnp.asarray(nominal, jnp.float32))
    first, last = (np.arctan(np.exp((shift - end) / 2)) for end in (10.0, -12.0))
    expected = shift - 2 * np.log(np.tan(first + (last - first) * nominal / 999))
    np.testing.assert_allclose(log_snr, expected, atol=2e-5)
    np.testing.assert_allclose(log_snr[jnp.array([0, -1])], [10, -12], atol=1e-5)
    np.testing.assert_allclose(SCHEDULE.log_snr(t), expected, atol=1e-4)


def test_training_times_are_every_integer_once():
    u = (np.arange(4000) + 0.5) / 4000
    t, log_snr = sample_training_time(SCHEDULE, jnp.asarray(u, jnp.float32))
    np.testing.assert_array_equal(np.bincount(np.asarray(t, int), minlength=1000), 4)
    np.testing.assert_allclose(log_snr, table(np.asarray(t, int)), atol=1e-5)
    below_one = np.nextafter(np.float32(1), np.float32(0))
    assert sample_training_time(SCHEDULE, below_one)[0] == 999


def test_continuous_training_times_span_the_range():
    schedule = Schedule("continuous_cosine", log_snr_shift=-2.0)
    t, log_snr = sample_training_time(schedule, jnp.linspace(0, 0.999999, 1001))
    assert log_snr[0] == pytest.approx(10, abs=1e-4)
    assert log_snr[-1] == pytest.approx(-12, abs=2e-3)
    assert log_snr[500] == pytest.approx(-2, abs=0.05)
    assert (t % 1 != 0).mean() > 0.9


def test_fields_survive_json():
    schedule = Schedule("continuous_cosine", log_snr_shift=-1.5)
    assert Schedule(**json.loads(json.dumps(dataclasses.asdict(schedule)))) == schedule


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "linear"}, "schedule.kind.*'linear'.*cosine, continuous_cosine"),
        ({"num_timesteps": 1}, "schedule.num_timesteps.* 1.* 2"),
        ({"log_snr_shift": -1.0}, "schedule.log_snr_shift.*-1.0.*'continuous_cosine'"),
        (
            {"kind": "continuous_cosine", "log_snr_max": 11.0},
            "schedule.log_snr_min, log_snr_max.* 11.0.*-19.84 to 10.09",
        ),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message):
        Schedule(**fields)
