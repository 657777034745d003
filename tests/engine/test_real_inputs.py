"""What the engine reports about the files that it is given, and what it keeps of them."""

import dataclasses
from fractions import Fraction

import av
import numpy as np
import pytest

import stunet
from stunet import cli
from stunet.diffusion import SuperResolution
from stunet.engine.cascade import load_models
from stunet.engine.run import planned_settings, run
from stunet.schema import to_dict
from stunet.video_io import has_audio, read_video, write_video
from tests.tiny import (
    CAPTIONS,
    FPS,
    NUM_FRAMES,
    RESOLUTION,
    UNET,
    fast_compiles,
    save_tiny_model,
)

FACTOR = 2
CONDITIONAL = dataclasses.replace(UNET, cond_channels=4)
SSR = dataclasses.replace(UNET, in_channels=6, noise_level_embedding=True, self_attention=False)
QUICK = stunet.Sampling(steps=2)


@pytest.fixture(scope="module", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


@pytest.fixture(autouse=True)
def _compiler_as_before(monkeypatch):
    monkeypatch.setattr("stunet.compiling.prepare_compiler", lambda: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("real") / "base")


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "conditional"
    return save_tiny_model(path, CONDITIONAL, stage="conditional")


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory):
    config = to_dict(SuperResolution(FACTOR))
    path = tmp_path_factory.mktemp("real") / "ssr"
    return save_tiny_model(path, SSR, stage="ssr", super_resolution=config)


def write_clip(path, num_frames=NUM_FRAMES, fps=FPS, audio=True):
    """A clip with as much audio as it has frames."""
    rate = 8000
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=Fraction(fps))
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        track = container.add_stream("aac", rate=rate, layout="mono") if audio else None
        for index in range(num_frames):
            pixels = np.full((32, 32, 3), 20 * index, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        if track is not None:
            samples = np.sin(np.arange(round(num_frames / fps * rate)) / 4).astype(np.float32)
            for start in range(0, len(samples), 1024):
                frame = av.AudioFrame.from_ndarray(
                    samples[None, start : start + 1024], format="fltp", layout="mono"
                )
                frame.rate, frame.pts = rate, start
                container.mux(track.encode(frame))
            container.mux(track.encode())
    return path


def test_guidance_away_from_the_prompt_itself_is_no_guidance(tmp_path):
    """v(N) + w (v(P) - v(N)) is v(P) for every w if N = P."""
    # At high noise x0 from eps amplifies rounding a hundredfold, x0 from v does not.
    model = stunet.load(save_tiny_model(tmp_path / "v", prediction="v"))

    def sample(**settings):
        sampling = stunet.Sampling(steps=2, **settings)
        return stunet.generate(model, CAPTIONS[0], sampling=sampling).video

    unguided = sample(guidance_scale=1.0)
    negative = sample(guidance_scale=5.0, negative_prompt=CAPTIONS[0])
    np.testing.assert_allclose(negative, unguided, atol=2e-5)
    assert np.abs(sample(guidance_scale=5.0) - unguided).max() > 0.01
    assert np.abs(sample(guidance_scale=5.0, negative_prompt=CAPTIONS[1]) - negative).max() > 0.01


def test_settings_contain_the_negative_prompt_and_are_known_before(base):
    models = load_models(base)
    sampling = stunet.Sampling(steps=2, negative_prompt="blue")
    request = stunet.Request(application="generate", prompts=("a star",), sampling=sampling)
    result = run(models, request)
    assert result.settings["negative_prompt"] == "blue"
    assert planned_settings(models, request) == result.settings
    with pytest.warns(UserWarning, match="negative_prompt.*guidance_scale"):
        stunet.generate(
            models.base,
            "a star",
            sampling=stunet.Sampling(**vars(sampling) | {"guidance_scale": 1}),
        )


def test_settings_contain_the_guidance_of_the_first_model(base):
    models = load_models(base)
    options = {"guidance": "apg", "guidance_interval": (100, 900.0)}
    sampling = stunet.Sampling(steps=2, **options)
    request = stunet.Request(application="generate", prompts=("a star",), sampling=sampling)
    result = run(models, request)
    assert {name: result.settings[name] for name in options} == {
        "guidance": "apg",
        "guidance_interval": [100, 900],
    }
    assert planned_settings(models, request) == result.settings
    assert stunet.Request.from_dict(request.to_dict()) == request
    with pytest.warns(UserWarning, match="guidance: not used.*guidance_scale"):
        stunet.generate(
            models.base,
            "a star",
            sampling=stunet.Sampling(steps=2, guidance="apg", guidance_scale=1),
        )
    with pytest.warns(UserWarning, match="negative_prompt: not used.*'image'"):
        sampling = stunet.Sampling(steps=2, guidance="image", negative_prompt="blue")
        stunet.generate(models.base, "a star", sampling=sampling)
    assert sampling.for_upscalers().guidance == "cfg"


def test_warnings_are_reported_before_sampling(upscaler, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4")
    reports = []
    with pytest.warns(UserWarning, match="32x32.*"):
        result = stunet.upscale(
            stunet.load(upscaler), clip, "a star", sampling=QUICK, progress=reports.append
        )
    stages = [report.stage for report in reports]
    assert stages[:2] == ["reading", "reading"] and set(stages[2:]) == {"enlarging"}
    assert reports[1].warnings == result.warnings
    (warning,) = result.warnings
    low = RESOLUTION // FACTOR
    for part in (str(clip), "32x32", f"{low}x{low}", f"{RESOLUTION}x{RESOLUTION}"):
        assert part in warning


@pytest.mark.parametrize("out", ["out.mp4", "out.gif"])
def test_audio_stays_with_a_video_of_the_same_duration(base, tmp_path, capsys, out):
    clip = write_clip(tmp_path / "clip.mp4")
    arguments = ["edit", clip, CAPTIONS[0], "--strength", 0.5, "--steps", 2, "--model", base]
    assert cli.main([*map(str, arguments), "--out", str(tmp_path / out)]) == 0
    warned = "audio is dropped" in capsys.readouterr().err
    assert has_audio(tmp_path / out) == (out == "out.mp4") != warned


def test_audio_of_another_duration_is_reported(conditional, tmp_path):
    """The first frame of a video begins the result, which may be as long as the video."""
    clip = write_clip(tmp_path / "clip.mp4")
    model = stunet.load(conditional)
    assert stunet.animate(model, clip, "a star", sampling=QUICK).audio is not None
    longer = write_clip(tmp_path / "longer.mp4", 2 * NUM_FRAMES)
    with pytest.warns(UserWarning, match=r"longer\.mp4: audio .* 0\.50 s .* 1\.00 s"):
        result = stunet.animate(model, longer, "a star", sampling=QUICK)
    assert result.audio is None


def test_damaged_audio_does_not_stop_a_command(base, tmp_path):
    clip = write_clip(tmp_path / "clip.mkv")
    content = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [p for p in container.demux(audio=0) if p.size]
    for packet in packets[1:]:
        start = content.find(bytes(packet))
        content[start : start + packet.size] = bytes(packet.size)
    clip.write_bytes(content)
    with pytest.warns(UserWarning, match=r"clip\.mkv: audio"):
        result = stunet.edit(stunet.load(base), clip, "a star", strength=0.0)
    assert result.audio is None and result.videos.shape[1] == NUM_FRAMES


def test_repeated_frames_and_damaged_files_are_reported(base, tmp_path, capsys):
    clip = write_clip(tmp_path / "clip.mp4", NUM_FRAMES, FPS / 2, audio=False)
    arguments = ["edit", str(clip), CAPTIONS[0], "--strength", "0", "--model", str(base)]
    out = tmp_path / "out.mp4"
    assert cli.main([*arguments, "--out", str(out)]) == 0
    line = next(x for x in capsys.readouterr().err.splitlines() if "repeated" in x)
    assert f"{clip}: {FPS / 2:g} " in line and f"at {FPS:g}" in line
    assert len(read_video(out)[0]) == 2 * NUM_FRAMES
    clip.write_bytes(clip.read_bytes()[:-300])
    out.unlink()
    assert cli.main([*arguments, "--out", str(out)]) == 2
    assert f"{clip}: truncated" in capsys.readouterr().err and not out.exists()


def test_home_directory(base, upscaler, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_video(tmp_path / "clip.mp4", np.zeros((NUM_FRAMES, RESOLUTION, RESOLUTION, 3)), FPS)
    result = stunet.edit(stunet.load(base), "~/clip.mp4", "a star", strength=0.0)
    result.save("~/new.mp4")
    assert len(read_video("~/new.mp4")[0]) == NUM_FRAMES
