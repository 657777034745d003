from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from data.moving_shapes.judge import agreement, confusion, judge, shapes_by_motion
from data.moving_shapes.render import render
from data.moving_shapes.vocabulary import Attributes, Prompt, draw_attributes

NAMES = ("colour", "shape", "motion", "background")


def agreements(count, num_frames, resolution, fps, split="train", degrade=lambda video, rng: video):
    rng = np.random.default_rng(7)
    hits = Counter()
    for seed in range(count):
        attributes = draw_attributes(split, rng)
        verdict = judge(degrade(render(attributes, seed, num_frames, resolution, fps), rng))
        hits.update(name for name in NAMES if verdict[name] == getattr(attributes, name))
    return {name: hits[name] / count for name in NAMES}


def test_agrees_at_the_training_resolution():
    shares = agreements(300, 16, 32, 8.0)
    assert min(shares.values()) >= 0.99, shares


@pytest.mark.parametrize(
    ("num_frames", "resolution", "fps"), [(32, 64, 8.0), (8, 32, 8.0), (40, 48, 8.0)]
)
def test_agrees_at_other_sizes(num_frames, resolution, fps):
    shares = agreements(40, num_frames, resolution, fps, split="heldout")
    assert min(shares.values()) >= 0.97, shares


def test_is_robust_to_blur_and_noise():
    def degrade(video, rng):
        blurred = ndimage.gaussian_filter(video, (0, 0.8, 0.8, 0))
        return blurred + 0.2 * rng.standard_normal(video.shape)

    shares = agreements(100, 16, 32, 8.0, degrade=degrade)
    assert min(shares.values()) >= 0.95, shares


def test_distinguishes_reversed_rotated_still_and_empty_clips():
    attributes = Attributes("star", "red", "right", "dark", "large", "slow")
    video = render(attributes, 0, 16, 32, 8.0)
    assert judge(video)["motion"] == "right"
    assert judge(video[::-1])["motion"] == "left"
    assert judge(video.swapaxes(1, 2))["motion"] == "down"
    frozen = judge(np.repeat(video[:1], 16, 0))
    assert (frozen["motion"], frozen["shape"], frozen["colour"]) == ("still", "star", "red")
    empty = np.broadcast_to(video[0, 0, 0], video.shape)
    assert judge(empty) == dict.fromkeys(NAMES[:3], "none") | {"background": "dark"}


def test_agreement_counts():
    video = render(Attributes("ring", "cyan", "up", "navy", "large", "fast"), 1, 16, 32, 8.0)
    prompts = [
        Prompt("", "ring", "cyan", "up"),
        Prompt("", "ring", "blue", "up"),
        Prompt("", "heart", "cyan", "up"),
        Prompt("", "heart", "cyan", "down"),
    ]
    verdicts = [judge(video)] * 4
    shares = agreement(verdicts, prompts)
    assert shares == {"colour": 0.75, "shape": 0.5, "motion": 0.75, "all": 0.25}
    matrices = [confusion(verdicts, prompts, name) for name in ("shape", "motion")]
    assert matrices == [
        {"heart": {"ring": 2}, "ring": {"ring": 2}},
        {"down": {"up": 1}, "up": {"up": 3}},
    ]
    by_motion = shapes_by_motion(verdicts, prompts)
    assert by_motion == {"down": {"clips": 1, "right": 0}, "up": {"clips": 3, "right": 2}}
