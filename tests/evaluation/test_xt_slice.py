import numpy as np
import pytest

from stunet.evaluation.xt_slice import xt_slice


def test_slice_of_a_moving_dot_is_a_diagonal():
    video = np.zeros((5, 7, 5, 3), np.float32)
    for t in range(5):
        video[t, 3, t] = 1
    assert np.array_equal(xt_slice(video)[..., 0], np.eye(5))
    assert not xt_slice(video, 2).any()


def test_row_outside():
    with pytest.raises(ValueError, match=r"row: 7, .* 0 to 6"):
        xt_slice(np.zeros((5, 7, 5, 3)), 7)
