import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from stunet.models.temporal import (
    TemporalAttention,
    TemporalAttentionBlock,
    TemporalConfig,
    TemporalConvBlock,
    TemporalDownsample,
    TemporalModulation,
    TemporalUpsample,
    encode_position,
    rotary,
    show,
)
from stunet.models.unet import averaged
from tests.tiny import random_params

CONFIG = TemporalConfig((True,), head_dim=4, text_modulation=True)
VIDEO = np.random.default_rng(0).normal(size=(2, 6, 2, 3, 4)).astype(np.float32)
EMBEDDING = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)


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
    video = np.zeros((1, 2, 1, 1, 64), np.float32)
    params = TemporalDownsample("he").init(jax.random.key(0), video)["params"]
    assert np.std(params["conv"]["kernel"]) == pytest.approx((2 / (3 * 64)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("block", ["factorised", "conv1d", "conv3d", "attention"])
def test_blocks_start_as_the_identity_and_then_reach_across_frames(block):
    if block == "attention":
        layer = TemporalAttentionBlock(CONFIG, groups=2)
    else:
        layer = TemporalConvBlock(TemporalConfig((True,), block=block, head_dim=4), groups=2)
    params = layer.init(jax.random.key(0), VIDEO, EMBEDDING)
    np.testing.assert_array_equal(layer.apply(params, VIDEO, EMBEDDING), VIDEO)

    params = random_params(params)
    changed = VIDEO.copy()
    changed[0, 2, 0, 0] += [1, -1, 2, 0]
    moved = np.abs(layer.apply(params, changed, EMBEDDING) - layer.apply(params, VIDEO, EMBEDDING))
    frames = moved.max(axis=(2, 3, 4)) > 1e-6
    reached = range(6) if block == "attention" else (1, 2, 3)
    assert [t for t in range(6) if frames[0, t]] == list(reached)
    assert not frames[1].any()  # the other video is left alone
    # Group norms spread over a frame; beyond them, attention and conv1d stay at one position.
    assert moved[0, 2, 1, 2].max() > 1e-7


@pytest.mark.parametrize("block", ["factorised", "conv1d", "conv3d"])
def test_blocks_of_another_width_inside(block):
    """In whole groups, and still the identity at first."""
    config = TemporalConfig((True,), block=block, hidden=1.6, head_dim=4)
    layer = TemporalConvBlock(config, groups=2)
    params = layer.init(jax.random.key(0), VIDEO, EMBEDDING)
    assert params["params"]["proj"]["kernel"].shape == (6, 4)  # 1.6 x 4, in groups of 2
    np.testing.assert_array_equal(layer.apply(params, VIDEO, EMBEDDING), VIDEO)


@pytest.mark.parametrize("attention", [True, False])
def test_blocks_are_shown_what_is_given(attention):
    block = TemporalAttentionBlock if attention else TemporalConvBlock
    config = TemporalConfig((True,), head_dim=4)
    layer, given = block(config, groups=2), VIDEO[..., :3]
    params = random_params(layer.init(jax.random.key(0), VIDEO, EMBEDDING, given))
    changed = given.copy()
    changed[0, 2, 0, 0] += 1
    a, b = (layer.apply(params, VIDEO, EMBEDDING, cond) for cond in (given, changed))
    assert np.abs(a - b)[0].max() > 1e-2
    np.testing.assert_array_equal(a[1], b[1])


def test_what_is_given_is_projected_and_averaged():
    features, given = jnp.ones((1, 2, 1, 2, 3)), jnp.asarray(VIDEO[:1, ::3, :, :2])
    small = averaged(given, (2, 1, 2))
    np.testing.assert_allclose(small, VIDEO[:1, ::3, :, :2].mean(2, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(
        averaged(given, (1, 1, 1)).ravel(), VIDEO[0, ::3, :, :2].mean((0, 1, 2)), rtol=1e-6
    )
    kernel = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)

    class Shown(nn.Module):
        @nn.compact
        def __call__(self, h, cond):
            return show(h, cond)

    made = Shown().apply({"params": {"given": {"kernel": kernel}}}, features, small)
    np.testing.assert_allclose(made, 1 + np.asarray(small) @ kernel, atol=1e-6)
    np.testing.assert_array_equal(Shown().apply({}, features, None), features)


def test_rotary_scores_depend_on_the_distance_in_time_alone():
    pair = np.random.default_rng(3).normal(size=(2, 1, 1, 1, 1, 8))
    x = np.broadcast_to(pair, (2, 1, 7, 1, 1, 8))
    query, key = (np.asarray(rotary(jnp.asarray(a)))[0, :, 0, 0] for a in x)
    scores = query @ key.T
    for distance in range(-6, 7):
        np.testing.assert_allclose(np.ptp(np.diagonal(scores, distance)), 0, atol=1e-5)
    assert np.ptp(scores[0]) > 0.1  # and it does depend on it
    np.testing.assert_allclose(np.linalg.norm(query[3]), np.linalg.norm(pair[0]), rtol=1e-6)


def test_temporal_attention_at_one_position_written_out():
    config = TemporalConfig((True,), head_dim=4)
    layer, video = TemporalAttention(config, groups=1), VIDEO[:1, :, :1, :1]
    params = random_params(layer.init(jax.random.key(0), video, EMBEDDING))["params"]
    params["norm"] = {"scale": np.ones(4), "bias": np.zeros(4)}
    x = video[0, :, 0, 0]
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
    got = layer.apply({"params": params}, video, EMBEDDING)
    np.testing.assert_allclose(got[0, :, 0, 0], expected, atol=1e-5)


def test_feed_forward_works_on_each_frame_by_itself():
    without = TemporalConfig((True,), head_dim=4)
    config = dataclasses.replace(without, feed_forward=True)
    layer, video = TemporalAttention(config, groups=1), VIDEO[:1, :, :1, :1]
    params = random_params(layer.init(jax.random.key(0), video, EMBEDDING))["params"]
    params["norm_feed_forward"] = {"scale": np.ones(4), "bias": np.zeros(4)}
    x = TemporalAttention(without, groups=1).apply({"params": params}, video, EMBEDDING)[0, :, 0, 0]
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    first, second = params["feed_forward_1"], params["feed_forward_2"]
    hidden = normed @ first["kernel"] + first["bias"]
    hidden = 0.5 * hidden * (1 + erf(hidden / 2**0.5))
    expected = x + hidden @ second["kernel"] + second["bias"]
    got = layer.apply({"params": params}, video, EMBEDDING)[0, :, 0, 0]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("block", ["factorised", "attention"])
def test_position_encoding_makes_places_of_a_flat_video_differ_with_words_and_frame(block):
    """A video without content, far from its edge: only the modulation can tell places apart."""
    module = TemporalAttentionBlock if block == "attention" else TemporalConvBlock
    video = np.ones((1, 6, 12, 12, 4), np.float32)
    embedding = np.random.default_rng(4).normal(size=(1, 6, 5)).astype(np.float32)

    def inside(**fields):
        layer = module(TemporalConfig((True,), head_dim=4, feed_forward=True, **fields), groups=2)
        params = random_params(layer.init(jax.random.key(0), video, embedding))
        return np.asarray(layer.apply(params, video, embedding))[0, 2:4, 2:-2, 2:-2]

    flat = inside(text_modulation=True)
    assert np.ptp(flat, axis=(1, 2)).max() < 1e-5
    told = inside(text_modulation=True, position_encoding=True)
    assert np.ptp(told, axis=(1, 2)).min() > 0.1
    assert np.abs(told - told[:, :, ::-1]).max() > 0.1  # left is not right
    apart = (told[0] - told[1]) - (told[0] - told[1]).mean((0, 1))
    assert np.abs(apart).max() > 0.1  # and what is left of it differs from frame to frame


def test_position_encoding_is_of_the_frame_whatever_its_resolution():
    """Waves over the frame: an image of twice the size gets the same ones, seen more finely."""
    config = TemporalConfig((True,), position_encoding=True)
    embedding = np.random.default_rng(4).normal(size=(1, 1, 5)).astype(np.float32)

    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x, embedding):
            return encode_position(config, x, embedding, "position")

    small, large = (np.zeros((1, 1, n, n, 4), np.float32) for n in (16, 32))
    params = Encoder().init(jax.random.key(0), small, embedding)
    coarse, fine = (np.asarray(Encoder().apply(params, x, embedding)) for x in (small, large))
    averaged = fine.reshape(1, 1, 16, 2, 16, 2, 4).mean((3, 5))
    np.testing.assert_allclose(averaged, coarse, atol=0.03 * np.abs(coarse).max())


def test_modulation_starts_as_a_product_of_words_and_time():
    """Of its variance, what neither the words nor the frame say alone is a large part."""
    config = TemporalConfig((True,), text_modulation=True, frame_modulation=True)
    layer = TemporalModulation(config, width=64)
    text = np.random.default_rng(0).normal(size=(40, 6, 16)).astype(np.float32)
    params = layer.init(jax.random.key(0), text, 8)
    before = np.asarray(layer.apply(params, text, 8))
    assert before.shape == (40, 8, 64)
    values = before - before.mean((0, 1))
    product = values - values.mean(0) - values.mean(1, keepdims=True)
    assert product.var() > 0.25 * values.var()
    np.testing.assert_allclose(layer.apply(params, text[:, ::-1], 8), before, atol=1e-3)


@pytest.mark.parametrize(("text", "frames", "shape"), [(1, 0, (2, 1, 6)), (0, 1, (1, 5, 6))])
def test_modulation_by_one_of_them_alone(text, frames, shape):
    config = TemporalConfig((True,), text_modulation=bool(text), frame_modulation=bool(frames))
    layer = TemporalModulation(config, width=6)
    states = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    params = layer.init(jax.random.key(0), states, 5)
    values = layer.apply(params, states, 5)
    assert values.shape == shape and np.std(values, axis=(0, 1)).min() > 0.1


@pytest.mark.parametrize("block", [TemporalConvBlock, TemporalAttentionBlock])
def test_relative_blocks_count_in_units_of_what_they_add_to(block):
    relative = dataclasses.replace(CONFIG, relative=True)
    params = random_params(
        block(CONFIG, groups=2).init(jax.random.key(0), VIDEO, EMBEDDING[:, None])
    )

    def added(config, video):
        return block(config, groups=2).apply(params, video, EMBEDDING[:, None]) - video

    scale = np.sqrt(np.square(VIDEO).mean((2, 3, 4), keepdims=True))
    expected = scale * added(CONFIG, VIDEO / scale)
    np.testing.assert_allclose(added(relative, VIDEO), expected, atol=1e-4)
    np.testing.assert_allclose(added(relative, 300 * VIDEO), 300 * expected, rtol=1e-3, atol=1e-2)
    assert np.abs(added(CONFIG, VIDEO) - expected).max() > 0.1
