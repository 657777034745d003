import numpy as np
import pytest

from stunet.errors import UserError
from stunet.evaluation.features import Extractor, Resize


def extractor(function, **fields):
    size = {"resize": Resize(2, "bilinear"), "min_frames": 3, "max_frames": None}
    return Extractor("extractor", function, **size | {"weights_sha256": "0"} | fields)


def test_bilinear_crops_the_centre_without_anti_aliasing():
    ramp = np.linspace(-1, 1, 8, dtype=np.float32)
    clip = np.broadcast_to(ramp[None, None, :, None], (3, 4, 8, 3))
    small = Resize(2, "bilinear")(clip)
    assert small.shape == (3, 2, 2, 3)
    # Half-pixel centres: between columns 0 and 1, 2 and 3 of the central four.
    np.testing.assert_allclose(small[0, 0, :, 0], [ramp[2:4].mean(), ramp[4:6].mean()], atol=1e-6)
    stripes = np.where(np.arange(16) % 4 < 2, 1.0, -1.0)[None, None, :, None]
    stripes = Resize(4, "bilinear")(np.broadcast_to(stripes, (1, 16, 16, 3)))
    np.testing.assert_allclose(stripes, 0, atol=1e-6)
    large = Resize(8, "bilinear")(clip[:, :, 2:6])
    np.testing.assert_allclose(large[0, 0, 2, 0], 0.25 * ramp[2] + 0.75 * ramp[3], atol=1e-6)


def test_bicubic_is_anti_aliased_in_8_bits():
    fine = np.where(np.arange(64) % 2, 1.0, -1.0)[None, None, :, None]
    grey = Resize(8, "bicubic")(np.broadcast_to(fine, (2, 64, 64, 3)))
    assert grey.shape == (2, 8, 8, 3) and np.abs(grey).max() < 0.1
    assert Resize(8, "bicubic")(np.ones((1, 20, 9, 3))).shape == (1, 8, 8, 3)
    np.testing.assert_array_equal(Resize(8, "bicubic")(np.ones((1, 9, 20, 3))), 1)


def test_batches_are_padded():
    shapes = []

    def mean(videos):
        shapes.append(videos.shape)
        return videos.mean((1, 2, 3, 4))[:, None]

    clips = [np.full((3, 4 + i, 4, 3), i / 4, np.float32) for i in range(3)]
    features = extractor(mean)(clips, batch_size=5)
    np.testing.assert_allclose(features, [[0], [0.25], [0.5]], atol=1e-6)
    assert shapes == [(5, 3, 2, 2, 3)]


def test_numbers_of_frames():
    with pytest.raises(UserError, match=r"extractor: .* 2 frames, expected 3 or more"):
        extractor(None).check_frames(2)
    extractor(None).check_frames(99)
    exact = extractor(None, min_frames=16, max_frames=16)
    exact.check_frames(16)
    with pytest.raises(UserError, match=r"extractor: .* 17 frames, expected 16$"):
        exact.check_frames(17)
