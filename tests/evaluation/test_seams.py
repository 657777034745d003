import numpy as np
import pytest

from stunet.diffusion import Windows
from stunet.evaluation.seams import colour_shift, frame_differences, psnr, seam_mask, seam_ratio


def test_seams_are_where_the_weight_of_a_window_changes():
    joints = Windows.over(12, 4, overlap=0)
    np.testing.assert_array_equal(np.flatnonzero(seam_mask(joints)), [3, 7])  # 3 -> 4, 7 -> 8
    overlapping = Windows.over(10, 4, overlap=1)  # frames 0..3, 3..6, 6..9
    np.testing.assert_array_equal(np.flatnonzero(seam_mask(overlapping)), [2, 3, 5, 6])
    covers = Windows.over(14, 8, weights="uniform")  # frames 0..7, 6..13
    np.testing.assert_array_equal(np.flatnonzero(seam_mask(covers)), [5, 7])
    fades = Windows.over(14, 8, weights="ramp")  # by thirds: 1, 2/3, 1/3, 0
    np.testing.assert_array_equal(np.flatnonzero(seam_mask(fades)), [5, 6, 7])
    assert not seam_mask(Windows.over(4, 4, overlap=0)).any()


def test_ratio_of_jumps_of_known_size():
    """Frames that change by 1/255, and by 3/255 at the boundaries of windows."""
    windows = Windows.over(12, 4, overlap=0)
    steps = np.where(seam_mask(windows), 3.0, 1.0) / 127.5
    values = np.concatenate([[0.0], np.cumsum(steps)]) - 0.1
    videos = np.broadcast_to(values[None, :, None, None, None], (5, 12, 2, 3, 3))
    differences = frame_differences(videos)
    np.testing.assert_allclose(differences[0, 2:5], [1, 3, 1], rtol=1e-9)
    np.testing.assert_allclose(seam_ratio(differences, seam_mask(windows)), 3.0, rtol=1e-9)
    with pytest.raises(ValueError, match="at_seam"):
        seam_ratio(differences, np.zeros(11, bool))


def test_interval_has_its_nominal_coverage():
    rng = np.random.default_rng(0)
    at_seam = np.arange(9) % 3 == 0
    hits = 0
    for trial in range(200):
        differences = rng.gamma(4.0, size=(24, 1)) * rng.gamma(8.0, size=(24, 9))
        differences[:, at_seam] *= 1.5
        _, low, high = seam_ratio(differences, at_seam, resamples=300, seed=trial)
        hits += low < 1.5 < high
    assert 0.87 < hits / 200 < 0.99


def test_colour_shift_and_psnr():
    low_resolution = np.zeros((2, 3, 2, 2, 3))
    upscaled = np.zeros((2, 3, 8, 8, 3)) + np.array([2.0, 0.0, -1.0]) / 127.5
    np.testing.assert_allclose(colour_shift(upscaled, low_resolution), [[2, 0, -1]] * 2, atol=1e-9)
    truth = np.zeros((1, 2, 4, 4, 3))
    np.testing.assert_allclose(psnr(truth + 0.2, truth), 20.0)
