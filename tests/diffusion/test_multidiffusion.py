import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.diffusion import (
    Ancestral,
    Prediction,
    Schedule,
    Windows,
    alpha_sigma,
    chunked,
    guided_denoiser,
    run_steps,
    to_prediction,
    windowed_denoiser,
)
from stunet.diffusion.prediction import expand
from stunet.errors import UserError

SCHEDULE = Schedule()
VARIANCE = 0.25
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("num_frames", "length", "overlap", "starts"),
    [
        (10, 4, 2, (0, 2, 4, 6)),
        (9, 4, 2, (0, 2, 4, 5)),  # the last window is shifted back
        (12, 4, 0, (0, 4, 8)),
        (5, 4, 3, (0, 1)),
        (4, 8, 2, (0,)),
        (1, 8, 2, (0,)),
    ],
)
def test_windows_cover_the_clip(num_frames, length, overlap, starts):
    windows = Windows.over(num_frames, length, overlap=overlap)
    assert windows.starts == starts
    assert windows.length == min(length, num_frames) and windows.num_frames == num_frames
    x = normal(2, num_frames, 3)
    parts = np.asarray(windows.split(x)).reshape(2, len(starts), windows.length, 3)
    for i, start in enumerate(starts):
        np.testing.assert_array_equal(parts[:, i], x[:, start : start + windows.length])


@pytest.mark.parametrize("length", [8, 15, 28, 41])
def test_exact_tilings_of_the_papers_clip(length):
    assert set(np.diff(Windows.over(80, length).starts)) == {length - 2}


@pytest.mark.parametrize("weights", ["uniform", "ramp"])
@pytest.mark.parametrize(("num_frames", "overlap"), [(14, 2), (13, 2), (11, 3), (5, 2)])
def test_merged_clip_is_the_least_squares_solution(weights, num_frames, overlap):
    windows = Windows.over(num_frames, 5, overlap=overlap, weights=weights)
    predictions = normal(len(windows.starts), windows.length, 2)
    rows, values = [], []
    for window, start in enumerate(windows.starts):
        for i in range(windows.length):
            near_edge = 1 + min(i, windows.length - 1 - i)
            weight = min(near_edge, overlap + 1) if weights == "ramp" else 1
            rows.append(np.sqrt(weight) * np.eye(num_frames)[start + i])
            values.append(np.sqrt(weight) * np.asarray(predictions[window, i], np.float64))
    expected, *_ = np.linalg.lstsq(np.stack(rows), np.stack(values), rcond=None)
    np.testing.assert_allclose(windows.merge(predictions)[0], expected, atol=1e-6)


def test_windows_without_overlap_are_concatenated():
    windows = Windows.over(12, 4, overlap=0)
    predictions = normal(6, 4, 2)
    np.testing.assert_array_equal(windows.merge(predictions), predictions.reshape(2, 12, 2))


@pytest.mark.parametrize(("num_frames", "length", "overlap"), [(16, 4, 2), (20, 8, 2), (12, 4, 0)])
def test_every_window_has_the_noise_of_the_first_in_another_order(num_frames, length, overlap):
    windows = Windows.over(num_frames, length, overlap=overlap)
    frames = windows.noise_frames
    found = [frames[start : start + length].tolist() for start in windows.starts]
    assert len(frames) == num_frames and found[0] == list(range(length))
    assert all(sorted(window) == found[0] for window in found)
    assert len(set(map(tuple, found))) > 1


def test_a_window_that_is_shifted_back_has_noise_of_the_first():
    windows = Windows.over(9, 4, overlap=2)
    assert len(windows.noise_frames) == 9 and set(windows.noise_frames) <= set(range(4))
    np.testing.assert_array_equal(Windows.over(3, 4, overlap=2).noise_frames, range(3))


def frame_local(x_t, t):
    """A nonlinear denoiser that treats each frame separately, with variance channels."""
    log_snr = SCHEDULE.log_snr(t)
    output = jnp.tanh(x_t + 0.5 * jnp.roll(x_t, 1, axis=2))
    return to_prediction("v", jnp.concatenate([output, 0.3 * output], -1), x_t, log_snr, True)


@pytest.mark.parametrize("weights", ["uniform", "ramp"])
@pytest.mark.parametrize(("length", "overlap"), [(4, 2), (5, 1), (7, 6), (3, 0)])
def test_windows_do_not_change_a_frame_local_denoiser(length, overlap, weights):
    """Compares full ancestral sampling with learned variance and the same noise."""
    windows = Windows.over(11, length, overlap=overlap, weights=weights)
    shape, steps = (2, 11, 2, 2, 3), 8
    start, noise = normal(*shape), normal(steps, *shape)
    sampler = Ancestral("learned_range").bind(SCHEDULE, steps)
    results = [
        run_steps(sampler, denoiser, sampler.init(start), 0, steps, lambda i: noise[i]).x
        for denoiser in (frame_local, windowed_denoiser(frame_local, windows))
    ]
    assert results[0].std() > 0.1
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6, atol=1e-6)


def test_averaged_predictions_are_consistent():
    """Averages a denoiser that predicts the window's number, with a timestep per video."""
    windows = Windows.over(6, 4, weights="uniform")
    x_t, t = normal(2, 6, 1, 1, 1), jnp.array([200.0, 700.0])
    calls = []

    def window_number(x, t):
        calls.append((x, t))
        x0 = jnp.tile(jnp.arange(2.0), 2).reshape(4, 1, 1, 1, 1) * jnp.ones_like(x)
        return to_prediction("x0", x0, x, SCHEDULE.log_snr(t), False)._replace(variance=10 * x0)

    prediction = windowed_denoiser(window_number, windows)(x_t, t)
    ((x_windows, timesteps),) = calls
    np.testing.assert_array_equal(x_windows, windows.split(x_t))
    np.testing.assert_array_equal(timesteps, [200, 200, 700, 700])
    expected = np.array([0, 0, 0.5, 0.5, 1, 1])
    np.testing.assert_allclose(prediction.x0[1].ravel(), expected)
    np.testing.assert_allclose(prediction.variance[0].ravel(), 10 * expected)
    alpha, sigma = alpha_sigma(expand(SCHEDULE.log_snr(t), x_t.ndim))
    np.testing.assert_allclose(alpha * prediction.x0 + sigma * prediction.eps, x_t, atol=1e-5)


def optimal(x_t, t):
    """Returns E[x0 | x_t] of independent frames N(0, VARIANCE)."""
    log_snr = SCHEDULE.log_snr(t)
    alpha, sigma = alpha_sigma(expand(log_snr, x_t.ndim))
    x0 = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * x_t
    return to_prediction("x0", x0, x_t, log_snr, False)


def test_noise_variance_in_overlaps():
    """Samples Gaussian frames; averaging samples instead of predictions loses variance."""
    windows, steps = Windows.over(8, 5), 250
    overlap, elsewhere = np.array([3, 4]), np.array([0, 1, 2, 5, 6, 7])
    shape = (1, 8, 32, 32, 16)
    sampler = Ancestral().bind(SCHEDULE, steps)
    key = jax.random.key(0)

    def noise(i, shape=shape):
        return jax.random.normal(jax.random.fold_in(key, i), shape)

    @jax.jit
    def average_predictions(x):
        denoiser = windowed_denoiser(optimal, windows)
        return run_steps(sampler, denoiser, sampler.init(x), 0, steps, noise).x

    @jax.jit
    def average_samples(x):
        """Takes a step of each window with its own noise, then averages."""

        def step(i, x):
            carry = sampler.init(windows.split(x))
            stepped = sampler.step(optimal, carry, i, noise(i, carry.x.shape)).x
            return windows.merge(stepped)

        return jax.lax.fori_loop(0, steps, step, x)

    start = jax.random.normal(jax.random.key(1), shape)
    ratios = {}
    for name, sample in (("predictions", average_predictions), ("samples", average_samples)):
        x = np.asarray(sample(start))
        assert x[:, elsewhere].var() == pytest.approx(VARIANCE, rel=0.05)
        ratios[name] = x[:, overlap].var() / x[:, elsewhere].var()
    assert ratios["predictions"] == pytest.approx(1, abs=0.05)
    assert ratios["samples"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("rows", [1, 2, 4, 6, 9])
def test_chunked_network(rows):
    """Checks outputs and batch sizes; conditioning is split with its rows."""
    sizes = []

    def network(x, t, cond):
        sizes.append(len(x))
        return jnp.tanh(x) + t[:, None] * cond["text"]

    x, t, cond = normal(6, 3), normal(6), {"text": normal(6, 1)}
    expected = network(x, t, cond)
    np.testing.assert_allclose(chunked(network, rows)(x, t, cond), expected, atol=1e-6)
    assert set(sizes[1:]) == {min(rows, 6)}


def test_guidance_of_windows_with_conditioning_per_frame():
    """Guides chunked windows with one conditioning array per clip and one per frame."""
    windows = Windows.over(7, 4)
    x_t, t = normal(2, 7, 1, 1, 3), jnp.float32(400)
    text, frames = normal(2), normal(2, 7, 1, 1, 3)

    def network(x, t, cond):
        return jnp.tanh(x + cond["frames"]) * expand(cond["text"], x.ndim)

    def denoiser(network, split, repeat):
        cond, empty = (
            {"text": repeat(a), "frames": split(frames)} for a in (text, jnp.zeros_like(text))
        )
        return guided_denoiser(network, SCHEDULE, "v", cond, empty, 3.0, learned_variance=False)

    expected = denoiser(network, lambda a: a, lambda a: a)(x_t, t)
    window_denoiser = denoiser(chunked(network, 3), windows.split, windows.repeat)
    got = windowed_denoiser(window_denoiser, windows)(x_t, t)
    assert isinstance(got, Prediction) and got.variance is None
    np.testing.assert_allclose(got.x0, expected.x0, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"length": 6, "stride": 4}, "length.* 6.*stride.* 4"),
        ({"length": 0}, "length.* 0"),
        ({"length": 4, "overlap": 4}, "overlap.* 4.*0 to 3.*length.* 4"),
        ({"length": 4, "overlap": -1}, "overlap.* -1.*0 to 3"),
        ({"length": 4, "weights": "cosine"}, "weights.*'cosine'.*uniform, ramp"),
    ],
)
def test_bad_windows(kwargs, message):
    with pytest.raises(UserError, match=message):
        Windows.over(16, **kwargs)
