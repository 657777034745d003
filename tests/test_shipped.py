"""The models that come with the package, and the commands in the documentation."""

import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

from data.emoji.vocabulary import BACKGROUNDS
from data.moving_shapes.duotone import distance_to_gradient
from data.moving_shapes.judge import judge
from experiments.gallery import commands
from stunet.cli import _parser, main
from stunet.diffusion import SamplingDefaults
from stunet.engine.cascade import stylize
from stunet.errors import UserError
from stunet.model import load
from stunet.video_io import read_video
from stunet.weights import shipped
from stunet.weights.find_model import find_model_folder
from stunet.weights.trees import is_added, partition
from tests.calls import generate
from tests.emoji_thumbnails import nearest_concepts, prompts, read_thumbnails
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_shipped_models_are_small_and_fit_each_other():
    folders = sorted(path.name for path in shipped.FOLDER.iterdir())
    assert folders == sorted(shipped.NAMES)
    files = [path for path in shipped.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 60e6
    video, conditional, upscaler, style = map(load, shipped.SHAPES)
    assert (video.num_frames, conditional.num_frames) == (16, 16)
    assert conditional.unet.cond_channels and not video.unet.cond_channels
    assert upscaler.sampling.steps == 2 and video.sampling == SamplingDefaults()
    for model in (video, conditional):
        assert upscaler.resolution == upscaler.super_resolution.factor * model.resolution
    images = [partition(model.params["unet"], is_added)[1] for model in (video, conditional)]
    for a, b in zip(*map(jax.tree.leaves, images), strict=True):
        np.testing.assert_array_equal(a, b)
    stylize(video, style, 0.7)  # checks the shapes


def test_the_image_model_of_emoji_draws_backgrounds_and_faces():
    model, colours = load(shipped.EMOJI_MODEL), ("white", "green", "purple", "orange")
    prompts = [
        f"a yellow face laughing on {'an' if c[0] == 'o' else 'a'} {c} background" for c in colours
    ]
    frames = generate(model, prompts, num_frames=1)[:, 0]
    for frame, colour in zip((frames + 1) / 2, colours, strict=True):
        edge = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
        assert np.abs(np.median(edge, 0) - BACKGROUNDS[colour]).max() < 0.15, colour
        red, green, blue = frame[8:24, 8:24].reshape(-1, 3).mean(0)
        assert min(red, green) > blue + 0.15, colour  # yellow


EMOJI = [
    "clapping hands",
    "face screaming in fear",
    "face with tears of joy",
    "enraged face",
    "frog",
    "green heart",
    "lifting weights",
    "octopus",
    "panda",
    "police car",
    "running",
    "skull",
    "snowman",
    "spouting whale",
    "taxi",
    "thumbs up",
]


def test_emoji_are_recognised_by_their_thumbnails():
    frames = generate(load(shipped.EMOJI_MODEL), prompts(EMOJI), num_frames=1)[:, 0]
    hits = [c for c, found in zip(EMOJI, nearest_concepts(frames), strict=True) if c == found]
    assert len(hits) >= 12, hits  # of 180 concepts; 14 when the model was stored


def test_thumbnails_recognise_themselves():
    thumbnails = read_thumbnails()
    large = np.stack(list(thumbnails.values())).repeat(2, 1).repeat(2, 2)
    assert nearest_concepts(large) == list(thumbnails)


def test_the_style_draws_in_its_two_inks():
    model, style, texts = load("shapes"), load("shapes-duotone"), ["a red star", "a blue ring"]
    original, stylized = (
        distance_to_gradient(
            generate(stylize(model, style, strength), texts, num_frames=1, steps=8)
        )
        for strength in (0.0, 1.0)
    )
    assert stylized < 0.5 * original


def test_folders_have_priority_over_shipped_models(tmp_path, monkeypatch):
    assert find_model_folder("shapes") == shipped.FOLDER / "shapes"
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "shapes")
    assert find_model_folder("shapes").resolve() == tmp_path / "shapes"
    with pytest.raises(UserError, match="circles: .*shapes, shapes-fill, shapes-ssr, "):
        find_model_folder("circles")


def test_the_default_model_follows_the_prompt(tmp_path, capsys):
    out = tmp_path / "disc.gif"
    prompt = "a red circle moving left on a dark background"
    assert main(["generate", prompt, "--steps=12", f"--out={out}"]) == 0
    video, fps = read_video(out)
    assert (len(video), fps) == (16, pytest.approx(8, rel=0.05))
    verdict = judge(video)
    assert (verdict["colour"], verdict["motion"]) == ("red", "left")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_the_documentation_parse(page):
    text = page.read_text(encoding="utf-8")
    for line in [*text.splitlines(), *re.findall(r"\| `([^`]+)` \|", text)]:
        if line.startswith("stunet "):
            command = shlex.split(line, comments=True)[1:]
            _parser(command).parse_args(command)


def test_the_gallery_shows_the_output_of_every_application():
    page = ROOT / "docs" / "gallery.md"
    parsed = [_parser(command).parse_args(command) for command in commands(page)]
    paths = [
        path for args in parsed for path in (args.out, getattr(args, "xt_slice", None)) if path
    ]
    assert len(paths) == len(set(paths))
    for path in paths:
        assert f"](images/gallery/{path.name})" in page.read_text() and (ROOT / path).is_file()
    applications = {"generate", "animate", "interpolate", "inpaint", "cinemagraph", "edit"}
    assert {command[0] for command in commands(page)} == {*applications, "upscale"}
    for option in ("style", "mask", "outpaint"):
        assert any(getattr(args, option, None) for args in parsed), option
    gallery = page.read_text(encoding="utf-8").replace("docs/images/gallery/", "").splitlines()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"\| `(stunet [^`]+)` \|", readme)
    assert shown and set(shown) <= set(gallery)
