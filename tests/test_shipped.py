"""The models that come with the package, and the pages whose commands use them."""

import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

from data.moving_shapes.duotone import distance_to_gradient
from data.moving_shapes.judge import judge
from experiments.gallery import commands
from stunet.cli import _parser, main
from stunet.engine.cascade import stylize
from stunet.errors import UserError
from stunet.model import load
from stunet.video_io import read_video
from stunet.weights import shipped
from stunet.weights.model_folder import find_model_folder
from stunet.weights.trees import is_added, partition
from tests.calls import generate
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_they_are_small_and_of_one_size():
    folders = sorted(path.name for path in shipped.FOLDER.iterdir())
    assert folders == sorted(shipped.NAMES)
    files = [path for path in shipped.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24e6
    video, filler, upscaler, style = map(load, shipped.NAMES)
    assert (video.num_frames, filler.num_frames) == (16, 16)
    assert filler.unet.cond_channels and not video.unet.cond_channels
    for model in (video, filler):
        assert upscaler.resolution == upscaler.super_resolution.factor * model.resolution
    images = [partition(model.params["unet"], is_added)[1] for model in (video, filler)]
    for one, other in zip(*map(jax.tree.leaves, images), strict=True):
        np.testing.assert_array_equal(one, other)
    stylize(video, style, 0.7)  # of the same shapes


def test_the_style_draws_in_its_two_inks():
    model, look, texts = load("shapes"), load("shapes-duotone"), ["a red star", "a blue ring"]
    plain, styled = (
        distance_to_gradient(
            generate(stylize(model, look, strength), texts, num_frames=1, steps=8)
        )
        for strength in (0.0, 1.0)
    )
    assert styled < 0.5 * plain


def test_a_folder_of_the_same_name_comes_first(tmp_path, monkeypatch):
    assert find_model_folder("shapes") == shipped.FOLDER / "shapes"
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "shapes")
    assert find_model_folder("shapes").resolve() == tmp_path / "shapes"
    with pytest.raises(UserError, match="circles: .*shapes, shapes-fill, shapes-ssr, "):
        find_model_folder("circles")


def test_the_command_without_a_model_makes_what_is_asked_for(tmp_path, capsys):
    out = tmp_path / "disc.gif"
    prompt = "a red circle moving left on a dark background"
    assert main(["generate", prompt, "--steps=12", f"--out={out}"]) == 0
    video, fps = read_video(out)
    assert (len(video), fps) == (16, pytest.approx(8, rel=0.05))
    seen = judge(video)
    assert (seen["colour"], seen["motion"]) == ("red", "left")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_on_the_pages_are_commands(page):
    text = page.read_text(encoding="utf-8")
    for line in [*text.splitlines(), *re.findall(r"\| `([^`]+)` \|", text)]:
        if line.startswith("stunet "):
            _parser().parse_args(shlex.split(line, comments=True)[1:])


def test_the_gallery_shows_what_each_command_made_and_has_all_applications():
    page = ROOT / "docs" / "gallery.md"
    asked = [_parser().parse_args(command) for command in commands(page)]
    made = [path for args in asked for path in (args.out, getattr(args, "xt_slice", None)) if path]
    assert len(made) == len(set(made))
    for path in made:
        assert f"](images/gallery/{path.name})" in page.read_text() and (ROOT / path).is_file()
    applications = {"generate", "animate", "interpolate", "inpaint", "cinemagraph", "edit"}
    assert {command[0] for command in commands(page)} == {*applications, "upscale"}
    for option in ("style", "mask", "outpaint"):
        assert any(getattr(args, option, None) for args in asked), option
    here = page.read_text(encoding="utf-8").replace("docs/images/gallery/", "").splitlines()
    shown = re.findall(r"\| `(stunet [^`]+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert shown and set(shown) <= set(here)
