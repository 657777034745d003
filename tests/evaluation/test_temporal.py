import numpy as np
import pytest

from stunet.evaluation.temporal import flicker


def clips(*brightness):
    """Grey clips `[N, T, 2, 4, 3]` of these brightnesses in steps of 1/255."""
    return np.broadcast_to(
        np.array(brightness)[:, :, None, None, None] / 127.5, (len(brightness), 5, 2, 4, 3)
    )


def test_flicker_counts_what_goes_up_and_down_and_not_what_goes_on():
    up_and_down, steadily, one_flash = [0, 3, 0, 3, 0], [0, 2, 4, 6, 8], [0, 0, 6, 0, 0]
    expected = [3, 0, (3 + 6 + 3) / 3]
    np.testing.assert_allclose(
        flicker(clips(up_and_down, steadily, one_flash)), expected, atol=1e-9
    )


def test_what_moves_within_the_frame_does_not_flicker():
    video = np.full((1, 5, 2, 5, 3), -1.0)
    for t in range(5):
        video[0, t, :, (3 * t) % 5] = 1
    assert flicker(video) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="takes 3 frames, got 2"):
        flicker(video[:, :2])
