"""From requests to videos and their files, with random models and no page."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from stunet import engine as pipeline
from stunet.errors import UserError
from stunet.studio.jobs import Cancelled, Progress
from stunet.studio.making import Request, make
from stunet.studio.models import load_models
from stunet.studio.results import (
    animation,
    message_html,
    new_folder,
    progress_html,
    remarks_html,
    write_result,
)
from stunet.video_io import read_comment, read_video, write_video
from tests.studio.models import FACTOR, STEPS, save_models
from tests.tiny import FPS, NUM_FRAMES, RESOLUTION, fast_compiles

QUICK = {"steps": 3, "seed": 5}


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
    write_video(folder / "clip.mp4", rng.uniform(-1, 1, (6, 256, 256, 3)).astype(np.float32), FPS)
    return folder


def test_tabs_are_what_the_models_can_do(folders, models):
    conditional = ("animate", "interpolate", "inpaint", "cinemagraph")
    assert models.applications == ("generate", *conditional, "edit", "upscale")
    assert models.factor == FACTOR
    alone = load_models(folders["fill"], [], None)
    assert alone.applications == ("generate", *conditional, "edit") and alone.factor == 1
    assert load_models(folders["images"], [], None).applications == ("generate",)


def test_models_that_do_not_go_together(folders):
    with pytest.raises(UserError, match="ssr: a super-resolution model; name it by --upscale"):
        load_models(folders["ssr"], [], None)
    with pytest.raises(UserError, match="style: no super-resolution model"):
        load_models(folders["fill"], [folders["style"]], None)
    with pytest.raises(UserError, match="ssr: .*wrong shape: "):
        load_models(folders["fill"], [], folders["ssr"])


@pytest.mark.parametrize(
    ("application", "fields", "frames"),
    [
        ("generate", {"num_frames": 6}, 6),
        ("animate", {"image": "image.png"}, NUM_FRAMES),
        ("interpolate", {"image": "image.png", "last": "image.png"}, NUM_FRAMES),
        ("inpaint", {"video": "clip.mp4", "outpaint": (256, 256, 256, 256)}, 6),
        ("cinemagraph", {"image": "image.png", "mask": "mask.png", "loop": True}, NUM_FRAMES - 1),
        ("edit", {"video": "clip.mp4", "strength": 0.7, "enlarge": True}, 6),
        ("upscale", {"video": "clip.mp4"}, 6),
    ],
)
def test_each_application_makes_a_video(models, files, application, fields, frames):
    fields = {k: files / v if isinstance(v, str) else v for k, v in fields.items()}
    said = []
    request = Request(application=application, prompt="a red star", **fields, **QUICK)
    made = make(models, request, said.append)
    own = {"edit": [STEPS], "upscale": [QUICK["steps"]]}  # upscale's are what is asked for
    assert made.settings.get("upscale_steps") == own.get(application)
    assert QUICK["steps"] == made.settings["steps"] != STEPS
    totals = {p.stage: p.total for p in said if p.done}
    assert totals.get("enlarging") == own.get(application, [None])[0]
    side = RESOLUTION * (FACTOR if application in ("edit", "upscale") else 1)
    assert made.video.shape == (frames, side, side, 3) and made.fps == FPS
    stages = [progress.stage.split(":")[0] for progress in said]
    assert stages[0] == "reading" and stages[-1] == "writing"
    assert ("sampling" in stages) == (application != "upscale")
    assert ("enlarging" in stages) == (application in ("edit", "upscale"))
    assert ("model" in made.settings) == (application != "upscale")
    crop = "image.png: 32x24 is cropped to its middle, 24x24"
    assert (crop in made.remarks) == ("image" in fields)
    assert not any("/" in str(value) for value in made.settings.values())


def test_what_is_made_is_what_the_pipeline_makes(models):
    request = Request(application="generate", prompt="a red star", style_strength=0.3, **QUICK)
    made = make(models, request, lambda progress: None)
    styled = pipeline.stylised(models.base, models.style, 0.3)
    expected = pipeline.generate(styled, ["a red star"], **QUICK)[0]
    np.testing.assert_allclose(made.video, expected, atol=1e-4)
    assert made.remarks == (
        "style strength 0.3 is outside the recommended range 0.5 to 1: style or motion may suffer",
    )


def test_a_cancelled_job_stops_in_the_midst_of_sampling(models):
    steps = []

    def report(progress):
        steps.append(progress.done)
        if progress.done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        make(models, Request(application="generate", prompt="a star", steps=9), report)
    assert steps[-1] == 2


def test_mistakes_name_files_and_not_folders(models, files, tmp_path):
    black = tmp_path / "black.png"
    Image.new("L", (32, 24)).save(black)
    request = {"application": "cinemagraph", "image": files / "image.png"}
    for fields, message in (
        ({"prompt": " ", "mask": black}, "the prompt is empty"),
        ({"prompt": "a", "mask": black}, "^black.png: the mask is black all over"),
        ({"prompt": "a", "mask": files / "clip.mp4"}, "^clip.mp4: is 256x256, but image.png is"),
    ):
        with pytest.raises(UserError, match=message):
            make(models, Request(**request, **fields), lambda progress: None)


def test_files_carry_their_settings(models, tmp_path):
    request = Request(application="generate", prompt="A *red* star, ünlit", **QUICK)
    made = make(models, request, lambda progress: None)
    written = write_result(made, tmp_path)
    assert written.video.name == "generate_a-red-star-nlit_seed5.mp4"
    settings = json.loads(read_comment(written.video))
    assert settings == made.settings
    assert settings["prompt"] == "A *red* star, ünlit" and settings["model"] == "fill"
    assert settings["steps"] == 3 and "style" not in settings and "upscale" not in settings
    video, fps = read_video(written.video)
    assert len(video) == NUM_FRAMES and fps == FPS
    assert read_video(written.xt_slice)[0].shape[1] >= NUM_FRAMES


def test_a_model_of_images_makes_a_video_of_one_frame(folders, tmp_path):
    models = load_models(folders["images"], [], None)
    request = Request(application="generate", prompt="a star", **QUICK)
    written = write_result(make(models, request, lambda progress: None), tmp_path)
    assert written.xt_slice is None and len(read_video(written.video)[0]) == 1


def test_what_the_page_says():
    frames = np.zeros((4, 8, 8, 3), np.float32)
    frames[1::2] = 1
    said = progress_html(Progress("sampling", 5, 20, 8.0, frames), 8.0)
    assert "sampling, step 5 of 20, about 30 s left" in said
    assert 'value="5" max="20"' in said and "data:image/webp;base64," in said
    assert "<progress" in progress_html(Progress("waiting: 1 ahead"), 8.0)
    assert "&lt;b&gt;" in message_html("<b>") and "<b>" not in remarks_html(("<b>",))
    with Image.open(io.BytesIO(animation(frames, 8.0))) as image:
        assert image.n_frames == 4


def test_old_results_go(tmp_path):
    first = new_folder(tmp_path, keep=100)
    second = new_folder(tmp_path, keep=100)
    assert first.is_dir() and re.fullmatch("[0-9a-f]{32}", first.name)
    third = new_folder(tmp_path, keep=-1)
    assert list(tmp_path.iterdir()) == [third] and not second.exists()
