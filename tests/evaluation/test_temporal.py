import numpy as np
import pytest

from stunet.evaluation.temporal import flicker, periodicity


def clips(*brightness):
    """Grey clips `[N, T, 2, 4, 3]` of the given brightness of each frame, in 1/255."""
    return np.broadcast_to(
        np.array(brightness)[:, :, None, None, None] / 127.5, (len(brightness), 5, 2, 4, 3)
    )


def test_flicker_ignores_steady_changes_of_brightness():
    alternating, steady, flash = [0, 3, 0, 3, 0], [0, 2, 4, 6, 8], [0, 0, 6, 0, 0]
    expected = [3, 0, (3 + 6 + 3) / 3]
    np.testing.assert_allclose(flicker(clips(alternating, steady, flash)), expected, atol=1e-9)


def test_flicker_ignores_motion():
    video = np.full((1, 5, 2, 5, 3), -1.0)
    for t in range(5):
        video[0, t, :, (3 * t) % 5] = 1
    assert flicker(video) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match=r"videos: 2 .* 3"):
        flicker(video[:, :2])


def test_periodicity_of_repeating_drifting_and_random_clips():
    t, place = np.arange(16), np.random.default_rng(0).normal(size=(2, 4, 4, 3))
    angle = 2 * np.pi * 2.5 * t / 16
    waves = np.stack([np.sin(angle), np.cos(2 * angle)], axis=1)
    repeating = np.einsum("tk,khwc->thwc", waves, place)
    noise = np.random.default_rng(1).normal(size=(16, 8, 8, 3))
    drifting = t[:, None, None, None] * place[0]
    found = [periodicity(video[None])[0] for video in (repeating, drifting, noise)]
    assert found[0] == pytest.approx(1)
    assert found[1] < 0.7 and found[2] < 0.4
    # Equal energy of repetition and noise: about half is explained.
    weight = np.sqrt((repeating**2).sum() / (noise[:, :4, :4] ** 2).sum())
    mixed = repeating + weight * noise[:, :4, :4]
    assert 0.5 < periodicity(mixed[None])[0] < 0.75
    assert periodicity(np.zeros((1, 16, 2, 2, 3)))[0] == 0
    with pytest.raises(ValueError, match=r"videos: 7 .* 8"):
        periodicity(repeating[None, :7])
