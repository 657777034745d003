"""From component values to requests, results and their files, with random models."""

import io
import json
import re

import av
import numpy as np
import pytest
from PIL import Image

from stunet.engine.applications import available_applications
from stunet.engine.cascade import load_models
from stunet.engine.request import Request, Sampling
from stunet.engine.run import run
from stunet.errors import UserError
from stunet.studio.jobs import Cancelled, Status
from stunet.studio.requests import parse_integer, parse_number, parse_request, run_request
from stunet.studio.results import (
    animation,
    error_html,
    new_folder,
    status_html,
    warnings_html,
    write_result,
)
from stunet.studio.uploads import Limits
from stunet.video_io import has_audio, read_comment, read_video, write_video
from tests.studio.models import FACTOR, STEPS, save_models
from tests.tiny import FPS, NUM_FRAMES, RESOLUTION, fast_compiles

SAMPLING = Sampling(steps=3, seed=5, chunk=1)
# What the browser sends for the components of every tab.
COMMON = {"prompt": "a red star", "seed": 5, "steps": 3, "guidance_scale": 4}
CONDITIONAL = ("animate", "interpolate", "inpaint", "cinemagraph")


@pytest.fixture(scope="module", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def models(folders):
    return load_models(folders["fill"], [folders["ssr"]], folders["style"])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    mask = np.zeros((24, 32), np.uint8)
    mask[:12] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.new("L", (32, 24)).save(folder / "black.png")
    Image.fromarray(mask[:, :16]).save(folder / "narrow.png")
    write_video(folder / "clip.mp4", rng.uniform(-1, 1, (6, 256, 256, 3)).astype(np.float32), FPS)
    return folder


def parse(application, folder, **values):
    """Parses component values; names of files stand for uploads."""
    values = {
        field: {"path": str(folder / value)} if re.search(r"\.(png|mp4)$", str(value)) else value
        for field, value in (COMMON | values).items()
    }
    return parse_request(application, values, folder, Limits())


def ignore(status):
    pass


def test_tabs_are_the_applications_of_the_models(folders, models):
    assert available_applications(models.chain) == ("generate", *CONDITIONAL, "edit", "upscale")
    assert models.factor == FACTOR
    alone = load_models(folders["fill"])
    assert available_applications(alone.chain) == ("generate", *CONDITIONAL, "edit")
    assert alone.factor == 1
    assert available_applications(load_models(folders["images"]).chain) == ("generate",)


def test_models_that_do_not_fit_each_other(folders):
    with pytest.raises(UserError, match="ssr: a super-resolution model"):
        load_models(folders["ssr"])
    with pytest.raises(UserError, match="style: .*expected a super-resolution model"):
        load_models(folders["fill"], [folders["style"]])
    with pytest.raises(UserError, match="ssr: "):
        load_models(folders["fill"], style=folders["ssr"])


@pytest.mark.parametrize(
    ("application", "values", "frames"),
    [
        ("generate", {"num_frames": 6}, 6),
        ("animate", {"image": "image.png"}, NUM_FRAMES),
        ("interpolate", {"image": "image.png", "last": "image.png"}, NUM_FRAMES),
        ("inpaint", {"video": "clip.mp4", "outpaint": [256, 256, 256, 256]}, 6),
        ("cinemagraph", {"image": "image.png", "mask": "mask.png", "loop": True}, NUM_FRAMES - 1),
        ("edit", {"video": "clip.mp4", "strength": 0.7, "enlarge": True}, 6),
        ("upscale", {"video": "clip.mp4"}, 6),
    ],
)
def test_each_application_generates_a_video(models, files, application, values, frames):
    enlarge = application in ("edit", "upscale")
    if application != "upscale":
        values = {"enlarge": False, "style_strength": 0, **values}
    statuses = []
    result = run_request(models, parse(application, files, **values), statuses.append)
    upscale_steps = {"edit": [STEPS], "upscale": [COMMON["steps"]]}.get(application)
    assert result.settings.get("upscale_steps") == upscale_steps
    scales = {"edit": [2.0], "upscale": [COMMON["guidance_scale"]]}.get(application)
    assert result.settings.get("upscale_guidance_scale") == scales
    samplers = "ancestral" if application == "upscale" else "dpm2m"
    assert result.settings["sampler"] == samplers
    assert COMMON["steps"] == result.settings["steps"] != STEPS
    totals = {status.stage: status.total for status in statuses if status.done}
    assert totals.get("enlarging") == (upscale_steps or [None])[0]
    side = RESOLUTION * (FACTOR if enlarge else 1)
    assert result.video.shape == (frames, side, side, 3) and result.fps == FPS
    stages = [status.stage.split(":")[0] for status in statuses]
    assert stages[0] == "reading" and stages[-1] == "writing"
    assert ("sampling" in stages) == (application != "upscale")
    assert ("enlarging" in stages) == enlarge
    assert ("model" in result.settings) == (application != "upscale")
    assert result.settings["application"] == application and "style" not in result.settings
    crops = [warning for warning in result.warnings if warning.startswith("image.png: ")]
    assert bool(crops) == ("image" in values)
    assert all("32x24" in warning and "24x24" in warning for warning in crops)
    texts = [*map(str, result.settings.values()), *result.warnings]
    assert not any("/" in text for text in texts)


def test_each_step_is_reported(models):
    statuses = []
    run_request(models, parse("generate", None, enlarge=False, style_strength=0), statuses.append)
    steps = [status.done for status in statuses if status.stage.startswith("sampling")]
    assert steps == [0, 1, 2, 3]


def test_values_of_the_components_enter_the_request(files):
    request = parse(
        "generate", files, num_frames=6, seed=7.0, guidance_scale=2.5, style_strength=0.3, enlarge=1
    )
    assert request == Request(
        application="generate",
        prompts=("a red star",),
        num_frames=6,
        style_strength=0.3,
        enlarge=True,
        sampling=Sampling(steps=3, seed=7, guidance_scale=2.5, chunk=1),
    )
    for value in (0, None):
        assert parse("generate", files, num_frames=value).num_frames is None
    upscale = {"upscale_steps": 3.0, "upscale_guidance_scale": 1.5}
    sampling = parse("generate", files, enlarge=True, **upscale).sampling
    assert (sampling.upscale_steps, sampling.upscale_guidance_scale) == (3, 1.5)
    for values in ({"enlarge": False}, {"enlarge": True, **dict.fromkeys(upscale, 0)}):
        sampling = parse("generate", files, **(upscale | values)).sampling
        assert sampling.upscale_steps is None and sampling.upscale_guidance_scale is None
    assert parse("inpaint", files, video="clip.mp4", outpaint=[0, 8, 0, 0]).outpaint == (0, 8, 0, 0)
    assert parse("animate", files, image="image.png").image == files / "image.png"


@pytest.mark.parametrize(
    ("application", "values", "message"),
    [
        ("generate", {"prompt": " "}, "prompt"),
        ("generate", {"prompt": None}, "prompt"),
        ("generate", {"seed": None}, r"Seed: missing.*0 to 4294967295"),
        ("generate", {"seed": 2**32}, r"Seed.*4294967296.*0 to 4294967295"),
        ("generate", {"steps": 501}, r"Steps.*501.*1 to 500"),
        ("generate", {"guidance_scale": -1}, r"Guidance scale.*-1.*0 to 100"),
        ("edit", {"enlarge": True, "upscale_steps": 501}, r"Upscaling steps.*501.*0 to 500"),
        ("generate", {"style_strength": 1.6}, r"Style strength.*1\.6.*0 to 1\.5"),
        ("generate", {"num_frames": -1}, r"Frames.*-1.*1 to 1200"),
        ("generate", {"num_frames": 1201}, r"Frames.*1201.*1 to 1200"),
        ("generate", {"num_frames": 2.5}, r"Frames.*2\.5.*integer"),
        ("animate", {"image": None}, "Image: missing"),
        ("interpolate", {"image": "image.png", "last": None}, "Last image: missing"),
        ("cinemagraph", {"image": "image.png", "mask": None}, "Region that moves: missing"),
        ("inpaint", {"video": "clip.mp4", "mask": None}, "Region to generate: missing"),
        ("inpaint", {"video": "clip.mp4", "outpaint": [0, 0, 0, 0]}, "Around the video.*0"),
        ("inpaint", {"video": "clip.mp4", "outpaint": [0, 4097, 0, 0]}, r"right.*4097.*0 to 4096"),
        ("edit", {"video": "clip.mp4", "strength": 1.1}, r"Strength.*1\.1.*0 to 1"),
        ("edit", {"video": "clip.mp4", "strength": None}, r"Strength: missing.*0 to 1"),
        ("edit", {"video": {"path": "/etc/passwd"}, "strength": 0.5}, "upload"),
    ],
)
def test_invalid_values_name_their_component(files, application, values, message):
    with pytest.raises(UserError, match=message):
        parse(application, files, **values)


def test_the_result_is_the_engine_s(models):
    request = Request(
        application="generate",
        prompts=("a red star",),
        style_strength=0.3,
        enlarge=False,
        sampling=SAMPLING,
    )
    result, expected = run_request(models, request, ignore), run(models, request)
    np.testing.assert_array_equal(result.videos, expected.videos)
    assert result.settings == expected.settings and result.warnings == expected.warnings
    assert result.settings["style"] == "style" and result.settings["style_strength"] == 0.3
    (warning,) = result.warnings
    assert "style strength" in warning and "0.3" in warning and "0.5 to 1" in warning


def test_a_cancelled_job_stops_in_the_middle_of_sampling(models):
    steps = []

    def report(status):
        steps.append(status.done)
        if status.done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        run_request(models, parse("generate", None, steps=9), report)
    assert steps[-1] == 2


def test_errors_name_files_without_folders(models, files):
    for mask, message in (
        ("black.png", r"^black\.png: uniform mask"),
        ("narrow.png", r"^narrow\.png: size 16x24, expected 32x24.* image\.png$"),
        ("clip.mp4", r"^clip\.mp4: ambiguous mask"),
    ):
        request = parse("cinemagraph", files, image="image.png", mask=mask, loop=False)
        with pytest.raises(UserError, match=message):
            run_request(models, request, ignore)


def test_files_contain_their_settings(models, tmp_path):
    request = parse("generate", None, prompt="A *red* star, ünlit", enlarge=False, style_strength=0)
    result = run_request(models, request, ignore)
    files = write_result(result, tmp_path)
    assert files.video.name == "generate_a-red-star-nlit_seed5.mp4"
    settings = json.loads(read_comment(files.video))
    assert settings == result.settings
    assert settings["prompt"] == "A *red* star, ünlit" and settings["model"] == "fill"
    assert settings["steps"] == 3 and "style" not in settings and "upscale" not in settings
    video, fps = read_video(files.video)
    assert len(video) == NUM_FRAMES and fps == FPS
    assert read_video(files.xt_slice)[0].shape[1] >= NUM_FRAMES


def test_an_image_model_generates_a_video_of_one_frame(folders, tmp_path):
    models = load_models(folders["images"])
    files = write_result(run_request(models, parse("generate", None), ignore), tmp_path)
    assert files.xt_slice is None and len(read_video(files.video)[0]) == 1


def test_html_of_status_errors_and_warnings():
    frames = np.zeros((4, 8, 8, 3), np.float32)
    frames[1::2] = 1
    text = status_html(Status("sampling", 5, 20, 8.0, frames), 8.0)
    assert "sampling, step 5 of 20, about 30 s left" in text
    assert 'value="5" max="20"' in text and "data:image/webp;base64," in text
    assert "<progress" in status_html(Status("waiting: 1 ahead"), 8.0)
    assert "<li>a&lt;b</li>" in status_html(Status("sampling", warnings=("a<b",)), 8.0)
    assert "&lt;b&gt;" in error_html("<b>") and "<b>" not in warnings_html(("<b>",))
    with Image.open(io.BytesIO(animation(frames, 8.0))) as image:
        assert image.n_frames == 4


def test_old_results_are_deleted(tmp_path):
    first = new_folder(tmp_path, lifetime=100)
    second = new_folder(tmp_path, lifetime=100)
    assert first.is_dir() and re.fullmatch("[0-9a-f]{32}", first.name)
    third = new_folder(tmp_path, lifetime=-1)
    assert list(tmp_path.iterdir()) == [third] and not second.exists()


def test_numbers_within_bounds():
    assert parse_integer("seed", 7.0, 0, 9) == 7
    assert parse_number("strength", 0.5, 0, 1) == 0.5
    for value, message in (
        (1.5, r"seed.*1\.5.*integer"),
        (10, r"seed.*10.*0 to 9"),
        (float("nan"), r"seed.*nan.*0 to 9"),
        ("x", r"seed.*x.*0 to 9"),
        (None, r"seed: missing.*0 to 9"),
    ):
        with pytest.raises(UserError, match=message):
            parse_integer("seed", value, 0, 9)
    with pytest.raises(UserError, match=r"strength: missing.*0 to 1"):
        parse_number("strength", None, 0, 1)


def test_the_negative_prompt_and_the_audio_of_an_upload(models, files, tmp_path):
    request = parse("generate", None, negative_prompt="blue", enlarge=False)
    assert request.sampling.negative_prompt == "blue"
    assert parse("generate", None).sampling.negative_prompt == ""
    rng = np.random.default_rng(1)
    with av.open(str(files / "loud.mp4"), "w") as container:
        video = container.add_stream("libx264", rate=round(FPS))
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        track = container.add_stream("aac", rate=8000, layout="mono")
        for _ in range(4):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        for start in range(0, round(4 / FPS * 8000), 1024):
            samples = rng.uniform(-1, 1, (1, 1024)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.rate, frame.pts = 8000, start
            container.mux(track.encode(frame))
        container.mux(track.encode())
    request = parse("edit", files, video="loud.mp4", strength=0.0, enlarge=False)
    assert has_audio(write_result(run_request(models, request, ignore), tmp_path).video)
