"""Denoising errors of networks whose error is known."""

import dataclasses

import numpy as np
import pytest

from data.moving_shapes.vocabulary import MOTIONS, parse_caption
from experiments import denoising
from stunet.model import load
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(save_tiny_model(tmp_path_factory.mktemp("denoising")))


def test_captions_change_one_attribute(model):
    clips, captions = denoising.draw_captioned_clips(model, 12, "heldout", 0)
    assert clips.shape == (12, 4, 8, 8, 3)
    assert list(captions) == ["own", "shape", "colour", "motion", "none"]
    for name in ("shape", "colour", "motion"):
        pairs = zip(captions["own"], captions[name], strict=True)
        for own, other in (map(parse_caption, pair) for pair in pairs):
            assert own[name] != other[name]
            assert all(own[k] == other[k] for k in ("shape", "colour", "motion") if k != name)
    again, _ = denoising.draw_captioned_clips(model, 12, "heldout", 0)
    np.testing.assert_array_equal(again, clips)
    image = dataclasses.replace(model, num_frames=1)
    _, image_captions = denoising.draw_captioned_clips(image, 2, "train", 0)
    assert list(image_captions) == ["own", "shape", "colour", "none"]
    assert set(MOTIONS) >= {parse_caption(line)["motion"] for line in captions["own"]}


def test_error_of_the_predicted_clip(model, monkeypatch):
    """Networks that predict x0 = 0.5, and v = 0 (then x0 is alpha x_t)."""
    clips = np.full((3, 4, 8, 8, 3), 0.25, np.float32)
    captions = {"own": ["a", "b", "c"], "none": ["", "", ""]}
    output = {"value": 0.5}

    def constant(config, params):
        return lambda x_t, t, cond: 0 * x_t + output["value"]

    monkeypatch.setattr(denoising, "network", constant)
    model = dataclasses.replace(model, prediction="x0", variance="fixed_small")
    errors = denoising.denoising_errors(model, clips, captions, [-1, 3], 2, 0)
    np.testing.assert_allclose(errors["own"], [0.0625, 0.0625], rtol=1e-6)
    assert errors["none"] == errors["own"]

    output["value"] = 0.0
    model = dataclasses.replace(model, prediction="v")
    (error,) = denoising.denoising_errors(model, clips, captions, [0], 2, 0)["own"]
    # alpha^2 = sigma^2 = 1/2: x0 is 0.5 x0 + 0.5 eps, off by 0.5 (eps - x0).
    assert error == pytest.approx(0.25 * (1 + 0.0625), rel=0.1)


def test_plot_is_an_image(tmp_path):
    denoising.plot([-1, 0], {"own": [0.2, 0.1], "shape": [0.3, 0.2]}, tmp_path / "errors.png")
    assert (tmp_path / "errors.png").stat().st_size > 3000
