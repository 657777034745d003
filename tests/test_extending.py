"""Runs the examples of docs/extending.md."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stunet
from stunet import cli
from stunet.engine import applications
from stunet.video_io import read_video, write_video
from tests.calls import generate
from tests.tiny import CAPTIONS, FPS, NUM_FRAMES, RESOLUTION, UNET, fast_compiles, save_tiny_model

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture(scope="module", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


def example(section: str) -> str:
    text = PAGE.read_text().split(f"## {section}\n")[1]
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def test_a_sampler_from_outside_the_package(tmp_path, monkeypatch):
    module = types.ModuleType("outside")
    exec(example("A sampler"), module.__dict__)
    monkeypatch.setitem(sys.modules, "outside", module)
    model = stunet.load(save_tiny_model(tmp_path / "model"))
    result = generate(model, CAPTIONS[:1], sampler="outside:Deterministic", steps=4)
    np.testing.assert_allclose(
        result, generate(model, CAPTIONS[:1], sampler="ddim", steps=4), atol=1e-5
    )
    out = tmp_path / "a.png"
    command = ["generate", "x", "--model", str(tmp_path / "model"), "--out", str(out)]
    assert cli.main([*command, "--sampler", "outside:Deterministic", "--steps", "2"]) == 0


def test_a_new_application_is_a_command(tmp_path, monkeypatch, capsys):
    names = vars(applications) | {"APPLICATIONS": dict(applications.APPLICATIONS)}
    exec(example("An application"), names)
    monkeypatch.setattr(applications, "APPLICATIONS", names["APPLICATIONS"])
    monkeypatch.setattr("stunet.cli.generation.APPLICATIONS", names["APPLICATIONS"])
    conditional = UNET.__class__(**{**vars(UNET), "cond_channels": 4})
    folder = save_tiny_model(tmp_path / "model", conditional, stage="conditional")
    with pytest.raises(SystemExit):
        cli.main(["continue", "--help"])
    assert "continue a video from its last frame" in capsys.readouterr().out.lower()

    clip = np.random.default_rng(0).uniform(-1, 1, (3, RESOLUTION, RESOLUTION, 3))
    write_video(tmp_path / "clip.mp4", clip.astype(np.float32), FPS)
    out = tmp_path / "out.png"
    command = ["continue", str(tmp_path / "clip.mp4"), "a star", "--model", str(folder)]
    assert cli.main([*command, "--out", str(out), "--steps", "2"]) == 0
    with Image.open(out) as sheet:
        scale = sheet.height // RESOLUTION
        assert sheet.width == (NUM_FRAMES * RESOLUTION + NUM_FRAMES - 1) * scale
    assert len(read_video(out)[0]) == 1
    assert "continue" in applications.available_applications([stunet.load(folder)])
