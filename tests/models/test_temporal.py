"""The paper's temporal modules (2401.12945 section 3.1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.models.temporal import (
    AttentionInflationBlock,
    ConvInflationBlock,
    TemporalAttention,
    TemporalDownsample,
    TemporalUpsample,
    rotary,
)
from tests.tiny import random_params

VIDEO = jax.random.normal(jax.random.key(0), (2, 6, 2, 3, 4))


def test_identity_resamplers_are_nearest_neighbour():
    down, up = TemporalDownsample(), TemporalUpsample()
    key = jax.random.key(0)
    halved = down.apply(down.init(key, VIDEO), VIDEO)
    np.testing.assert_array_equal(halved, VIDEO[:, ::2])  # frames 0, 2, 4, not 1, 3, 5
    doubled = up.apply(up.init(key, VIDEO), VIDEO)
    np.testing.assert_array_equal(doubled, np.repeat(VIDEO, 2, axis=1))


def test_resamplers_convolve_over_time_with_zero_padding():
    kernel = np.random.default_rng(2).normal(size=(3, 1, 4, 4))
    bias = np.arange(4.0)
    params = {"params": {"conv": {"kernel": kernel, "bias": bias}}}
    padded = np.pad(VIDEO, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    full = bias + sum(padded[:, i : i + 6] @ kernel[i, 0] for i in range(3))
    down = TemporalDownsample().apply(params, VIDEO)
    np.testing.assert_allclose(down, full[:, ::2], atol=1e-5)
    up = TemporalUpsample().apply(params, VIDEO[:, ::2])
    repeated = np.pad(np.repeat(VIDEO[:, ::2], 2, axis=1), ((0, 0), (1, 1)) + ((0, 0),) * 3)
    expected = bias + sum(repeated[:, i : i + 6] @ kernel[i, 0] for i in range(3))
    np.testing.assert_allclose(up, expected, atol=1e-5)


def test_he_initialisation_has_variance_two_over_fan_in():
    video = jnp.zeros((1, 2, 1, 1, 64))
    params = TemporalDownsample("he").init(jax.random.key(0), video)["params"]
    assert np.std(params["conv"]["kernel"]) == pytest.approx((2 / (3 * 64)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("block", "reached"),
    [
        (ConvInflationBlock(groups=2), (1, 2, 3)),
        (AttentionInflationBlock(num_layers=2, head_dim=4, groups=2), range(6)),
    ],
    ids=["convolution", "attention"],
)
def test_blocks_start_as_the_identity_and_mix_frames_once_trained(block, reached):
    params = block.init(jax.random.key(0), VIDEO)
    np.testing.assert_array_equal(block.apply(params, VIDEO), VIDEO)

    params = random_params(params)
    changed = VIDEO.at[0, 2, 0, 0].add(jnp.array([1.0, -1.0, 2.0, 0.0]))
    change = np.abs(block.apply(params, changed) - block.apply(params, VIDEO))
    frames = change.max(axis=(2, 3, 4)) > 1e-6
    assert [t for t in range(6) if frames[0, t]] == list(reached)
    assert not frames[1].any()  # the other video is unchanged
    # Group norms couple all positions of a frame; convolutions reach their neighbours.
    assert change[0, 2, 1, 2].max() > 1e-7


def test_rotary_scores_depend_on_the_temporal_distance_only():
    pair = np.random.default_rng(3).normal(size=(2, 1, 1, 1, 1, 8))
    x = np.broadcast_to(pair, (2, 1, 7, 1, 1, 8))
    query, key = (np.asarray(rotary(jnp.asarray(a)))[0, :, 0, 0] for a in x)
    scores = query @ key.T
    for distance in range(-6, 7):
        np.testing.assert_allclose(np.ptp(np.diagonal(scores, distance)), 0, atol=1e-5)
    assert np.ptp(scores[0]) > 0.1
    np.testing.assert_allclose(np.linalg.norm(query[3]), np.linalg.norm(pair[0]), rtol=1e-6)


def test_temporal_attention_equals_numpy_at_one_position():
    layer, video = TemporalAttention(head_dim=4, groups=1), VIDEO[:1, :, :1, :1]
    params = random_params(layer.init(jax.random.key(0), video))["params"]
    params["norm"] = {"scale": np.ones(4), "bias": np.zeros(4)}
    x = np.asarray(video[0, :, 0, 0])
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def dense(name, y):
        return y @ params[name]["kernel"] + params[name]["bias"]

    def rotate(y):
        angles = np.arange(6)[:, None] * np.array([1.0, 1e-2])
        pairs = (y[:, :2] + 1j * y[:, 2:]) * np.exp(1j * angles)
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    logits = rotate(dense("q", normed)) @ rotate(dense("k", normed)).T / 2
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = x + dense("out", weights @ dense("v", normed))
    result = layer.apply({"params": params}, video)
    np.testing.assert_allclose(result[0, :, 0, 0], expected, atol=1e-5)
