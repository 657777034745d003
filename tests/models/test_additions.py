"""Our additions to the paper's temporal modules."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from stunet.models.additions import (
    CONVOLUTIONS,
    ExtendedAttentionBlock,
    ExtendedTemporalAttention,
    TemporalModulation,
    add_positions,
    add_projected_conditioning,
    conv_block,
)
from stunet.models.layers import average_pool
from stunet.models.temporal import AttentionInflationBlock, ConvInflationBlock
from stunet.models.unet_config import BLOCKS, TemporalConfig
from tests.tiny import random_params

CONFIG = TemporalConfig((True,), head_dim=4, text_modulation=True)
VIDEO = jax.random.normal(jax.random.key(0), (2, 6, 2, 3, 4))
EMBEDDING = jax.random.normal(jax.random.key(1), (2, 1, 5))


def conv(config):
    return conv_block(config)(groups=2, config=config)


def attention(config):
    return ExtendedAttentionBlock(config.attention_layers, config.head_dim, 2, config=config)


@pytest.mark.parametrize(
    ("extended", "paper"),
    [(conv, ConvInflationBlock(2)), (attention, AttentionInflationBlock(2, 4, 2))],
    ids=["convolution", "attention"],
)
def test_without_additions_blocks_equal_the_papers(extended, paper):
    block = extended(TemporalConfig((True,), head_dim=4))
    shapes = jax.eval_shape(block.init, jax.random.key(0), VIDEO, EMBEDDING)
    assert shapes == jax.eval_shape(paper.init, jax.random.key(0), VIDEO)
    params = random_params(shapes)
    expected = paper.apply(params, VIDEO)
    np.testing.assert_array_equal(block.apply(params, VIDEO, EMBEDDING), expected)


def test_every_block_type_has_convolutions():
    assert set(CONVOLUTIONS) == set(BLOCKS)


@pytest.mark.parametrize("block", [*BLOCKS, "attention"])
def test_blocks_start_as_the_identity_and_mix_frames_once_trained(block):
    if block == "attention":
        layer = attention(CONFIG)
    else:
        layer = conv(TemporalConfig((True,), block=block, head_dim=4))
    params = layer.init(jax.random.key(0), VIDEO, EMBEDDING)
    np.testing.assert_array_equal(layer.apply(params, VIDEO, EMBEDDING), VIDEO)

    params = random_params(params)
    changed = VIDEO.at[0, 2, 0, 0].add(jnp.array([1.0, -1.0, 2.0, 0.0]))
    change = np.abs(layer.apply(params, changed, EMBEDDING) - layer.apply(params, VIDEO, EMBEDDING))
    frames = change.max(axis=(2, 3, 4)) > 1e-6
    reached = range(6) if block == "attention" else (1, 2, 3)
    assert [t for t in range(6) if frames[0, t]] == list(reached)
    assert not frames[1].any()  # the other video is unchanged
    assert change[0, 2, 1, 2].max() > 1e-7


@pytest.mark.parametrize("block", BLOCKS)
def test_hidden_width_is_rounded_to_whole_groups(block):
    layer = conv(TemporalConfig((True,), block=block, hidden=1.6, head_dim=4))
    params = layer.init(jax.random.key(0), VIDEO, EMBEDDING)
    assert params["params"]["proj"]["kernel"].shape == (6, 4)  # 1.6 x 4, in groups of 2
    np.testing.assert_array_equal(layer.apply(params, VIDEO, EMBEDDING), VIDEO)


@pytest.mark.parametrize("block", [conv, attention])
def test_blocks_read_the_conditioning(block):
    layer, cond = block(TemporalConfig((True,), head_dim=4)), VIDEO[..., :3]
    params = random_params(layer.init(jax.random.key(0), VIDEO, EMBEDDING, cond))
    changed = cond.at[0, 2, 0, 0].add(1)
    a, b = (layer.apply(params, VIDEO, EMBEDDING, x) for x in (cond, changed))
    assert np.abs(a - b)[0].max() > 1e-2
    np.testing.assert_array_equal(a[1], b[1])


def test_conditioning_is_averaged_and_projected():
    features, cond = jnp.ones((1, 2, 1, 2, 3)), VIDEO[:1, ::3, :, :2]
    small = average_pool(cond, (2, 1, 2))
    np.testing.assert_allclose(small, np.mean(cond, 2, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(
        average_pool(cond, (1, 1, 1)).ravel(), np.mean(cond[0], (0, 1, 2)), rtol=1e-6
    )
    kernel = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)

    class Conditioned(nn.Module):
        @nn.compact
        def __call__(self, h, cond):
            return add_projected_conditioning(h, cond)

    result = Conditioned().apply({"params": {"given": {"kernel": kernel}}}, features, small)
    np.testing.assert_allclose(result, 1 + np.asarray(small) @ kernel, atol=1e-6)
    np.testing.assert_array_equal(Conditioned().apply({}, features, None), features)


def test_feed_forward_processes_each_frame_separately():
    without = TemporalConfig((True,), head_dim=4)
    config = dataclasses.replace(without, feed_forward=True)
    layer = ExtendedTemporalAttention(head_dim=4, groups=1, config=config)
    attend = ExtendedTemporalAttention(head_dim=4, groups=1, config=without)
    video = VIDEO[:1, :, :1, :1]
    params = random_params(layer.init(jax.random.key(0), video, EMBEDDING[:1]))["params"]
    params["norm_feed_forward"] = {"scale": np.ones(4), "bias": np.zeros(4)}
    x = np.asarray(attend.apply({"params": params}, video, EMBEDDING[:1])[0, :, 0, 0])
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    first, second = params["feed_forward_1"], params["feed_forward_2"]
    hidden = normed @ first["kernel"] + first["bias"]
    hidden = 0.5 * hidden * (1 + erf(hidden / 2**0.5))
    expected = x + hidden @ second["kernel"] + second["bias"]
    result = layer.apply({"params": params}, video, EMBEDDING[:1])[0, :, 0, 0]
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("block", [conv, attention])
def test_positions_differ_in_a_flat_video_and_depend_on_the_frame(block):
    """A video without content, far from the border: only the modulation differs by position."""
    video = jnp.ones((1, 6, 12, 12, 4))
    embedding = jax.random.normal(jax.random.key(4), (1, 6, 5))

    def interior(**fields):
        layer = block(TemporalConfig((True,), head_dim=4, feed_forward=True, **fields))
        params = random_params(layer.init(jax.random.key(0), video, embedding))
        return np.asarray(layer.apply(params, video, embedding))[0, 2:4, 2:-2, 2:-2]

    flat = interior(text_modulation=True)
    assert np.ptp(flat, axis=(1, 2)).max() < 1e-5
    varied = interior(text_modulation=True, position_encoding=True)
    assert np.ptp(varied, axis=(1, 2)).min() > 0.1
    assert np.abs(varied - varied[:, :, ::-1]).max() > 0.1  # left differs from right
    difference = (varied[0] - varied[1]) - (varied[0] - varied[1]).mean((0, 1))
    assert np.abs(difference).max() > 0.1  # the pattern differs from frame to frame


def test_positions_are_independent_of_the_resolution():
    """An image of twice the size gets the same waves, sampled more finely."""
    config = TemporalConfig((True,), position_encoding=True)
    embedding = jax.random.normal(jax.random.key(4), (1, 1, 5))

    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x, embedding):
            return add_positions(config, x, embedding, "position")

    small, large = (jnp.zeros((1, 1, n, n, 4)) for n in (16, 32))
    params = Encoder().init(jax.random.key(0), small, embedding)
    coarse, fine = (np.asarray(Encoder().apply(params, x, embedding)) for x in (small, large))
    averaged = fine.reshape(1, 1, 16, 2, 16, 2, 4).mean((3, 5))
    np.testing.assert_allclose(averaged, coarse, atol=0.03 * np.abs(coarse).max())


def test_modulation_starts_as_a_product_of_text_and_frame():
    """A large part of its variance depends on neither the text nor the frame alone."""
    config = TemporalConfig((True,), text_modulation=True, frame_modulation=True)
    layer = TemporalModulation(config, width=64)
    text = jax.random.normal(jax.random.key(0), (40, 6, 16))
    params = layer.init(jax.random.key(0), text, 8)
    initial = np.asarray(layer.apply(params, text, 8))
    assert initial.shape == (40, 8, 64)
    values = initial - initial.mean((0, 1))
    product = values - values.mean(0) - values.mean(1, keepdims=True)
    assert product.var() > 0.25 * values.var()
    np.testing.assert_allclose(layer.apply(params, text[:, ::-1], 8), initial, atol=1e-3)


@pytest.mark.parametrize(("text", "frames", "shape"), [(1, 0, (2, 1, 6)), (0, 1, (1, 5, 6))])
def test_modulation_by_only_the_text_or_the_frame(text, frames, shape):
    config = TemporalConfig((True,), text_modulation=bool(text), frame_modulation=bool(frames))
    layer = TemporalModulation(config, width=6)
    states = jax.random.normal(jax.random.key(0), (2, 3, 4))
    params = layer.init(jax.random.key(0), states, 5)
    values = layer.apply(params, states, 5)
    assert values.shape == shape and np.std(values, axis=(0, 1)).min() > 0.1


@pytest.mark.parametrize("block", [conv, attention])
def test_relative_branches_scale_with_their_input(block):
    relative = dataclasses.replace(CONFIG, relative=True)
    params = random_params(block(CONFIG).init(jax.random.key(0), VIDEO, EMBEDDING))

    def branch(config, video):
        return block(config).apply(params, video, EMBEDDING) - video

    scale = np.sqrt(np.square(VIDEO).mean((2, 3, 4), keepdims=True))
    expected = scale * branch(CONFIG, VIDEO / scale)
    np.testing.assert_allclose(branch(relative, VIDEO), expected, atol=1e-4)
    np.testing.assert_allclose(branch(relative, 300 * VIDEO), 300 * expected, rtol=1e-3, atol=1e-2)
    assert np.abs(branch(CONFIG, VIDEO) - expected).max() > 0.1
