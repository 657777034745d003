from dataclasses import replace

import numpy as np
import pytest

from stunet import Sampling, generate, load
from stunet.diffusion import Windows
from stunet.engine.prompt_schedule import check_schedule, window_texts
from stunet.errors import UserError
from tests.tiny import CAPTIONS, NUM_FRAMES, fast_compiles, save_tiny_model

WINDOWS = Windows.over(14, 4, overlap=0)  # middles at frames 2, 6, 10 and 12


@pytest.mark.parametrize(
    ("schedule", "texts"),
    [
        ((), "aaaa"),
        (((10, "b"),), "aabb"),
        (((3, "b"), (11, "c")), "abbc"),
        (((2, "b"),), "bbbb"),
    ],
)
def test_a_window_follows_the_text_at_its_middle(schedule, texts):
    assert window_texts("a", schedule, WINDOWS) == list(texts)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (((6, "b"), (6, "c")), "frame 6 after 6"),
        (((6, "b"), (3, "c")), "frame 3 after 6"),
        (((6, " "),), "frame 6 .*empty"),
        (((2, "b"),), "frame 0.*: frame 2, 6, 10, 12"),
        (((3, "b"), (5, "c"), (7, "d"), (13, "e")), "frame 3.*: frame 2, 6, 10, 12"),
        (((14, "b"),), "frame 14.*: frame 2, 6, 10, 12"),
    ],
)
def test_texts_that_no_window_follows_are_refused(schedule, message):
    with pytest.raises(UserError, match=message):
        check_schedule(schedule, WINDOWS, longest=4)


def test_a_clip_of_one_window_takes_no_schedule():
    check_schedule((), Windows.over(3, 4), longest=4)
    with pytest.raises(UserError, match="prompt_schedule: .* 3 frames.* 4 of a window"):
        check_schedule(((2, "b"),), Windows.over(3, 4), longest=4)


@pytest.mark.parametrize("noise", ["independent", "shuffled"])
def test_windows_without_overlap_equal_those_of_clips_with_one_text(tmp_path, noise):
    with fast_compiles():
        model = replace(load(save_tiny_model(tmp_path / "model")), threshold=None)
        sampling = Sampling(steps=2, guidance_scale=3.0, overlap=0, window_noise=noise)

        def sample(prompts, schedule=()):
            options = {"num_frames": 3 * NUM_FRAMES, "sampling": sampling}
            return generate(model, prompts, prompt_schedule=schedule, **options)

        a, b, c = CAPTIONS[:3]
        scheduled = sample([a, b], [(NUM_FRAMES, c)])
        assert scheduled.settings["prompt_schedule"] == [[NUM_FRAMES, c]]
        assert scheduled.settings["overlap"] == 0
        assert scheduled.settings.get("window_noise", "independent") == noise
        plain = sample([a, b])
        assert "prompt_schedule" not in plain.settings
        videos, first = scheduled.videos, slice(0, NUM_FRAMES)
        np.testing.assert_allclose(videos[:, first], plain.videos[:, first], atol=1e-5)
        later = slice(NUM_FRAMES, None)
        np.testing.assert_allclose(videos[:, later], sample([c, c]).videos[:, later], atol=1e-5)
        assert np.abs(videos[:, later] - plain.videos[:, later]).max() > 1e-3
