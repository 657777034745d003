import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.diffusion import Schedule, add_noise, guided_denoiser, make_target

SCHEDULE = Schedule()
X = jnp.linspace(-1.0, 1.0, 12).reshape(2, 1, 1, 2, 3)
COND = (jnp.array([[1.0], [3.0]]), jnp.array([[True], [True]]))
UNCOND = (jnp.array([[0.5]]), jnp.array([[False]]))


class Network:
    """Returns its text state, and twice that as variance channels. Records batch sizes."""

    def __init__(self, learned_variance=False):
        self.batches = []
        self.learned_variance = learned_variance

    def __call__(self, x, t, cond):
        text, mask = cond
        assert t.shape == x.shape[:1]
        assert mask.dtype == bool
        self.batches.append(len(x))
        output = jnp.zeros_like(x) + text.reshape(-1, 1, 1, 1, 1)
        return jnp.concatenate([output, 2 * output], -1) if self.learned_variance else output


def guide(network, scale, kind="eps", uncond=UNCOND, **kwargs):
    kwargs = {"learned_variance": network.learned_variance, **kwargs}
    return guided_denoiser(network, SCHEDULE, kind, COND, uncond, scale, **kwargs)


def per_example(a):
    a = np.asarray(a).reshape(2, -1)
    np.testing.assert_array_equal(a, a[:, :1].repeat(a.shape[1], 1))
    return a[:, 0].tolist()


@pytest.mark.parametrize("scale", [7.0, 0.0, jnp.float32(7.0), jnp.array([7.0, 2.0])])
def test_extrapolates_in_one_call_of_twice_the_batch(scale):
    network = Network()
    eps = guide(network, scale)(X, jnp.float32(500)).eps
    expected = 0.5 + np.broadcast_to(scale, 2) * (np.array([1.0, 3.0]) - 0.5)
    np.testing.assert_allclose(per_example(eps), expected, rtol=1e-6)
    assert network.batches == [4]


def test_guidance_scale_per_pixel():
    scale = jnp.array([[1.0], [3.0]]).reshape(1, 1, 1, 2, 1)
    eps = np.asarray(guide(Network(), scale)(X, jnp.float32(500)).eps)
    expected = np.array([[1.0, 2.0], [3.0, 8.0]]).reshape(2, 1, 1, 2, 1)
    np.testing.assert_allclose(eps, np.broadcast_to(expected, X.shape), rtol=1e-6)
    outside = guide(Network(), scale, interval=(600, 700))(X, jnp.float32(500)).eps
    assert per_example(outside) == [1.0, 3.0]


@pytest.mark.parametrize("scale", [1, 1.0])
def test_scale_one_skips_the_unconditional_half(scale):
    network = Network()
    prediction = guide(network, scale, uncond=None)(X, jnp.float32(500))
    assert per_example(prediction.eps) == [1.0, 3.0]
    assert network.batches == [2]


def test_no_guidance_outside_the_interval():
    denoiser = guide(Network(), 3.0, interval=(200, 600))
    assert per_example(denoiser(X, jnp.array([600.0, 601.0])).eps) == [2.0, 3.0]
    assert per_example(denoiser(X, jnp.array([199.0, 200.0])).eps) == [1.0, 8.0]


def test_outside_the_interval_the_unconditional_half_is_not_computed():
    calls = []

    def network(x, t, cond):
        jax.debug.callback(functools.partial(calls.append, len(x)))
        return jnp.zeros_like(x) + cond[0].reshape(-1, 1, 1, 1, 1)

    def guided(t):
        denoiser = guided_denoiser(
            network, SCHEDULE, "eps", COND, UNCOND, 3.0, learned_variance=False, interval=(200, 600)
        )
        return denoiser(X, t).eps

    for t, rows, first in ((100.0, 2, 1.0), (400.0, 4, 2.0)):
        eps = jax.jit(guided)(jnp.float32(t))
        jax.effects_barrier()
        assert calls == [rows] and per_example(eps)[0] == first
        calls.clear()


def test_apg_leaves_out_what_is_parallel_to_the_prediction():
    rng = np.random.default_rng(0)
    shape = (2, 3, 4, 4, 3)
    x0, other = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    x_t, t = jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.array([300.0, 600.0])

    def predict(scale, other=other, **options):
        def network(x, t, cond):
            return jnp.where(
                cond.reshape(-1, 1, 1, 1, 1), *(jnp.tile(a, (2, *[1] * 4)) for a in (x0, other))
            )

        cond, uncond = jnp.ones(2, bool), jnp.zeros(2, bool)
        denoiser = guided_denoiser(
            network, SCHEDULE, "x0", cond, uncond, scale, learned_variance=False, **options
        )
        return denoiser(x_t, t)

    prediction = predict(5.0, method="apg")
    for change, given, away in zip(prediction.x0 - x0, x0, x0 - other, strict=True):
        assert abs(float((change * given).sum())) < 1e-3  # orthogonal to the prediction
        parallel = (away * given).sum() / (given * given).sum() * given
        np.testing.assert_allclose(change, 4 * (away - parallel), atol=1e-4)
    log_snr = SCHEDULE.log_snr(t)
    np.testing.assert_allclose(add_noise(prediction.x0, prediction.eps, log_snr), x_t, atol=1e-4)
    # A difference without a parallel part is guided as by "cfg"; one that is parallel, not at all.
    np.testing.assert_allclose(predict(5.0, other=3 * x0, method="apg").x0, x0, atol=1e-4)
    dot = (x0 * other).sum((1, 2, 3, 4), keepdims=True)
    aside = other - dot / (x0 * x0).sum((1, 2, 3, 4), keepdims=True) * x0
    cfg, apg = (predict(5.0, other=x0 - aside, method=name).x0 for name in ("cfg", "apg"))
    np.testing.assert_allclose(apg, cfg, atol=1e-4)


def test_variance_is_taken_from_the_conditional_half():
    prediction = guide(Network(learned_variance=True), 7.0)(X, jnp.float32(500))
    assert per_example(prediction.variance) == [2.0, 6.0]
    assert per_example(prediction.eps) == [4.0, 18.0]
    untrained = guide(Network(learned_variance=True), 7.0, learned_variance=False)
    assert untrained(X, jnp.float32(500)).variance is None


def test_guiding_v_equals_guiding_eps():
    t = jnp.float32(300)
    log_snr = SCHEDULE.log_snr(t)

    def network(kind):
        def call(x, t, cond):
            x0 = jnp.zeros_like(x) + 0.1 * cond[0].reshape(-1, 1, 1, 1, 1)
            alpha, sigma = (
                jnp.sqrt(1 / (1 + jnp.exp(-log_snr))),
                jnp.sqrt(1 / (1 + jnp.exp(log_snr))),
            )
            return make_target(kind, x0, (x - alpha * x0) / sigma, log_snr)

        return guided_denoiser(call, SCHEDULE, kind, COND, UNCOND, 4.0, learned_variance=False)

    for kind in ("x0", "v"):
        got, expected = network(kind)(X, t), network("eps")(X, t)
        np.testing.assert_allclose(got.x0, expected.x0, atol=2e-6)
        np.testing.assert_allclose(got.eps, expected.eps, atol=2e-6)
