"""Inflation: every N-th frame equals the text-to-image model's (2401.12945 section 3.1)."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.diffusion import (
    Ancestral,
    Schedule,
    Threshold,
    guided_denoiser,
    run_steps,
    thresholded_denoiser,
)
from stunet.errors import UserError
from stunet.models.unet import UNet, init_unet
from stunet.models.unet_config import TemporalConfig
from stunet.schema import to_dict
from stunet.weights.inflation import add_conditioning, extract_text_to_image, inflate
from stunet.weights.model_folder import ModelFolder
from stunet.weights.trees import flatten, is_temporal, partition
from tests.tiny import UNET, fast_compiles, random_params


def text_to_image(levels):
    return replace(
        UNET.text_to_image(),
        channels=(8,) * (levels - 1) + (16,),
        layers_per_block=(1,) * levels,
        attention_levels=(False,) + (True,) * (levels - 1),
    )


# Four levels have three resizes, like the paper's base model; other tests use two levels.
DEEP, T2I = text_to_image(4), text_to_image(2)
SIZE = 8
# Additions to the temporal modules of the paper.
ADDITIONS = {
    "text_modulation": True,
    "frame_modulation": True,
    "position_encoding": True,
    "feed_forward": True,
}


@functools.cache
def t2i_params(config=T2I):
    return random_params(jax.eval_shape(lambda: init_unet(config, jax.random.key(0))))


@functools.cache
def inflated(config=T2I, **temporal):
    resample = (True,) * (len(config.channels) - 1)
    temporal = TemporalConfig(**{"resample": resample, "head_dim": 8, **temporal})
    with fast_compiles():
        return inflate(t2i_params(config), config, temporal, jax.random.key(1))


def inputs(num_frames, batch=1):
    x, t, text = jax.random.split(jax.random.key(2), 3)
    x = jax.random.normal(x, (batch, num_frames, SIZE, SIZE, 3))
    t = jax.random.uniform(t, (batch,), maxval=999.0)
    return x, t, jax.random.normal(text, (batch, 5, 8))


def run(config, params, *args):
    with fast_compiles():
        return np.asarray(_apply(config, params, *args))


@functools.partial(jax.jit, static_argnums=0)
def _apply(config, params, *args):
    return UNet(config).apply({"params": params}, *args)


def run_on_frames(config, x, t, text):
    """Applies the text-to-image network to each frame of `[B, T, H, W, C]`."""
    b, frames = x.shape[:2]
    y = run(
        config,
        t2i_params(config),
        x.reshape(b * frames, 1, *x.shape[2:]),
        jnp.repeat(t, frames),
        jnp.repeat(text, frames, axis=0),
    )
    return y.reshape(b, frames, *y.shape[2:])


def deviation(a, b):
    """Returns the largest difference, relative to the largest output."""
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize(
    ("num_frames", "resample"),
    [
        (16, (True, False, False)),
        (80, (True, True, False)),
        (80, (True, True, True)),
        (16, (True, True, True)),
    ],
)
def test_every_nth_frame_equals_the_text_to_image_models(num_frames, resample):
    config, params = inflated(DEEP)
    config = replace(config, temporal=replace(config.temporal, resample=resample))
    stride = config.temporal_stride
    assert stride == 2 ** sum(resample)
    x, *rest = inputs(num_frames)
    expected = run_on_frames(DEEP, x, *rest)
    assert expected.std() > 0.1
    video = run(config, params, x, *rest)
    assert video.shape == (1, num_frames, SIZE, SIZE, 3)
    assert deviation(video[:, ::stride], expected[:, ::stride]) <= 1e-5
    # The frames between differ, because time is resampled.
    assert deviation(video[:, 1::stride], expected[:, 1::stride]) > 1e-2


def test_without_temporal_resampling_every_frame_equals_the_text_to_image_models():
    config, params = inflated(resample=(False,))
    args = inputs(16, batch=2)
    assert deviation(run(config, params, *args), run_on_frames(T2I, *args)) <= 1e-5


def test_an_image_equals_the_text_to_image_models_even_after_training():
    config, _ = inflated()
    trained = random_params(jax.eval_shape(lambda: init_unet(config, jax.random.key(0))), seed=3)
    spatial = partition(trained, lambda path: not is_temporal(path))[0]
    args = inputs(1)
    np.testing.assert_array_equal(run(config, trained, *args), run(T2I, spatial, *args))


@pytest.mark.parametrize(
    "fields",
    [{"block": "conv1d"}, {"block": "conv3d"}, {"attention_levels": (True, True)}],
    ids=str,
)
def test_every_nth_frame_is_equal_for_all_block_types(fields):
    config, params = inflated(attention_layers=1, **fields, **ADDITIONS)
    x, *rest = inputs(16)
    expected = run_on_frames(T2I, x, *rest)[:, ::2]
    assert deviation(run(config, params, x, *rest)[:, ::2], expected) <= 1e-5


def test_frames_differ_with_he_initialised_resamplers():
    config, params = inflated(resampler_init="he")
    x, *rest = inputs(16)
    expected = run_on_frames(T2I, x, *rest)[:, ::2]
    assert deviation(run(config, params, x, *rest)[:, ::2], expected) > 0.1


def test_every_temporal_parameter_has_a_gradient_once_trained():
    config, _ = inflated(**ADDITIONS)
    params = random_params(jax.eval_shape(lambda: init_unet(config, jax.random.key(0))), seed=4)
    args = inputs(8)

    def loss(params):
        return jnp.sum(jnp.square(UNet(config).apply({"params": params}, *args)))

    with fast_compiles():
        grads = flatten(jax.jit(jax.grad(loss))(params))
    assert [path for path, grad in grads.items() if not np.abs(grad).max() > 0] == []


def test_equality_holds_through_a_whole_sampler():
    """Ancestral, guided, thresholded per frame. The image model gets the noise of frames [::N]."""
    config, params = inflated()
    stride, steps, schedule = config.temporal_stride, 10, Schedule()
    noise = jax.random.normal(jax.random.key(5), (steps + 1, 1, 8, SIZE, SIZE, 3))
    text = jax.random.normal(jax.random.key(6), (1, 5, 8))
    sampler = Ancestral().bind(schedule, steps)

    def sample(config, params, noise):
        network = lambda *args: UNet(config).apply({"params": params}, *args)  # noqa: E731
        denoiser = guided_denoiser(
            network, schedule, "v", text, jnp.zeros_like(text), 3.0, learned_variance=False
        )
        denoiser = thresholded_denoiser(denoiser, schedule, Threshold(over="frame"))
        carry = sampler.init(noise[-1])
        return run_steps(sampler, denoiser, carry, 0, steps, lambda i: noise[i]).x

    with fast_compiles():
        video = np.asarray(jax.jit(lambda n: sample(config, params, n))(noise))
        sample_image = jax.jit(lambda n: sample(T2I, t2i_params(), n))
        frames = [np.asarray(sample_image(noise[:, :, i : i + 1])) for i in range(0, 8, stride)]
    expected = np.concatenate(frames, axis=1)
    assert expected.std() > 0.1
    assert np.abs(video[:, ::stride] - expected).max() <= 1e-4


def test_text_to_image_parameters_are_a_strict_subtree():
    config, params = inflated()
    flat, inner = flatten(params), flatten(t2i_params())
    assert inner.keys() < flat.keys()
    for path, leaf in inner.items():
        np.testing.assert_array_equal(flat[path], leaf)
    assert all(is_temporal(path) for path in flat.keys() - inner.keys())
    assert config.text_to_image() == T2I


def test_extracting_the_image_model_inverts_inflation():
    text_to_video = inflated()
    conditional = add_conditioning(*text_to_video[::-1], 4, True)
    for unet, params in text_to_video, conditional:
        config = {"architecture": to_dict(unet), "stage": "t2v", "num_frames": 16, "fps": 8.0}
        image = extract_text_to_image(ModelFolder(config, {"unet": params}, b"tokenizer"))
        assert image.config == {
            "architecture": to_dict(T2I),
            "stage": "t2i",
            "num_frames": 1,
            "fps": None,
        }
        assert image.tokenizer == b"tokenizer"
        flat, expected = flatten(image.params["unet"]), flatten(t2i_params())
        assert flat.keys() == expected.keys()
        for path, leaf in expected.items():
            np.testing.assert_array_equal(flat[path], leaf)


def test_parameters_of_another_network_raise():
    with pytest.raises(UserError, match=r"conv_in/kernel"):
        inflate(
            t2i_params(), replace(T2I, channels=(16, 16)), inflated()[0].temporal, jax.random.key(0)
        )
