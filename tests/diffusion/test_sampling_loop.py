import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.diffusion import (
    SAMPLERS,
    START_NOISE,
    Schedule,
    Threshold,
    add_noise,
    keyed_noise,
    run_steps,
    sample_in_chunks,
    thresholded_denoiser,
    to_prediction,
)

SCHEDULE = Schedule()
KEY = jax.random.key(5)
SHAPE = (2, 4, 4, 3)
STEPS = 12
# from NumPy, because compiling JAX's generator into each function takes seconds
START, TABLE = jnp.split(
    jnp.asarray(np.random.default_rng(0).normal(size=(1 + STEPS, 2, *SHAPE)), jnp.float32), [1]
)


def noise(i):
    return TABLE[i]


def denoise(x_t, t):
    """An arbitrary nonlinear denoiser."""
    output = jnp.tanh(x_t + 0.3 * jnp.roll(x_t, 1, axis=2))
    return to_prediction("v", output, x_t, SCHEDULE.log_snr(t), False)


DENOISER = thresholded_denoiser(denoise, SCHEDULE, Threshold())


def chunk_function(sampler, chunk, denoiser=DENOISER):
    @jax.jit
    def run(carry, start):
        return run_steps(sampler, denoiser, carry, start, chunk, noise)

    return run


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_results_do_not_depend_on_the_chunk_size(name):
    sampler = SAMPLERS[name].bind(SCHEDULE, STEPS)
    carry = sampler.init(START[0])
    expected = chunk_function(sampler, STEPS)(carry, jnp.int32(0))
    assert float(jnp.std(expected.x)) > 0.1
    assert int(expected.taken) == STEPS
    for chunk in (1, 5, 20):
        got = sample_in_chunks(chunk_function(sampler, chunk), carry, STEPS, chunk)
        for got_leaf, expected_leaf in zip(got, expected, strict=True):
            np.testing.assert_array_equal(got_leaf, expected_leaf)


def test_chunks_share_one_compilation_and_stop_at_the_end_of_the_grid():
    traces, calls = [], []

    def counting(x_t, t):
        traces.append(1)
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return denoise(x_t, t)

    sampler = SAMPLERS["ancestral"].bind(SCHEDULE, STEPS)
    run = chunk_function(sampler, 5, counting)
    carry = sample_in_chunks(run, sampler.init(START[0]), STEPS, 5)
    carry.x.block_until_ready()
    jax.effects_barrier()
    assert len(traces) == 1
    assert sorted(calls, reverse=True) == sampler.grid.timesteps.tolist()


@pytest.mark.parametrize("name", ["ancestral", "dpm2m"])
def test_start_in_the_middle_equals_single_steps(name):
    sampler = SAMPLERS[name].bind(SCHEDULE, STEPS)
    start = 7
    video = 0.5 * jnp.ones((2, *SHAPE))
    x = add_noise(video, START[0], jnp.float32(sampler.grid.log_snr[start]))
    got = sample_in_chunks(chunk_function(sampler, 2), sampler.init(x), STEPS, 2, start=start)
    carry = sampler.init(x)
    for i in range(start, STEPS):
        carry = sampler.step(DENOISER, carry, i, noise(i))
    assert int(got.taken) == STEPS - start
    np.testing.assert_allclose(got.x, carry.x, atol=2e-5)


def test_callback_reports_previews_and_cancels():
    sampler = SAMPLERS["ddim"].bind(SCHEDULE, STEPS)
    run = chunk_function(sampler, 5)
    carry = sampler.init(START[0])
    seen = []
    end = sample_in_chunks(run, carry, STEPS, 5, lambda done, x0: seen.append((done, x0)))
    assert [done for done, _ in seen] == [5, 10, 12]
    np.testing.assert_array_equal(seen[-1][1], end.x)
    assert not np.array_equal(seen[0][1], end.x)
    assert float(jnp.abs(seen[0][1]).max()) <= 1  # a thresholded x0, not the noisy x
    cancelled = sample_in_chunks(run, carry, STEPS, 5, lambda done, _: done == 10)
    assert int(cancelled.taken) == 10


def test_noise_is_keyed_by_position_and_step():
    batch = keyed_noise(KEY, jnp.array([3, 8]), SHAPE)
    other = keyed_noise(KEY, jnp.array([8, 0]), SHAPE)
    np.testing.assert_array_equal(batch(4)[1], other(4)[0])
    np.testing.assert_array_equal(batch(4), jax.jit(batch)(jnp.int32(4)))
    draws = np.concatenate([batch(i) for i in range(START_NOISE, 10)]).reshape(22, -1)
    correlations = np.corrcoef(draws) - np.eye(22)
    assert np.abs(correlations).max() < 0.45  # over 96 values each
    assert draws.mean() == pytest.approx(0, abs=0.08)
    assert draws.std() == pytest.approx(1, abs=0.06)
