"""Super-resolution, and clips longer than a model's own, through windows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stunet
from stunet import cli
from stunet.diffusion import (
    AUGMENTATION_NOISE,
    START_NOISE,
    SamplingDefaults,
    SuperResolution,
    Threshold,
    augment,
    downsample,
    keyed_noise,
    upsample,
)
from stunet.engine.sampling import (
    BASE_STREAM,
    EDIT_STREAM,
    UPSCALE_STREAM,
    encode_text,
    stream_key,
    windows_for,
)
from stunet.errors import UserError
from stunet.model import load
from stunet.models.unet import UNet
from stunet.schema import to_dict
from stunet.video_io import read_video, write_video
from tests.calls import generate, upscale
from tests.tiny import (
    CAPTIONS,
    NUM_FRAMES,
    RESOLUTION,
    UNET,
    fast_compiles,
    reference_ancestral_sampling,
    save_tiny_model,
)

FACTOR, STEPS = 2, 3
SSR = dataclasses.replace(UNET, in_channels=6, noise_level_embedding=True, self_attention=False)
LOW = RESOLUTION // FACTOR


@pytest.fixture(scope="module", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = to_dict(SuperResolution(FACTOR))
    path = tmp_path_factory.mktemp("upscale") / "ssr"
    return save_tiny_model(path, SSR, stage="ssr", super_resolution=config)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("upscale") / "base", resolution=LOW)


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(0).uniform(-1, 1, (1, 7, LOW, LOW, 3)).astype(np.float32)


def test_resizes_undo_each_other_on_what_is_flat_and_a_crop_is_a_crop():
    video = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 8, 12, 3)), jnp.float32)
    low = downsample(video, 4)
    assert low.shape == (2, 3, 2, 3, 3)
    np.testing.assert_allclose(low[1, 2, 1, 0], video[1, 2, 4:, :4].mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(downsample(video[:, :, 4:, 4:8], 4), low[:, :, 1:, 1:2], atol=1e-6)
    # Bilinear: a ramp stays one between the outer pixels' centres.
    ramp = jnp.broadcast_to(jnp.arange(3.0)[:, None], (1, 1, 2, 3, 3))
    np.testing.assert_allclose(upsample(ramp, 2)[0, 0, 0, :, 0], [0, 0.25, 0.75, 1.25, 1.75, 2])
    aligned = upsample(ramp, 2, align_corners=True)
    np.testing.assert_allclose(aligned[0, 0, 0, :, 0], np.linspace(0, 2, 6), atol=1e-6)
    by_jax = jax.image.resize(low, (2, 3, 8, 12, 3), "bilinear")
    np.testing.assert_allclose(upsample(low, 4), by_jax, atol=1e-5)


def test_an_augmented_clip_has_the_level_s_noise():
    video = jnp.full((2, 1, 64, 64, 3), 0.5)
    eps = jax.random.normal(jax.random.key(0), video.shape)
    noised = augment(video, eps, jnp.array([0.0, 500.0]))
    # The cosine schedule's alpha_bar after its first step, and at the middle.
    alpha_bar = np.cos((np.array([1, 501]) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar /= np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    for row, share in zip(noised, alpha_bar, strict=True):
        np.testing.assert_allclose(row.mean(), 0.5 * np.sqrt(share), atol=0.03)
        np.testing.assert_allclose(row.std(), np.sqrt(1 - share), rtol=0.03)


def test_upscaling_equals_the_steps_written_out(model, clip):
    """Three windows of 4, 4 and 4 frames over 7 (and one that fills the stride up)."""
    model = dataclasses.replace(model, threshold=Threshold(max_value=1.0))
    level, scale = 300.0, 3.0
    options = {"sampler": "ancestral", "guidance_scale": scale, "seed": 7, "steps": STEPS}
    got = upscale(model, clip, CAPTIONS[:1], noise_level=level, **options)
    assert got.shape == (1, 7, RESOLUTION, RESOLUTION, 3) and got.std() > 0.1

    apply = jax.jit(
        lambda *args: UNet(SSR).apply({"params": model.params["unet"]}, *args, jnp.full(1, level))
    )
    clip = np.concatenate([clip, clip[:, -1:]], axis=1)
    key = stream_key(7, UPSCALE_STREAM)
    noise = keyed_noise(key, jnp.arange(1), (8, RESOLUTION, RESOLUTION, 3))
    low = augment(upsample(clip, FACTOR), noise(AUGMENTATION_NOISE), jnp.full(1, level))
    states, empty = encode_text(model, CAPTIONS[:1]), encode_text(model, [""])

    def guided(x, t):
        t, total, covered = jnp.full(1, t), np.zeros(x.shape), np.zeros((8, 1, 1, 1))
        weight = np.array([1, 2, 2, 1.0])[:, None, None, None]
        for first in (0, 2, 4):
            part = slice(first, first + 4)
            inputs = jnp.concatenate([x[:, part], low[:, part]], axis=-1)
            eps_text, eps_empty = apply(inputs, t, states), apply(inputs, t, empty)
            total[:, part] += weight * (eps_empty + scale * (eps_text - eps_empty))
            covered[part] += weight
        return total / covered

    expected = reference_ancestral_sampling(guided, model.schedule, STEPS, noise)
    np.testing.assert_allclose(got, expected[:, :7], atol=1e-3)


def test_a_residual_model_adds_to_the_enlarged_clip(folder, model, clip):
    """Frames that are `scale` times what a model of `large + scale * x` draws, before bounding."""
    config = dataclasses.replace(model.super_resolution, residual_scale=0.25)
    residual = dataclasses.replace(model, super_resolution=config, threshold=None)
    whole = dataclasses.replace(model, threshold=None)
    options = {"steps": STEPS, "seed": 7}
    drawn = upscale(whole, clip, CAPTIONS[:1], **options)
    large = np.asarray(upsample(clip, FACTOR))
    seen = []
    got = upscale(residual, clip, CAPTIONS[:1], on_chunk=lambda *call: seen.append(call), **options)
    np.testing.assert_allclose(got, large + 0.25 * drawn, atol=1e-4)
    assert np.abs(got - large).std() > 0.02
    # The estimates on the way are frames too, and the last one is the result.
    np.testing.assert_allclose(seen[-1][2][:, :7], got, atol=1e-4)
    # The threshold bounds the frames, not what is added to them.
    bounded = dataclasses.replace(residual, threshold=Threshold(max_value=1.0))
    bounded = upscale(bounded, 0.9 * np.sign(clip), CAPTIONS[:1], **options)
    assert np.abs(bounded).max() <= 1 + 1e-5 and np.mean(np.abs(bounded) > 0.999) > 0.01


def test_a_model_s_own_steps(model, clip):
    own = dataclasses.replace(model, sampling=SamplingDefaults(steps=2))
    seen = []

    def on_chunk(done, total, x0):
        seen.append(total)

    expected = upscale(model, clip, CAPTIONS[:1], steps=2)
    for options in ({}, {"steps": 2}):
        made = upscale(own, clip, CAPTIONS[:1], on_chunk=on_chunk, **options)
        np.testing.assert_array_equal(made, expected)
    upscale(own, clip, CAPTIONS[:1], steps=3, on_chunk=on_chunk)
    assert set(seen) == {2, 3}


def test_every_model_of_a_cascade_has_its_own_defaults(model, base):
    """The base's settings do not apply to upscalers, which draw the noise of upscaling alone."""
    defaults = SamplingDefaults("ddim", steps=2, guidance_scale=1.0)
    own = dataclasses.replace(model, sampling=defaults)
    first = dataclasses.replace(load(base), sampling=SamplingDefaults(steps=4, guidance_scale=3.0))
    totals = {}

    def cascade(**sampling):
        return stunet.generate(
            first,
            CAPTIONS[:1],
            upscalers=[own],
            sampling=stunet.Sampling(**sampling),
            progress=lambda progress: totals.update({progress.stage: progress.total}),
        )

    result = cascade(sampler="ancestral", steps=3)
    assert totals == {"reading": 0, "sampling": 3, "enlarging": 2}
    small = generate(load(base), CAPTIONS[:1], sampler="ancestral", steps=3, guidance_scale=3.0)
    options = {"sampler": "ddim", "steps": 2, "guidance_scale": 1.0}
    np.testing.assert_array_equal(result.videos, upscale(model, small, CAPTIONS[:1], **options))
    settings = {name: result.settings[name] for name in options}
    assert settings == {"sampler": "ancestral", "steps": 3, "guidance_scale": 3.0}
    assert {name: result.settings[f"upscale_{name}"] for name in options} == {
        name: [value] for name, value in options.items()
    }

    overridden = cascade(steps=3, upscale_steps=5, upscale_guidance_scale=2.0)
    assert totals["enlarging"] == 5
    assert overridden.settings["upscale_sampler"] == ["ddim"]
    assert overridden.settings["upscale_guidance_scale"] == [2.0]
    assert overridden.settings["guidance_scale"] == 3.0 and overridden.settings["steps"] == 3


def test_settings_of_upscalers_are_checked_before_sampling(model, base):
    def cascade(upscalers, **sampling):
        def on_progress(progress):
            assert progress.stage == "reading"

        stunet.generate(
            load(base),
            CAPTIONS[0],
            upscalers=upscalers,
            sampling=stunet.Sampling(**sampling),
            progress=on_progress,
        )

    for sampling, message in (
        ({"upscale_sampler": "euler"}, "sampler.*'euler'.*ddim"),
        ({"upscale_steps": 2000}, "num_steps.*2000.*500"),
    ):
        with pytest.raises(UserError, match=message):
            cascade([model], **sampling)
    for name, value in (("sampler", "ddim"), ("steps", 3), ("guidance_scale", 2.0)):
        with pytest.raises(UserError, match=f"upscale_{name}: {value!r} .*upscaler"):
            cascade([], **{f"upscale_{name}": value})


def test_the_noise_of_a_model_differs_from_that_of_the_others():
    keys = [stream_key(0, stream) for stream in (BASE_STREAM, EDIT_STREAM, UPSCALE_STREAM)]
    keys += [stream_key(0, UPSCALE_STREAM + 1), stream_key(1, BASE_STREAM)]
    noise = np.stack([keyed_noise(key, jnp.arange(2), (4, 32, 32, 1))(START_NOISE) for key in keys])
    correlation = np.corrcoef(noise.reshape(-1, 4 * 32 * 32))
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.08  # 5 standard deviations
    np.testing.assert_array_equal(
        jax.random.key_data(stream_key(3, BASE_STREAM)), jax.random.key_data(jax.random.key(3))
    )


def test_windows_at_once_change_nothing(model, clip):
    one = upscale(model, clip, CAPTIONS[:1], steps=STEPS)
    every = upscale(model, clip, CAPTIONS[:1], steps=STEPS, windows_at_once=None)
    np.testing.assert_allclose(one, every, atol=1e-3)
    seamed = upscale(model, clip, CAPTIONS[:1], steps=STEPS, overlap=0)
    assert np.abs(one - seamed).mean() > 1e-3


def test_a_wide_clip_keeps_its_shape(model):
    clip = np.zeros((2, 1, LOW, 2 * LOW, 3), np.float32)
    large = upscale(model, clip, CAPTIONS[:2], steps=STEPS)
    assert large.shape == (2, 1, RESOLUTION, 2 * RESOLUTION, 3)


def test_the_base_model_makes_longer_clips_through_windows(base):
    model = load(base)
    assert windows_for(model, 9, stunet.Sampling()).starts == (0, 2, 4, 5)
    assert windows_for(model, NUM_FRAMES, stunet.Sampling()).starts == (0,)
    assert windows_for(model, 10, stunet.Sampling(window=10)).starts == (0,)
    long = generate(model, CAPTIONS[:1], num_frames=9, steps=STEPS)
    assert long.shape == (1, 9, LOW, LOW, 3) and long.std() > 0.1
    at_once = generate(model, CAPTIONS[:1], num_frames=9, steps=STEPS, windows_at_once=3)
    np.testing.assert_allclose(long, at_once, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_level": 1000.0}, "noise_level.*1000.0.*0 to 999"),
        ({"windows_at_once": 0}, "windows_at_once.*0.*1"),
        ({"window": 3}, "3.*2"),
        ({"overlap": 4}, "overlap.*4"),
        ({"window_weights": "sharp"}, "weights.*'sharp'.*'uniform', 'ramp'"),
    ],
)
def test_upscale_refuses_what_cannot_be(model, clip, options, message):
    with pytest.raises(UserError, match=message):
        upscale(model, clip, CAPTIONS[:1], **options)


def test_each_model_refuses_the_other_s_work(model, base, clip):
    with pytest.raises(UserError, match="super-resolution"):
        generate(model, CAPTIONS[:1])
    with pytest.raises(UserError, match="super-resolution"):
        upscale(load(base), clip, CAPTIONS[:1])
    with pytest.raises(UserError, match="prompts.*3.*2"):
        upscale(model, np.repeat(clip, 2, 0), CAPTIONS[:3])


def test_a_folder_must_say_what_it_enlarges(tmp_path):
    broken = save_tiny_model(tmp_path / "ssr", SSR)
    with pytest.raises(UserError, match=r"in_channels.* 6 .* 3 .*without super_resolution"):
        load(broken)


def command(*arguments):
    return cli.main([*map(str, arguments), "--steps", str(STEPS)])


@pytest.fixture
def _compiler_as_before(monkeypatch):
    monkeypatch.setattr("stunet.compiling.prepare_compiler", lambda: None)  # the process's for good


@pytest.mark.usefixtures("_compiler_as_before")
def test_the_commands(folder, base, tmp_path, capsys):
    out, large = tmp_path / "out.gif", tmp_path / "large.mp4"
    assert command("generate", CAPTIONS[0], "--model", base, "--out", out, "--upscale", folder) == 0
    frames, _ = read_video(out)
    assert len(frames) == NUM_FRAMES
    capsys.readouterr()
    # Anyone's clip: of another size, shape, length and rate.
    source = tmp_path / "clip.mp4"
    write_video(source, np.random.default_rng(0).uniform(-1, 1, (7, 300, 600, 3)), 12.0)
    assert command("upscale", source, CAPTIONS[0], "--model", folder, "--out", large) == 0
    frames, fps = read_video(large)
    assert (len(frames), fps) == (7, 12.0)
    assert frames.shape[2] == 2 * frames.shape[1]
    printed = capsys.readouterr()
    assert printed.out.split() == [str(large)]
    assert "step 3 of 3, 3 windows each" in printed.err and "9/9" in printed.err


@pytest.mark.usefixtures("_compiler_as_before")
def test_commands_refuse_in_one_line(folder, base, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    for arguments, message in (
        (("generate", "x", "--model", folder), f"{folder}: a super-resolution model"),
        (("generate", "x", "--model", base, "--upscale", base), f"{base}: generates videos"),
        (
            ("generate", "x", "--model", base, "--upscale", folder, "--upscale", folder),
            f"{folder}: enlarges {LOW} pixels, expected {RESOLUTION}",
        ),
        (("upscale", "a.mp4", "x", "--model", base), f"{base}: generates videos"),
        (("upscale", "a.mp4", "x", "--model", folder), "a.mp4"),
        (("upscale", "a.mp4", " ", "--model", folder), "prompt"),
    ):
        assert command(*arguments, "--out", out) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not out.exists()
