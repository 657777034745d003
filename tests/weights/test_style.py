import jax
import ml_dtypes
import numpy as np
import pytest

from stunet.errors import UserError
from stunet.models.unet import init_unet
from stunet.weights.style import interpolate_style
from stunet.weights.trees import flatten, is_added
from tests.tiny import UNET, random_params

KEY = jax.random.key(0)


def draw(config, seed):
    params = random_params(jax.eval_shape(lambda: init_unet(config, KEY)), seed)
    return jax.tree.map(lambda a: a.astype(np.float32), params)


VIDEO, STYLE = draw(UNET, 1), draw(UNET.text_to_image(), 2)


@pytest.mark.parametrize("strength", [0, 0.5, 1, 1.5])
def test_only_spatial_parameters_are_interpolated(strength):
    before, style = flatten(VIDEO), flatten(STYLE)
    after = flatten(interpolate_style(VIDEO, STYLE, strength, "style"))
    assert after.keys() == before.keys()
    for path, leaf in after.items():
        if is_added(path):
            np.testing.assert_array_equal(leaf, before[path])
        else:
            expected = strength * style[path] + (1 - strength) * before[path]
            np.testing.assert_allclose(leaf, expected, atol=1e-6)


def test_temporal_parameters_of_the_style_are_ignored_and_dtypes_kept():
    style = draw(UNET, 3)
    half = jax.tree.map(lambda a: a.astype(ml_dtypes.bfloat16), VIDEO)
    after = flatten(interpolate_style(half, style, 1, "style"))
    for path, leaf in after.items():
        assert leaf.dtype == ml_dtypes.bfloat16
        source = flatten(half if is_added(path) else style)[path]
        np.testing.assert_array_equal(leaf, np.asarray(source).astype(ml_dtypes.bfloat16))


def test_bad_styles():
    with pytest.raises(UserError, match=r"strength.* 1\.6.* 0 .*1\.5"):
        interpolate_style(VIDEO, STYLE, 1.6, "style")
    other = {**STYLE, "conv_in": {"kernel": np.zeros((3, 3, 3, 4)), "bias": np.zeros(4)}}
    with pytest.raises(UserError, match=r"models/other: .*wrong shape: conv_in/bias"):
        interpolate_style(VIDEO, other, 0.5, "models/other")
