"""Samplers on Gaussian data, where the optimal denoiser is affine and everything is exact."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.diffusion import (
    DDIM,
    SAMPLERS,
    Ancestral,
    DPMSolver2M,
    Prediction,
    SamplingDefaults,
    Schedule,
    TimeGrid,
    alpha_sigma,
    resolve_sampler,
    run_steps,
    sampler_from_dict,
    sampler_to_dict,
    to_prediction,
)
from stunet.errors import UserError
from tests.diffusion.euler import Euler

SCHEDULE = Schedule()
MEAN, VARIANCE = 0.3, 0.25
TIGHT = {"rtol": 2e-5, "atol": 2e-6}


def optimal(x_t, t):
    """E[x0 | x_t] of data N(MEAN, VARIANCE)."""
    log_snr = SCHEDULE.log_snr(t)
    alpha, sigma = alpha_sigma(log_snr)
    gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    x0 = MEAN + gain * (x_t - alpha * MEAN)
    return to_prediction("x0", x0, x_t, log_snr, False)


def sampled_mean_and_variance(sampler):
    """Returns mean and variance of the samples that start from N(0, 1) noise.

    Affine in start and noise, a sampler is measured by its responses: batch element 0 starts from
    0, element 1 from 1, and each other element from 0 with noise 1 at one step. The variance of
    the samples is the sum of the squared responses.
    """
    steps = len(sampler.grid)
    start = jnp.zeros((steps + 2, 1, 1, 1, 1)).at[1].set(1.0)

    def noise_fn(i):
        return jnp.zeros_like(start).at[i + 2].set(1.0)

    run = jax.jit(lambda x: run_steps(sampler, optimal, sampler.init(x), 0, steps, noise_fn).x)
    x = np.asarray(run(start), np.float64).ravel()
    return x[0], ((x[1:] - x[0]) ** 2).sum()


def gains(timesteps):
    """Returns alpha, sigma, a and b of the optimal denoiser x0 = a x_t + b at table entries."""
    alpha_bar = SCHEDULE.alpha_bars[timesteps]
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    a = alpha * VARIANCE / (alpha_bar * VARIANCE + 1 - alpha_bar)
    return alpha, sigma, a, MEAN * (1 - a * alpha)


def ancestral_moments(n, large):
    timesteps = np.arange(0, 1000, 1000 // n)[::-1]
    alpha, sigma, a, b = gains(timesteps)
    mean, variance = 0.0, 1.0
    for i in range(n):
        after = alpha[i + 1] ** 2 if i + 1 < n else 1.0
        ratio = alpha[i] ** 2 / after  # alpha_t of 2006.11239
        k_x = np.sqrt(ratio) * (1 - after) / sigma[i] ** 2
        k_0 = np.sqrt(after) * (1 - ratio) / sigma[i] ** 2
        noise = (1 - ratio) * (1.0 if large else (1 - after) / sigma[i] ** 2)
        slope = k_x + k_0 * a[i]
        mean = slope * mean + k_0 * b[i]
        variance = slope**2 * variance + (noise if i + 1 < n else 0.0)
    return mean, variance


def ddim_moments(n, eta):
    timesteps = np.arange(0, 1000, 1000 // n)[::-1]
    alpha, sigma, a, b = gains(timesteps)
    mean, variance = 0.0, 1.0
    for i in range(n):
        alpha_next, sigma_next = (alpha[i + 1], sigma[i + 1]) if i + 1 < n else (1.0, 0.0)
        std = eta * sigma_next / sigma[i] * np.sqrt(1 - (alpha[i] / alpha_next) ** 2)
        to_eps = np.sqrt(sigma_next**2 - std**2) / sigma[i]
        slope = (alpha_next - to_eps * alpha[i]) * a[i] + to_eps
        mean = slope * mean + (alpha_next - to_eps * alpha[i]) * b[i]
        variance = slope**2 * variance + std**2
    return mean, variance


def solver_moments(n):
    timesteps = np.round(np.linspace(995, 0, n + 1)[:-1]).astype(int)
    alpha, sigma, a, b = gains(timesteps)
    half = np.log(alpha / sigma)
    x, previous = np.array([1.0, 0.0]), None  # coefficients of the start noise and of 1
    for i in range(n):
        x0 = a[i] * x + np.array([0.0, b[i]])
        if i + 1 == n:
            x = x0
            break
        h = half[i + 1] - half[i]
        d = x0
        if i > 0:
            r = (half[i] - half[i - 1]) / h
            d = (1 + 1 / (2 * r)) * x0 - previous / (2 * r)
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (np.exp(-h) - 1) * d
        previous = x0
    return x[1], x[0] ** 2


def euler_moments(n, scale=1.0):
    timesteps = np.arange(0, 1000, 1000 // n)[::-1]
    alpha, sigma, _, _ = gains(timesteps)
    s = np.append(sigma / alpha, 0.0)
    slope = np.prod(1 + scale * np.diff(s) * s[:-1] / (VARIANCE + s[:-1] ** 2))
    return MEAN * (1 - slope), (slope / alpha[0]) ** 2


SHIFTED = Schedule("continuous_cosine", log_snr_shift=-3.0)
CASES = {
    "ancestral": (Ancestral(), lambda n: ancestral_moments(n, False)),
    "fixed_large": (Ancestral(variance="fixed_large"), lambda n: ancestral_moments(n, True)),
    "ddim": (DDIM(), lambda n: ddim_moments(n, 0.0)),
    "ddim_eta": (DDIM(eta=0.6), lambda n: ddim_moments(n, 0.6)),
    "dpm2m": (DPMSolver2M(), solver_moments),
    "euler": (Euler(), euler_moments),
}


@pytest.mark.parametrize("n", [50, 100, 200])
@pytest.mark.parametrize("name", CASES)
def test_gaussian_moments_propagate_exactly(name, n):
    sampler, moments = CASES[name]
    got = sampled_mean_and_variance(sampler.bind(SCHEDULE, n))
    np.testing.assert_allclose(got, moments(n), **TIGHT)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tests.diffusion.euler:Euler", euler_moments(20)),
        ("tests.diffusion.euler:half", euler_moments(20, scale=0.5)),
    ],
)
def test_a_sampler_from_outside_the_package(name, expected):
    sampler = resolve_sampler(name)
    got = sampled_mean_and_variance(sampler.bind(SCHEDULE, sampler.default_steps))
    np.testing.assert_allclose(got, expected, **TIGHT)


@pytest.mark.parametrize(
    ("name", "n", "tolerance"),
    [("ancestral", 1000, 0.01), ("ddim", 1000, 0.005), ("dpm2m", 250, 0.002)],
)
def test_many_steps_reach_the_data(name, n, tolerance):
    mean, variance = sampled_mean_and_variance(SAMPLERS[name].bind(SCHEDULE, n))
    assert variance == pytest.approx(VARIANCE, rel=tolerance)
    assert mean == pytest.approx(MEAN, rel=0.005)


@pytest.mark.parametrize("schedule", [SCHEDULE, SHIFTED])
def test_few_solver_steps_are_close(schedule):
    _, variance = sampled_mean_and_variance(DPMSolver2M().bind(schedule, 20))
    assert variance == pytest.approx(VARIANCE, rel=0.02)


def test_ddim_at_eta_one_is_ancestral():
    np.testing.assert_allclose(
        sampled_mean_and_variance(DDIM(eta=1.0).bind(SCHEDULE, 50)),
        sampled_mean_and_variance(Ancestral().bind(SCHEDULE, 50)),
        **TIGHT,
    )


# One step of each sampler from timestep T to S, with arbitrary numbers in place of a denoiser.
X, X0, V, NOISE, PREVIOUS = 0.7, 0.4, -0.3, 1.3, 0.9
T, S = 600, 500


def one_step(sampler, index, first=False):
    """Returns x after step `index` of a bound sampler that starts there (first) or has started."""

    def fill(a):
        return jnp.full((1, 1, 1, 1, 1), a, jnp.float32)

    def denoiser(x_t, t):
        assert float(t) == sampler.grid.timesteps[index]
        alpha, sigma = (
            np.sqrt(SCHEDULE.alpha_bars[int(t)]),
            np.sqrt(1 - SCHEDULE.alpha_bars[int(t)]),
        )
        return Prediction(fill(X0), (x_t - alpha * X0) / sigma, fill(V))

    carry = sampler.init(fill(X))
    if not first:
        carry = carry._replace(x0=fill(PREVIOUS), taken=jnp.int32(1))
    after = sampler.step(denoiser, carry, index, fill(NOISE))
    assert float(after.x0[0, 0, 0, 0, 0]) == pytest.approx(X0)
    assert int(after.taken) == int(carry.taken) + 1
    return float(after.x[0, 0, 0, 0, 0])


LEADING = TimeGrid.leading(SCHEDULE, 10)  # 900, 800, ..., 0


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_one_ancestral_step(variance):
    index = LEADING.timesteps.tolist().index(T)
    # Bayes' rule for x_s given x_t and x0, independent of DDPM's formula
    a_t, a_s = SCHEDULE.alpha_bars[[T, S]]
    ratio = np.sqrt(a_t / a_s)  # x_t = ratio x_s + noise
    precision = 1 / (1 - a_s) + ratio**2 / (1 - a_t / a_s)
    mean = (np.sqrt(a_s) * X0 / (1 - a_s) + ratio * X / (1 - a_t / a_s)) / precision
    small, large = 1 / precision, 1 - a_t / a_s
    between = np.exp((V + 1) / 2 * np.log(large) + (1 - V) / 2 * np.log(small))
    std = np.sqrt({"fixed_small": small, "fixed_large": large, "learned_range": between}[variance])
    for sampler in (
        Ancestral(variance).bind(SCHEDULE, 10, variance="fixed_small"),
        Ancestral().bind(SCHEDULE, 10, variance=variance),
    ):
        assert one_step(sampler, index) == pytest.approx(mean + std * NOISE, rel=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_one_ddim_step(eta):
    index = LEADING.timesteps.tolist().index(T)
    a_t, a_s = SCHEDULE.alpha_bars[[T, S]]
    std = eta * np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(1 - a_t / a_s)
    eps = (X - np.sqrt(a_t) * X0) / np.sqrt(1 - a_t)
    expected = np.sqrt(a_s) * X0 + np.sqrt(1 - a_s - std**2) * eps + std * NOISE
    assert one_step(DDIM(eta).bind(SCHEDULE, 10), index) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_one_solver_step(first):
    sampler = DPMSolver2M().bind(SCHEDULE, 5)
    timesteps = [995, 796, 597]
    assert sampler.grid.timesteps[:3].tolist() == timesteps
    a = SCHEDULE.alpha_bars[timesteps]
    before, now, after = 0.5 * np.log(a / (1 - a))
    # integral of e^l x0(l) with x0(l) linear through the last two values, midpoint rule
    slope = 0.0 if first else (X0 - PREVIOUS) / (now - before)
    d = X0 + slope * (after - now) / 2
    sigma = np.sqrt(1 - a)
    expected = sigma[2] * (X / sigma[1] + (np.exp(after) - np.exp(now)) * d)
    assert one_step(sampler, 1, first) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "sampler", [Ancestral(), Ancestral("learned_range"), DDIM(), DPMSolver2M()]
)
def test_the_last_step_is_x0_without_noise(sampler):
    assert one_step(sampler.bind(SCHEDULE, 10), index=9) == pytest.approx(X0, abs=1e-6)


def test_grids():
    np.testing.assert_array_equal(LEADING.timesteps, np.arange(900, -1, -100))
    lumiere = TimeGrid.leading(SCHEDULE, 256)
    assert len(lumiere) == 256
    assert lumiere.timesteps[[0, -1]].tolist() == [996, 0]
    assert len(TimeGrid.leading(SCHEDULE, 1000)) == 1000
    solver = TimeGrid.solver(SCHEDULE, 20)
    assert solver.timesteps[[0, 1, -1]].tolist() == [995, 945, 50]
    shifted = TimeGrid.solver(SHIFTED, 18)
    np.testing.assert_allclose(np.diff(shifted.log_snr), 17.2 / 17)
    assert shifted.log_snr[[0, -1]] == pytest.approx([-10.2, 7.0])
    for grid in (LEADING, lumiere, solver, shifted):
        assert (np.diff(grid.timesteps) < 0).all()
        np.testing.assert_allclose(SCHEDULE.log_snr(grid.timesteps, np), grid.log_snr, atol=1e-6)


def test_names_and_defaults():
    assert {name: sampler.default_steps for name, sampler in SAMPLERS.items()} == {
        "dpm2m": 10,
        "ddim": 50,
        "ancestral": 100,
        "few_steps": 50,
    }
    assert next(iter(SAMPLERS)) == "dpm2m"
    assert resolve_sampler("ddim") == DDIM()
    custom = DDIM(eta=0.5)
    assert resolve_sampler(custom) is custom
    assert len({DDIM(), DDIM(0.0), custom, Ancestral(), DPMSolver2M()}) == 4


@pytest.mark.parametrize(
    "sampler",
    [None, "ddim", "a.module:Name", DDIM(eta=0.5), Ancestral("fixed_large"), Euler(scale=2.0)],
)
def test_samplers_survive_json(sampler):
    assert sampler_from_dict(json.loads(json.dumps(sampler_to_dict(sampler)))) == sampler


def test_a_model_s_defaults():
    assert SamplingDefaults() == SamplingDefaults("dpm2m", None, 4.0)
    for fields, message in (
        ({"sampler": "euler"}, r"sampling\.sampler.*'euler'.*dpm2m"),
        ({"steps": 0}, r"sampling\.steps.* 0, .*1"),
        ({"guidance_scale": math.inf}, r"sampling\.guidance_scale.* inf"),
        ({"guidance_scales": (1.0, 3.0)}, r"sampling\.guidance_scale: 4, .* 1 to 3"),
        ({"only": True}, r"sampling\.steps: None"),
    ):
        with pytest.raises(UserError, match=message):
            SamplingDefaults(**fields)


def test_bad_names():
    with pytest.raises(UserError, match=r"sampler.*'euler'.*dpm2m, ddim, ancestral"):
        resolve_sampler("euler")
    with pytest.raises(UserError, match=r"sampler.*tests.diffusion.euler:Eule.*Eule"):
        resolve_sampler("tests.diffusion.euler:Eule")
    with pytest.raises(UserError, match=r"sampler.*tests.diffusion.euler:np.*default_steps.*bind"):
        resolve_sampler("tests.diffusion.euler:np")
    with pytest.raises(UserError, match=r"sampler.type.*''"):
        sampler_from_dict({"eta": 1.0})
    with pytest.raises(UserError, match=r"stunet.diffusion.samplers:DDIM.*strength"):
        sampler_from_dict({"type": "stunet.diffusion.samplers:DDIM", "strength": 1.0})


def test_bad_choices():
    for sampler, n, most in [
        (Ancestral(), 0, 1000),
        (DDIM(), 1001, 1000),
        (DPMSolver2M(), 501, 500),
    ]:
        with pytest.raises(UserError, match=f"num_steps.*{n}.*1.*{most}"):
            sampler.bind(SCHEDULE, n)
    choices = "fixed_small, fixed_large, learned_range"
    with pytest.raises(UserError, match=f"sampler.variance.*'tiny'.*{choices}"):
        Ancestral(variance="tiny")
    with pytest.raises(UserError, match=f"sampler.variance.*'tiny'.*{choices}"):
        Ancestral().bind(SCHEDULE, 10, variance="tiny")
    sampler = Ancestral("learned_range").bind(SCHEDULE, 10)
    x = jnp.zeros((1, 1, 1, 1, 1))
    with pytest.raises(UserError, match=r"sampler.variance.*'learned_range'.*'fixed_small'"):
        sampler.step(optimal, sampler.init(x), 0, x)
