"""The error of restored clips, of denoisers whose error is known."""

import dataclasses

import numpy as np
import pytest

from data.moving_shapes.vocabulary import MOTIONS, parse
from experiments import denoising
from stunet.model import load
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(save_tiny_model(tmp_path_factory.mktemp("denoising")))


def test_captions_name_another_attribute_and_leave_the_rest(model):
    clips, captions = denoising.draw_clips(model, 12, "heldout", 0)
    assert clips.shape == (12, 4, 8, 8, 3)
    assert list(captions) == ["own", "shape", "colour", "motion", "none"]
    for name in ("shape", "colour", "motion"):
        for own, other in zip(captions["own"], captions[name], strict=True):
            own, other = parse(own), parse(other)
            assert own[name] != other[name]
            assert all(own[k] == other[k] for k in ("shape", "colour", "motion") if k != name)
    again, _ = denoising.draw_clips(model, 12, "heldout", 0)
    np.testing.assert_array_equal(again, clips)
    image = dataclasses.replace(model, num_frames=1)
    assert list(denoising.draw_clips(image, 2, "train", 0)[1]) == ["own", "shape", "colour", "none"]
    assert set(MOTIONS) >= {parse(line)["motion"] for line in captions["own"]}


def test_the_error_is_that_of_the_restored_clip(model, monkeypatch):
    """A network that answers 0.5 for x0, and one that answers 0 for v: x0 is then alpha x_t."""
    clips = np.full((3, 4, 8, 8, 3), 0.25, np.float32)
    captions = {"own": ["a", "b", "c"], "none": ["", "", ""]}
    answer = {"value": 0.5}

    def constant(config, params):
        return lambda x_t, t, cond: 0 * x_t + answer["value"]

    monkeypatch.setattr(denoising, "network", constant)
    model = dataclasses.replace(model, prediction="x0", variance="fixed_small")
    errors = denoising.restore(model, clips, captions, [-1, 3], 2, 0)
    np.testing.assert_allclose(errors["own"], [0.0625, 0.0625], rtol=1e-6)
    assert errors["none"] == errors["own"]

    answer["value"] = 0.0
    model = dataclasses.replace(model, prediction="v")
    (error,) = denoising.restore(model, clips, captions, [0], 2, 0)["own"]
    # alpha^2 = sigma^2 = 1/2: x0 is 0.5 x0 + 0.5 eps, off by 0.5 (eps - x0).
    assert error == pytest.approx(0.25 * (1 + 0.0625), rel=0.1)


def test_the_plot_is_a_picture(tmp_path):
    denoising.plot([-1, 0], {"own": [0.2, 0.1], "shape": [0.3, 0.2]}, tmp_path / "errors.png")
    assert (tmp_path / "errors.png").stat().st_size > 3000
