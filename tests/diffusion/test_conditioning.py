import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.diffusion import MaskMixture, draw_mask, mask_conditioning, paste_known
from stunet.errors import UserError

T, H, W = 8, 16, 16
ONLY = {
    kind: MaskMixture(**{name: float(name == kind) for name in MaskMixture.__dataclass_fields__})
    for kind in MaskMixture.__dataclass_fields__
}


def masks(mixture, count=200, shape=(T, H, W)):
    keys = jax.random.split(jax.random.key(0), count)
    drawn = np.asarray(jax.vmap(lambda key: draw_mask(mixture, key, shape))(keys))
    assert drawn.shape == (count, *shape, 1) and set(np.unique(drawn)) <= {0.0, 1.0}
    return drawn[..., 0]


@pytest.mark.parametrize(
    ("kind", "known"), [("first_frame", [0]), ("first_and_last", [0, T - 1]), ("none", [])]
)
def test_masks_with_whole_frames_known(kind, known):
    expected = np.zeros((T, H, W))
    expected[known] = 1
    assert (masks(ONLY[kind], 3) == expected).all()


def test_every_kth_frame_is_known_for_each_k_up_to_half_the_clip():
    drawn = masks(ONLY["every_kth"])
    assert (drawn == drawn[:, :, :1, :1]).all()
    patterns = {tuple(frames) for frames in drawn[:, :, 0, 0]}
    assert patterns == {tuple(float(t % k == 0) for t in range(T)) for k in range(2, T // 2 + 1)}


def hole(mask):
    """Returns top, bottom, left, right of a frame's unknown part, and whether it is a full box."""
    rows, columns = np.nonzero(mask == 0)
    box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return rows.min(), rows.max(), columns.min(), columns.max(), not box.any()


def test_moving_box_has_constant_size_and_velocity():
    distances = []
    for clip in masks(ONLY["moving_box"], 50):
        holes = np.array([hole(frame) for frame in clip])
        assert holes[:, 4].all()
        height, width = holes[:, 1] - holes[:, 0], holes[:, 3] - holes[:, 2]
        assert np.ptp(height) <= 1 and np.ptp(width) <= 1  # rounding to whole pixels
        centre = (holes[:, 0] + holes[:, 1]) / 2
        line = centre[0] + (centre[-1] - centre[0]) * np.arange(T) / (T - 1)
        np.testing.assert_allclose(centre, line, atol=1.01)
        distances.append(abs(centre[-1] - centre[0]))
    assert np.mean(distances) > 2


def test_static_box_is_fixed_and_half_of_the_first_frames_are_known():
    drawn = masks(ONLY["static_box"])
    assert (drawn[:, 1:] == drawn[:, 1:2]).all()
    assert all(hole(clip[1])[4] for clip in drawn)
    first_known = drawn[:, 0].all((1, 2))
    assert 0.4 < first_known.mean() < 0.6
    assert (drawn[~first_known, 0] == drawn[~first_known, 1]).all()


def test_brush_stroke_is_the_same_in_all_frames_and_varies_in_size():
    drawn = masks(ONLY["brush"])
    assert (drawn == drawn[:, :1]).all()
    share = 1 - drawn[:, 0].mean((1, 2))
    assert 0.05 < share.mean() < 0.5 and share.std() > 0.05


def test_half_plane_is_bounded_by_a_line_of_any_direction():
    drawn = masks(ONLY["half_plane"])
    assert (drawn == drawn[:, :1]).all()
    frames = drawn[:, 0]
    for axis in (1, 2):  # a line crosses each row and each column at most once
        assert np.abs(np.diff(frames, axis=axis)).sum(axis).max() == 1
    share = frames.mean((1, 2))
    assert 0.02 < share.min() < 0.3 and 0.7 < share.max() < 0.98
    corners = frames[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert {tuple(row) for row in corners} >= {
        (1, 1, 0, 0),
        (0, 0, 1, 1),
        (1, 0, 1, 0),
        (0, 1, 0, 1),
    }


def test_mixture_weights():
    mixture = dataclasses.replace(ONLY["none"], none=3.0, first_frame=1.0)
    empty = masks(mixture, 2000).max((1, 2, 3)) == 0
    assert empty.mean() == pytest.approx(0.75, abs=0.03)
    with pytest.raises(UserError, match=r"conditioning\.brush.*-1.*0"):
        MaskMixture(brush=-1)
    with pytest.raises(UserError, match=r"conditioning.*0"):
        MaskMixture(*[0] * 8)


def test_unknown_pixels_are_zero_in_the_conditioning():
    video = np.random.default_rng(0).normal(size=(2, T, H, W, 3)).astype(np.float32)
    mask = masks(ONLY["moving_box"], 2)[..., None]
    cond = np.asarray(mask_conditioning(jnp.asarray(video), jnp.asarray(mask)))
    assert cond.shape == (2, T, H, W, 4)
    np.testing.assert_array_equal(cond[..., 3:], mask)
    np.testing.assert_array_equal(cond[..., :3], np.where(mask == 1, video, 0))


def test_pasting_keeps_known_pixels_exactly_and_blends_at_the_edge():
    rng = np.random.default_rng(0)
    known = rng.normal(size=(1, 2, 12, 12, 3)).astype(np.float32)
    generated = np.zeros_like(known)
    mask = np.zeros((1, 2, 12, 12, 1))
    mask[:, :, :, :4] = 1
    mask[:, 1, :, 4:] = 1  # all of the second frame is known
    for feather in (0, 3):
        result = paste_known(generated, known, mask, feather)
        is_known = np.broadcast_to(mask == 1, result.shape)
        np.testing.assert_array_equal(result[is_known], known[is_known])
    edge = known[0, 0, :, 3]
    for distance, share in enumerate((0.75, 0.5, 0.25, 0, 0), 1):
        np.testing.assert_allclose(result[0, 0, :, 3 + distance], share * edge, atol=1e-6)
    assert not paste_known(generated, known, mask, 0)[0, 0, :, 4:].any()
