import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stunet
from stunet.diffusion import Threshold, keyed_noise
from stunet.diffusion.samplers import DDIM
from stunet.engine.sampling import encode_text, run_chunk
from stunet.errors import UserError
from stunet.model import load, on_devices
from stunet.models.t5 import T5Encoder
from stunet.models.unet import UNet, init_unet
from stunet.sharding import flat_mesh, put_parameters
from stunet.weights.trees import flatten, is_added, unflatten
from tests.calls import generate
from tests.tiny import (
    CAPTIONS,
    FPS,
    NUM_FRAMES,
    RESOLUTION,
    UNET,
    fast_compiles,
    reference_ancestral_sampling,
    save_tiny_model,
)

STEPS = 4
SHAPE = (NUM_FRAMES, RESOLUTION, RESOLUTION, 3)


@pytest.fixture(scope="module", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("pipeline") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.fixture(scope="module")
def pair(model):
    return generate(model, CAPTIONS[:2], steps=STEPS)


def test_same_seed_same_frames_another_seed_others(model, pair):
    assert pair.shape == (2, *SHAPE) and pair.dtype == np.float32
    assert np.abs(pair).max() <= 1 and pair.std() > 0.1
    np.testing.assert_array_equal(generate(model, CAPTIONS[:2], steps=STEPS), pair)
    assert np.abs(generate(model, CAPTIONS[:2], steps=STEPS, seed=1) - pair).mean() > 0.1


def test_a_video_depends_on_its_prompt_and_index_only(model, pair):
    other = generate(model, [CAPTIONS[1], CAPTIONS[1]], steps=STEPS)
    np.testing.assert_allclose(other[1], pair[1], atol=1e-5)
    assert np.abs(other[0] - pair[0]).mean() > 1e-3  # another prompt
    assert np.abs(other[0] - other[1]).mean() > 0.1  # another index


def test_the_image_model_as_the_worse_network(model, pair):
    # Inflated without temporal resampling, a model starts as its image model: there is nothing to
    # lead away from.
    temporal = replace(UNET.temporal, resample=(False,) * len(UNET.temporal.resample))
    unet = replace(UNET, temporal=temporal)
    params = flatten(init_unet(unet, jax.random.key(0)))
    params |= {p: a for p, a in flatten(model.params["unet"]).items() if not is_added(p)}
    inflated = replace(model, unet=unet, params={**model.params, "unet": unflatten(params)})
    image, plain = (
        generate(inflated, CAPTIONS[:2], steps=STEPS, guidance=name, guidance_scale=scale)
        for name, scale in (("image", 5.0), ("cfg", 1.0))
    )
    np.testing.assert_allclose(image, plain, atol=1e-4)
    trained = generate(model, CAPTIONS[:2], steps=STEPS, guidance="image", guidance_scale=5.0)
    assert (
        np.abs(trained - generate(model, CAPTIONS[:2], steps=STEPS, guidance_scale=1)).max() > 0.1
    )
    with pytest.raises(UserError, match="guidance: 'image' of an image.* clip"):
        generate(model, CAPTIONS[:1], num_frames=1, guidance="image")


def test_guidance_in_an_interval(model, pair):
    def sample(**options):
        return generate(model, CAPTIONS[:2], steps=STEPS, **options)

    np.testing.assert_allclose(sample(guidance_interval=[0, 999]), pair, atol=1e-5)
    unguided, nowhere = sample(guidance_scale=1), sample(guidance_interval=(998.9, 999))
    np.testing.assert_allclose(nowhere, unguided, atol=1e-5)
    assert np.abs(sample(guidance_interval=(0, 500)) - pair).max() > 0.1
    with pytest.raises(UserError, match="guidance_interval: 600 to 500"):
        sample(guidance_interval=(600, 500))
    with pytest.raises(UserError, match="guidance_interval.*1000"):
        sample(guidance_interval=(0, 1000))


def test_all_chunks_run_one_program_after_training_too(model, pair):
    devices = jax.devices()[:1]
    trained = replace(model, params=put_parameters(flat_mesh(devices), model.params))
    before = run_chunk._cache_size()
    videos = generate(on_devices(trained, devices), CAPTIONS[:2], steps=STEPS, chunk=1)
    assert run_chunk._cache_size() == before + 1
    np.testing.assert_allclose(videos, pair, atol=1e-5)


def test_batches_and_chunks_change_nothing(model, pair):
    seen = []
    prompts = [*CAPTIONS[:2], CAPTIONS[0]]

    def on_chunk(done, total, x0):
        seen.append((done, total, x0.shape[0]))

    in_twos = generate(model, prompts, steps=STEPS, batch_size=2, on_chunk=on_chunk)
    assert seen == [(0, 8, 2), (4, 8, 2), (8, 8, 1)]  # the last batch is half empty
    np.testing.assert_allclose(in_twos[:2], pair, atol=1e-5)
    one_by_one = generate(model, prompts, steps=STEPS, batch_size=1, chunk=3)
    # Rounding, which guidance and thresholding amplify; another noise would differ by about 1.
    np.testing.assert_allclose(one_by_one, in_twos, atol=1e-3)


def test_progress_ends_in_the_video_and_raising_cancels(model, pair):
    seen = []
    generate(model, CAPTIONS[:2], steps=STEPS, on_chunk=lambda *args: seen.append(args))
    assert [(done, total) for done, total, _ in seen] == [(0, STEPS), (STEPS, STEPS)]
    np.testing.assert_array_equal(seen[-1][2], pair)

    def cancel(done, total, x0):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        generate(model, CAPTIONS[:2], steps=STEPS, on_chunk=cancel)


def test_ancestral_equals_the_steps_written_out(model):
    prompts, scale = CAPTIONS[:2], 3.0
    options = {"sampler": "ancestral", "guidance_scale": scale, "seed": 7}
    clipped = replace(model, threshold=Threshold(max_value=1.0))
    got = generate(clipped, prompts, num_frames=1, steps=STEPS, **options)

    apply = jax.jit(
        lambda x, t, text: UNet(UNET).apply({"params": model.params["unet"]}, x, t, text)
    )
    states, empty = encode_text(model, prompts), encode_text(model, ["", ""])
    noise = keyed_noise(jax.random.key(7), jnp.arange(2), (1, *SHAPE[1:]))

    def guided(x, t):
        t = jnp.full(2, t)
        eps_text, eps_empty = apply(x, t, states), apply(x, t, empty)
        return eps_empty + scale * (eps_text - eps_empty)

    expected = reference_ancestral_sampling(guided, model.schedule, STEPS, noise)
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_an_image_and_its_guidance(model):
    def image(scale):
        options = {"num_frames": 1, "sampler": "ddim", "guidance_scale": scale}
        return generate(model, CAPTIONS[:1], steps=STEPS, **options)

    guided, unguided = image(4.0), image(1)
    assert guided.shape == (1, 1, *SHAPE[1:]) and guided.std() > 0.1
    assert np.abs(guided - unguided).mean() > 1e-3
    # not quite 1 goes by way of the unconditional half
    np.testing.assert_allclose(image(1 + 1e-6), unguided, atol=1e-4)


def test_encode_text_is_the_encoder_on_the_tokens(model):
    tokens, mask = model.tokenizer(["", CAPTIONS[2]])
    encoder = T5Encoder(model.text_encoder)
    expected = encoder.apply({"params": model.params["text_encoder"]}, tokens, mask)
    np.testing.assert_allclose(encode_text(model, ["", CAPTIONS[2]]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 3}, "num_frames.* 3.* 2"),
        ({"sampler": "euler"}, "sampler.*'euler'.*dpm2m, ddim, ancestral"),
        ({"steps": 501}, "steps.*501.*500"),
        ({"seed": -1}, "seed.*-1.*4294967295"),
        ({"batch_size": 0}, "batch_size.*0.*1"),
    ],
)
def test_generate_refuses_what_cannot_be(model, options, message):
    with pytest.raises(UserError, match=message):
        generate(model, CAPTIONS[:1], **options)


def test_a_model_without_text_encoder_reads_no_prompts(model):
    silent = replace(model, text_encoder=None, tokenizer=None)
    with pytest.raises(UserError, match="text encoder.*stunet import-t5"):
        generate(silent, CAPTIONS[:1])


def test_generate_refuses_no_prompt_and_more_than_an_image_of_an_image_model(model):
    with pytest.raises(UserError, match="prompts"):
        generate(model, [])
    images = replace(model, unet=UNET.text_to_image(), num_frames=1)
    with pytest.raises(UserError, match="num_frames.* 4.* 1"):
        generate(images, CAPTIONS[:1], num_frames=4)


def test_parameters_that_are_not_finite_are_reported(model):
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, model.params)
    with pytest.raises(UserError, match="output.*finite"):
        generate(replace(model, params=params), CAPTIONS[:2], steps=STEPS)


def test_a_sampler_object_is_accepted(model, pair):
    by_object = generate(model, CAPTIONS[:1], sampler=DDIM(eta=0.0), steps=STEPS)
    by_name = generate(model, CAPTIONS[:1], sampler="ddim", steps=STEPS)
    np.testing.assert_array_equal(by_object, by_name)
    noisy = generate(model, CAPTIONS[:1], sampler=DDIM(eta=1.0), steps=STEPS)
    assert np.abs(noisy - by_name).mean() > 1e-2


def test_requests_survive_json():
    sampling = stunet.Sampling(sampler=DDIM(eta=0.5), upscale_sampler=DDIM(), steps=7, seed=3)
    request = stunet.Request(
        application="inpaint",
        prompts=("a", "b"),
        video="clip.mp4",
        outpaint=(1, 2, 3, 4),
        sampling=sampling,
    )
    values = json.loads(json.dumps(request.to_dict()))
    assert stunet.Request.from_dict(values) == request
    plain = stunet.Request(application="generate", prompts=("a",))
    assert stunet.Request.from_dict(json.loads(json.dumps(plain.to_dict()))) == plain
    with pytest.raises(UserError, match="request.*'vidoe'.*'video'"):
        stunet.Request.from_dict({**values, "vidoe": "x"})
    array = stunet.Request(application="animate", prompts=("a",), image=np.zeros((4, 4, 3)))
    with pytest.raises(UserError, match="image"):
        array.to_dict()


def test_a_result_tells_what_made_it(model, tmp_path):
    result = stunet.generate(model, CAPTIONS[0], sampling=stunet.Sampling(steps=STEPS, seed=5))
    assert result.video.shape == SHAPE and result.fps == FPS and result.warnings == ()
    expected = {"application": "generate", "prompt": CAPTIONS[0], "steps": STEPS, "seed": 5}
    assert expected.items() <= result.settings.items()
    assert result.settings["sampler"] == "dpm2m" and result.settings["num_frames"] == NUM_FRAMES
    result.save(tmp_path / "clip.gif")
    assert (tmp_path / "clip.gif").stat().st_size > 100
